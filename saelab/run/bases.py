"""The bases of a run: SAEs, their features, neurons and controls, as units of every layer."""

import logging
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from functools import cached_property
from typing import Any

from saelab.artifacts import Artifact, digest
from saelab.cache import ActivationCache, UnstoredActivations
from saelab.errors import UserError
from saelab.label import concepts
from saelab.label.vocabulary import Vocabulary
from saelab.label.vocabulary import build as build_vocabulary
from saelab.run.basis import KINDS, RANDOM_GROUP, Basis
from saelab.run.config import RunConfig
from saelab.run.given import Given
from saelab.run.inputs import Inputs
from saelab.run.stages.planted import plant_units
from saelab.run.stages.quality import InHost, measure_sae
from saelab.run.stages.sae import Logger, adopt_sae, stream_saes, train_saes
from saelab.run.stages.units import group_basis, heads_basis, sae_bases, simple_bases
from saelab.sae.fit import LayerLogger
from saelab.units import Projection, UnitActivations

log = logging.getLogger("saelab")


class Bases(Inputs):
    """Everything that exists before there are labels. `saelab.run.labels.Labels` goes on from it."""

    def __init__(self, config: RunConfig, given: Given | None = None) -> None:
        super().__init__(config, given)
        self._saes: dict[tuple[str, str, str], list[Artifact]] = {}  # by host's weights, layer and settings

    def train_all(self, loggers: Mapping[str, Logger] | None = None) -> Iterator[tuple[str, list[Artifact]]]:
        """Each layer with its SAEs; with `stream`, all layers' are trained in one pass. `loggers`: as `train` takes."""
        own = loggers or {}
        if self.config.stream is not None and not self.given.saes:
            log = None if loggers is None else lambda layer, *numbers: own[layer](*numbers)
            self._stream(self.weights, [(self.config.sae, self.config.seeds)], log)
        for layer in self.caches:
            yield layer, self.train(layer, own.get(layer))

    def train(self, layer: str, logger: Logger | None = None) -> list[Artifact]:
        """The SAEs of a layer, one for each seed. `logger(place in seeds, step, numbers)`."""
        if self.given.saes:
            return [adopt_sae(sae, self.caches[layer].d_in, self.root) for sae in self.given.saes]
        return self._train(self.caches[layer], self.weights, self.config.sae, self.config.seeds, logger)

    @cached_property
    def bases(self) -> list[Basis]:
        """Units of every basis of every layer, the config's own and those that join the comparison."""
        found: list[Basis] = []
        for store in self.caches.values():
            for kind in self.config.bases:
                found += self._groups(kind, store) if KINDS[kind].of else self._bases_of(kind, store)
        if self.config.bases and not found:  # none: a run of the random host alone, as of its controls
            remedy = "lower groups.sds or groups.support, or add bases"
            raise UserError("bases", ", ".join(self.config.bases), "there are no groups", remedy)
        for text, given in self.variants.items():
            own = text.replace("sae.", "").replace("sae=", "")
            for store in self.caches.values():
                features = self._features(store, given)
                found += [replace(b, name=f"sae {own} seed {b.seed}", group=f"SAE features, {own}") for b in features]
        if self.config.random_host:
            for store in self.random_caches.values():
                found += [
                    replace(b, name=f"SAE on random host, seed {b.seed}", group=RANDOM_GROUP, control=True)
                    for b in self._features(store, self.config.sae, self.random_host.digest)
                ]
        return found

    @cached_property
    def named(self) -> Vocabulary:
        """The labels of the vocabulary's sources, before anything is proposed."""
        own = self.config.label
        return self.given.vocabulary or build_vocabulary(own.vocabulary, self.images, own.keep_underscores)

    def measure_saes(self, loss: bool = False, widest: int | None = None) -> list[tuple[Basis, Artifact]]:
        """The `quality` artifact of every SAE. `loss`: also what the host still recognises with the SAE in it.

        `widest`: latents above which seeds are not matched to each other, since that takes time by their cube.
        """
        own, found = self.config, [basis for basis in self.bases if basis.sae is not None]
        made = []
        with self.timings.of("quality"):
            for basis in found:
                same = [b.sae for b in found if (b.group, b.layer) == (basis.group, basis.layer) and b.sae is not None]
                narrow = widest is None or UnitActivations.load(basis.units.path).units <= widest
                others = [sae for sae in same if sae != basis.sae and narrow]
                inside = None
                if loss and self.weights != "arrays":
                    host = self.host if basis.weights == self.weights else self.random_host
                    inside = InHost(host, own.policy, own.batch_size, own.workers)
                assert basis.sae is not None
                units = basis.units if loss else None
                store = self.store(basis)
                made.append((basis, measure_sae(basis.sae, others, store, self.images, self.root, inside, units)))
        return made

    def store(self, basis: Basis) -> ActivationCache:
        """The cache that a basis was pooled from."""
        return (self.caches if basis.weights == self.weights else self.random_caches)[basis.layer]

    def tokens(self, basis: Basis) -> concepts.Tokens:
        """Where a basis' activations at single tokens come from. Raises UserError for units of no layer's tokens."""
        project = Projection.load(basis.units.path, basis.sae_path)
        return concepts.Tokens(self.store(basis), project)

    # ---- parts -------------------------------------------------------------------------------------------------

    def _train(
        self,
        store: ActivationCache,
        weights: str,
        given: dict[str, Any],
        seeds: Sequence[int],
        logger: Logger | None = None,
    ) -> list[Artifact]:
        key = _key(weights, store.layer, given, seeds)
        if key not in self._saes and self.config.stream is not None:
            wanted = self._wanted(weights)
            self._stream(weights, wanted if (given, seeds) in wanted else [*wanted, (given, seeds)])
        if key not in self._saes:
            with self.timings.of("sae"):
                self._saes[key] = train_saes(store, given, seeds, self.root, self.device, logger)
        return self._saes[key]

    def _wanted(self, weights: str) -> list[tuple[dict[str, Any], Sequence[int]]]:
        """The settings and seeds of all SAEs that the run needs on one host: what one pass of it can train."""
        own = self.config
        if weights != self.weights:
            return [(own.sae, own.seeds)]
        found = [(own.sae, own.seeds)] if "sae" in own.bases and not self.given.saes else []
        frozen = [KINDS[kind].frozen for kind in own.bases if KINDS[kind].frozen is not None]
        found += [(own.sae | {"frozen": how}, own.seeds[:1]) for how in frozen]
        return found + [(given, own.seeds) for given in self.variants.values()]

    def _stream(
        self, weights: str, wanted: list[tuple[dict[str, Any], Sequence[int]]], logger: LayerLogger | None = None
    ) -> None:
        """Train on streams what is wanted of the layers of one host."""
        assert self.config.stream is not None
        caches = self.caches if weights == self.weights else self.random_caches
        stores = {layer: store for layer, store in caches.items() if isinstance(store, UnstoredActivations)}
        with self.timings.of("sae"):
            own = self.config.stream
            found = stream_saes(stores, wanted, self.root, self.device, own.pictures, own.crop, logger)
            for (given, seeds), made in zip(wanted, found, strict=True):
                self._saes |= {_key(weights, layer, given, seeds): saes for layer, saes in made.items()}

    def _bases_of(self, kind: str, store: ActivationCache) -> list[Basis]:
        own = self.config
        if kind == "sae":
            return self._features(store, own.sae)
        frozen, group = KINDS[kind].frozen, KINDS[kind].group
        if frozen is not None:
            (basis,) = self._features(store, own.sae | {"frozen": frozen}, drawn=own.seeds[:1])
            return [replace(basis, name=kind.replace("_", " "), group=group, kind=kind, control=True)]
        if kind == "planted":
            return [plant_units(self.named, self.images, own.truth, store, self.weights, self.root)]
        if kind == "heads":
            count = self.host.heads(store.layer)
            with self.timings.of("units"):
                return [heads_basis(store, self.weights, self.root, own.pool, own.signed, count)]
        with self.timings.of("units"):
            return simple_bases(kind, store, self.weights, self.root, own.pool, own.signed, own.rotation_seeds)

    def _groups(self, kind: str, store: ActivationCache) -> list[Basis]:
        """Groups of a kind's units, of its first seed; none, with a note, where none fire together often enough."""
        own = self.config
        (of, *_) = (
            self._features(store, own.sae, drawn=own.seeds[:1])
            if KINDS[kind].of == "sae"
            else self._bases_of(KINDS[kind].of or "", store)
        )
        with self.timings.of("units"):
            made = group_basis(kind, of, store, self.images, self.root, own.groups)
        if made is None:
            what = f"no {KINDS[kind].group} are high together on {own.groups.support} pictures, beyond chance"
            text = f"{store.layer}: {what}."
            self.notes.append(text)
            log.warning("%s", text)
        return [] if made is None else [made]

    def _features(
        self,
        store: ActivationCache,
        given: dict[str, Any],
        weights: str | None = None,
        drawn: Sequence[int] | None = None,
    ) -> list[Basis]:
        """The features of SAEs of these settings, one basis for each seed (`drawn`; the config's by default)."""
        own, weights, drawn = self.config, weights or self.weights, drawn or self.config.seeds
        seeds: Sequence[int | None] = drawn
        if self.given.saes and given is own.sae and weights == self.weights:
            saes = self.train(store.layer)
            seeds = [None] if len(saes) == 1 else list(range(len(saes)))
        else:
            saes = self._train(store, weights, given, drawn)
        with self.timings.of("units"):
            return sae_bases(saes, seeds, store, weights, self.root, own.pool, self.device)

    def most_per_layer(self) -> int:
        """How many bases of a layer are compared at most, by the settings alone: it may turn out to have no groups."""
        own = self.config
        seeds = {"seeds": len(self.given.saes) or len(own.seeds), "rotation_seeds": len(own.rotation_seeds)}
        named = sum(seeds.get(KINDS[kind].seeds or "", 1) for kind in own.bases if KINDS[kind].of_tokens)
        return named + (len(own.also) + own.random_host) * len(own.seeds)


def _key(weights: str, layer: str, given: dict[str, Any], seeds: Sequence[int]) -> tuple[str, str, str]:
    return weights, layer, digest([given, list(seeds)])
