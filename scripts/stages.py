"""Each stage from its config. A script calls the stages up to its own; what is there already is reused by recipe.

The order is the way of the data (README): images -> caches -> saes -> bases -> exemplars -> proposals -> vocabulary ->
labels -> evaluations -> comparisons -> report. `Run` keeps what has been made, and the time it took.
"""

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from bases import GROUPS, Basis, of_kind
from command import device, plain, several
from omegaconf import DictConfig

from saelab import cache, encoders, evaluate, hosts, truth, units
from saelab import images as image_sources
from saelab.artifacts import Artifact, ensure
from saelab.cache import ActivationCache
from saelab.errors import UserError
from saelab.images import ImageSet
from saelab.label import concepts, pipeline, propose
from saelab.label.exemplars import MiningSettings, exemplars
from saelab.label.exemplars import check as check_mining
from saelab.label.final import final_scorer
from saelab.label.vocabulary import Vocabulary
from saelab.label.vocabulary import build as build_vocabulary


class Run:
    """The artifacts of one config, made as they are asked for."""

    def __init__(self, cfg: DictConfig) -> None:
        self.cfg, self.root = cfg, Path(cfg.root)
        if not str(cfg.name) or Path(str(cfg.name)).name != str(cfg.name):
            raise UserError(
                "name", cfg.name, "has to be the name of a file", "leave out slashes; root=PATH is the folder"
            )
        for name in ("layers", "bases", "seeds", "rotation_seeds"):
            cfg[name] = several(cfg[name])
        self.timings: dict[str, float] = {}
        self.notes: list[str] = []
        self.device = device(cfg.device)

    @contextmanager
    def timed(self, stage: str) -> Iterator[None]:
        """Add the block's wall time to `timings`; time of stages asked for inside is theirs alone."""
        inner, start = sum(self.timings.values()), time.perf_counter()
        yield
        spent = time.perf_counter() - start - (sum(self.timings.values()) - inner)
        self.timings[stage] = self.timings.get(stage, 0.0) + spent

    @cached_property
    def images(self) -> ImageSet:
        """The pictures."""
        with self.timed("images"):
            return image_sources.load(**plain(self.cfg.images))

    @cached_property
    def images_artifact(self) -> Artifact:
        """images.jsonl and images.json, for whoever reads the run later."""
        recipe = {
            "stage": "images",
            "code": 1,
            "images": self.images.fingerprint,
            "root": str(self.images.root.resolve()),
            "name": self.images.name,
            "skipped": self.images.skipped,
        }
        return ensure(self.root, "images", self.images.name, recipe, self.images.save)

    @cached_property
    def host(self) -> hosts.Host:
        """The model that is looked into."""
        settings = {k: v for k, v in plain(self.cfg.host).items() if k != "layers"}
        return hosts.load(**settings, device=self.device)

    @cached_property
    def caches(self) -> dict[str, ActivationCache]:
        """The cached activations of each layer."""
        images, host, cfg = self.images, self.host, self.cfg
        with self.timed("activations"):
            return cache.write(
                images,
                host,
                list(cfg.layers),
                self.root,
                cfg.policy,
                cfg.dtype,
                cfg.batch_size,
                cfg.workers,
                cfg.tokens_per_image,
            )

    def saes(self, layer: str, logger: Any = None) -> list[Artifact]:
        """One SAE for each seed, trained on the mine tokens in one pass; `logger` as saelab.sae.fit takes it."""
        from dictionaries import trained

        return trained(self, layer, logger)

    @property
    def kinds(self) -> list[str]:
        """The kinds of bases that are wanted. Raises UserError for one that does not exist."""
        kinds = list(self.cfg.bases)
        if not kinds:
            raise UserError("bases", "[]", "expected at least one", f"known: {', '.join(GROUPS)}")
        for kind in kinds:
            if kind not in GROUPS:
                raise UserError("bases", kind, "unknown", f"known: {', '.join(GROUPS)}")
        return kinds

    @cached_property
    def bases(self) -> list[Basis]:
        """Units of every basis of every layer."""
        found: list[Basis] = []
        for layer in self.caches:
            for kind in self.kinds:
                found += of_kind(self, kind, layer)
        return found

    @cached_property
    def encoder(self) -> encoders.Encoder:
        """The image-text encoder that labels."""
        return encoders.load(self.cfg.encoder.name, device=self.device)

    @cached_property
    def embeddings(self) -> encoders.ImageEmbeddings:
        """The pictures in the encoder's space."""
        images, encoder = self.images, self.encoder
        with self.timed("embeddings"):
            return encoders.image_embeddings(images, encoder, self.root, self.cfg.batch_size, self.cfg.workers)

    @cached_property
    def mining(self) -> MiningSettings:
        """How exemplars are mined."""
        return MiningSettings(**plain(self.cfg.label.mining))

    @cached_property
    def mined(self) -> list[Basis]:
        """Bases with their exemplars."""
        bases, embeddings = self.bases, self.embeddings
        with self.timed("mining"):
            return [
                replace(
                    b,
                    exemplars=exemplars(
                        b.units, self.images, embeddings, self.root, self.mining, self._host_vectors(b)
                    ),
                )
                for b in bases
            ]

    @cached_property
    def proposed(self) -> list[Basis]:
        """Bases with the candidates that the proposer named, if there is a proposer."""
        from proposing import propose_for_all, proposer_of

        proposer = proposer_of(self)
        if proposer is None:
            return self.mined
        mined = self.mined
        with self.timed("proposals"):
            places = propose_for_all(self, mined, proposer)
        if self.cfg.proposer.get("dry_run", False):
            sys.exit(0)  # what asking would take has been printed; nothing is to follow from it
        return [replace(basis, proposals=place) for basis, place in zip(mined, places)]

    @cached_property
    def named(self) -> Vocabulary:
        """The labels of the vocabulary's sources, before anything is proposed."""
        cfg = self.cfg.label
        return build_vocabulary(several(cfg.vocabulary), self.images, cfg.keep_underscores)

    @cached_property
    def vocabulary(self) -> Vocabulary:
        """One vocabulary for all bases: the sources' labels, and every candidate of every basis."""
        pooled = self.named
        for basis in self.proposed:
            rows = propose.read(basis.proposals) if basis.proposals is not None else []
            if rows:
                labels = (label for row in rows for label in row.labels)
                pooled = pooled.plus(labels, rows[0].proposer, self.cfg.label.keep_underscores)
        return pooled

    @cached_property
    def label_settings(self) -> pipeline.LabelSettings:
        """How labels are assigned."""
        cfg = plain(self.cfg.label)
        templates = cfg.get("templates") or plain(self.cfg.encoder).get("templates")
        scorers = tuple(self.cfg.get("scorer") or ())
        final = final_scorer(cfg["final"], scorers, len(self.images.ids("mine")))
        self.cfg.label.final = final  # what is recorded of the run says which one it was
        names = ("renormalize", "nulls", "abstain_below", "seed", "runners_up", "meanings")
        more = {name: cfg[name] for name in names}
        return pipeline.LabelSettings(scorers, final, tuple(templates) if templates else None, **more)

    def check(self, settings: pipeline.LabelSettings) -> None:
        """Raise UserError for what can be known to be wrong before the long work begins."""
        pipeline.check(settings)
        if self.cfg.truth not in truth.RULES:
            raise UserError("truth", self.cfg.truth, "unknown rule", f"known: {', '.join(truth.RULES)}")
        _ = self.kinds, self.named
        check_mining(self.images, self.mining)

    @cached_property
    def labelled(self) -> list[Basis]:
        """Bases with their labels."""
        settings = self.label_settings
        self.check(settings)
        proposed, words, embeddings = self.proposed, self.vocabulary, self.embeddings
        with self.timed("labels"):
            return [self._label(basis, words, embeddings, settings) for basis in proposed]

    def _label(
        self,
        basis: Basis,
        words: Vocabulary,
        embeddings: encoders.ImageEmbeddings,
        settings: pipeline.LabelSettings,
    ) -> Basis:
        assert basis.exemplars is not None
        made = pipeline.labels(
            basis.units,
            basis.exemplars,
            self.images,
            embeddings,
            self.encoder,
            words,
            self.root,
            settings,
            self.mining,
            basis.proposals,
            self._tokens(basis) if {"netdissect", "decoder_direction"} & set(settings.scorers) else None,
            self._host_vectors(basis),
        )
        return replace(basis, labels=made)

    def _host_vectors(self, basis: Basis) -> torch.Tensor | None:
        """The layer's mean tokens, in which the mining rule `host` looks for contrasts."""
        return torch.from_numpy(self.caches[basis.layer].pooled("mean")) if self.mining.rule == "host" else None

    def _tokens(self, basis: Basis) -> concepts.Tokens:
        project = units.Projection.load(basis.units.path, None if basis.sae is None else basis.sae.path)
        return concepts.Tokens(self.caches[basis.layer], project)

    @cached_property
    def evidence(self) -> evaluate.Judges:
        """What labels are measured against."""
        from judging import evidence

        return evidence(self)

    @cached_property
    def evaluated(self) -> list[Basis]:
        """Bases with the numbers of their labels on the test split."""
        self.check(self.label_settings)
        splits = evaluate.Splits(self.images.ids("mine"), self.images.ids("test")).checked()  # before the long work
        labelled = self.labelled
        if not any(self.images.captions):
            self.notes.append("The pictures have no captions: caption_r and caption_clarity can't be had.")
        with self.timed("evaluation"):
            return [replace(basis, evaluation=self._evaluate(basis, splits)) for basis in labelled]

    def _evaluate(self, basis: Basis, splits: evaluate.Splits) -> Artifact:
        assert basis.labels is not None
        recipe = {"stage": "evaluation", "code": 5, "labels": basis.labels.digest, "images": self.images.fingerprint}
        recipe |= {"truth": self.cfg.truth, "judge": self.encoder.recipe, "k": self.mining.k}

        def build(folder: Path) -> None:
            assert basis.labels is not None
            acts, rows = units.UnitActivations.load(basis.units.path), pipeline.read(basis.labels.path)
            found, summary = evaluate.evaluate(acts, rows, self.evidence, splits, self.mining.k)
            if any("netdissect" in row["scores"] for row in rows):
                chosen = [row["scores"].get("netdissect", {}).get("label") for row in rows]
                iou = concepts.held_out_iou(chosen, self._tokens(basis), self.images, splits.mine, splits.test)
                evaluate.add_pixels(found, summary, iou)
            evaluate.write(folder, found, summary)

        return ensure(self.root, "evaluation", basis.name, recipe, build)

    @cached_property
    def comparisons(self) -> dict[str, Artifact]:
        """One comparison for each layer, corrected together."""
        from comparing import compare_bases

        if self.per_layer() < 2:  # said here, before the long work
            raise UserError("bases", list(self.cfg.bases), "at least two are needed", "for example bases=[neuron,sae]")
        evaluated = self.evaluated
        with self.timed("comparison"):
            return compare_bases(self, evaluated)

    def per_layer(self) -> int:
        """How many bases a layer is to have."""
        several_of = {"sae": len(self.cfg.seeds), "random_rotation": len(self.cfg.rotation_seeds)}
        return sum(several_of.get(kind, 1) for kind in self.kinds)

    def counts(self, basis: Basis) -> dict[str, int]:
        """Units per status, and how many labels abstain."""
        assert basis.labels is not None
        return pipeline.counts(pipeline.read(basis.labels.path))
