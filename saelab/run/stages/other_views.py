"""The bases of a layer looked at another way, from the cached tokens: pooled otherwise, behind another gate.

Labels of a view are chosen anew on the mined images by the run's own scorer, over the same vocabulary.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from jaxtyping import Float, Int
from torch import Tensor

from saelab import compare
from saelab.acts import columns, take_rows
from saelab.cache import ActivationCache
from saelab.label.assign import SCORERS, Evidence, rankings
from saelab.label.concepts import Tokens
from saelab.label.mine import ContrastRule
from saelab.run.basis import Basis
from saelab.units import UnitActivations, pool_cache

OTHER = {"max": "mean", "mean": "max", "top_mean": "max"}  # the pooling that a run is held against
LARGEST = 1 << 27  # activations of a view that are held at once; a basis of more is left out


@dataclass(frozen=True)
class Labeller:
    """How the run names units: its final scorer over its vocabulary, from the mined images."""

    scorer: str
    labels: Sequence[str]
    label_emb: Float[Tensor, "labels d_text"]
    image_emb: Float[Tensor, "images d_text"]  # of the whole set
    mine: Int[Tensor, "mined"]
    k: int
    rule: ContrastRule
    groups: Int[Tensor, "images"]

    @property
    def able(self) -> bool:
        """Whether the scorer names units by activations and similarities alone."""
        return SCORERS[self.scorer].needs in ("positives", "pairs", "images") and self.rule.rule != "host"

    def name(self, acts: Tensor) -> list[str | None]:
        """The best label of every unit; None for one that has no score."""
        some = take_rows(columns(acts), self.mine)
        more = (self.k, self.rule, self.groups[self.mine])
        seen = Evidence.mined(some, self.image_emb[self.mine], self.label_emb, *more)
        best = rankings([self.scorer], seen, runners=1)[self.scorer].label.tolist()
        return [self.labels[i] if i >= 0 else None for i in best]


def views_of(
    bases: Sequence[Basis],
    sides: Mapping[str, compare.ComparedBasis],
    tokens: Callable[[Basis], Tokens],
    labeller: Labeller,
    test: Int[Tensor, "images"],
) -> compare.Views:
    """Views of the evaluated bases of one layer; `sides`: the same, by name, as they are compared.

    Pooled otherwise: real bases, where images have several tokens. Cut to the median firing rate of each group of SAE
    features: neurons and random directions. Before their gate: SAE features. None for a scorer that looks at more than
    activations (`Labeller.able`).
    """
    if not labeller.able:
        return compare.Views()

    def seen(basis: Basis, acts: Tensor) -> compare.ComparedBasis:
        rows = [
            row | {"named": row["named"] | {"label": label}}
            for row, label in zip(sides[basis.name].rows, labeller.name(acts), strict=True)
        ]
        tested = take_rows(columns(acts), test)  # the other images' activations are let go
        return replace(sides[basis.name], rows=rows, acts=lambda: tested, _known={})

    own = {basis.name: UnitActivations.load(basis.units.path) for basis in bases}
    fits = [basis for basis in bases if own[basis.name].units * len(labeller.image_emb) <= LARGEST]
    pool = next(iter(own.values())).info["pool"]
    features = [basis for basis in fits if basis.kind == "sae" and not basis.control]
    rates = _median_rates([sides[basis.name] for basis in features])
    dense, otherwise = [], []
    cut: dict[str, list[compare.ComparedBasis]] = {group: [] for group in rates}
    for basis in fits:
        if basis in features:
            project = replace(tokens(basis).project, gated=False)
            dense.append(seen(basis, pool_cache(tokens(basis).cache, project, pool)))
        for group, rate in rates.items() if basis.kind in ("neuron", "random_rotation") else ():
            cut[group].append(seen(basis, compare.cut_to_rate(own[basis.name].acts, labeller.mine, rate)))
        if not basis.control and pool in OTHER and several(tokens(basis).cache):
            otherwise.append(seen(basis, pool_cache(tokens(basis).cache, tokens(basis).project, OTHER[pool])))
    cuts = [compare.Cut(group, rate, cut[group]) for group, rate in rates.items()]
    return compare.Views(OTHER.get(pool), otherwise, cuts, dense)


def several(cache: ActivationCache) -> bool:
    """Whether images have several tokens, so that pooling matters."""
    return cache.n_tokens > cache.n_images


def _median_rates(features: Sequence[compare.ComparedBasis]) -> dict[str, float]:
    """By group, the median firing rate, on the mined images, of units that fire and don't fire everywhere."""
    found: dict[str, float] = {}
    for group in dict.fromkeys(basis.group for basis in features):
        rows = [row for basis in features if basis.group == group for row in basis.rows]
        rates = torch.tensor([row["firing_rate"] or 0.0 for row in rows], dtype=torch.float64)
        some = rates[(rates > 0) & (rates < 1)]
        found |= {group: float(some.median())} if len(some) else {}
    return found
