"""Groups of units that fire together: FALCON's finding is that groups can be named where single units can't.

Kalibhat et al., "Identifying interpretable subspaces in image representations" (ICML 2023). A unit is *high* on a
picture where its activation, in the picture's vector scaled to length 1, is above the mean of the whole matrix by 5
standard deviations. FALCON takes all units that are high on a picture as one candidate (`falcon_groups`); here every
set of units that are high together on enough pictures is one (`find_groups`), so that a group need not be all of it.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from saelab.errors import UserError
from saelab.units.activations import to_scipy

FILE = "groups.safetensors"
MOST = 20_000  # groups; more say that units are high together without saying anything


@dataclass(frozen=True)
class GroupSettings:
    """What counts as a group."""

    support: int = 10  # pictures on which all its units are high, at least; near-duplicates count once
    largest: int = 5  # units of a group, at most
    sds: float = 5.0  # standard deviations above the mean from which a unit is high
    permutations: int = 20  # of each unit over the pictures: what chance puts together; 0: not asked
    seed: int = 0  # of the permutations

    def __post_init__(self) -> None:
        """Raise UserError for values that make no groups."""
        for name, least in (("support", 2), ("largest", 2), ("permutations", 0), ("seed", 0)):
            if getattr(self, name) < least:
                raise UserError(f"groups.{name}", getattr(self, name), f"expected a whole number of at least {least}")
        if not self.sds > 0:
            raise UserError("groups.sds", self.sds, "expected a number above 0", "FALCON takes 5")


@dataclass(frozen=True)
class Groups:
    """What `find_groups` finds."""

    members: tuple[tuple[int, ...], ...]  # unit numbers of each group, ascending
    support: tuple[int, ...]  # pictures on which all of them are high
    bound: float  # excess of a pair that chance reaches in 5 % of permutations (`pair_excess`)


@dataclass(frozen=True)
class Grouping:
    """Groups of a basis' units, and how their members are put on one scale."""

    members: tuple[tuple[int, ...], ...]  # unit numbers of each group
    mean: Float[Tensor, "units"]  # of each unit's pooled activations on the `mine` pictures
    spread: Float[Tensor, "units"]  # their standard deviation; 1 where they don't vary

    @classmethod
    def fit(cls, members: Sequence[Sequence[int]], acts: Tensor) -> "Grouping":
        """acts: the units' activations [images, units] on the `mine` pictures, dense or CSR."""
        mean, spread = np.zeros(acts.shape[1]), np.ones(acts.shape[1])
        used = sorted({unit for own in members for unit in own})
        values = columns_of(acts, used).double().numpy()
        mean[used], spread[used] = values.mean(0), values.std(0)
        spread[spread == 0] = 1
        return cls(tuple(map(tuple, members)), torch.from_numpy(mean).float(), torch.from_numpy(spread).float())

    def least_of(self, acts: Tensor) -> Float[Tensor, "images groups"]:
        """The least of the members' pooled activations, in standard deviations above their means; 0 where below.

        A group fires where all its members do.
        """
        return torch.stack([self._scaled(acts, own).amin(1) for own in self.members], dim=1).relu()

    def mean_of(self, tokens: Float[Tensor, "tokens units"]) -> Float[Tensor, "tokens groups"]:
        """The mean of the members' activations at single tokens, scaled alike; 0 where below their means."""
        return torch.stack([self._scaled(tokens, own).mean(1) for own in self.members], dim=1).relu()

    def save(self, folder: Path) -> None:
        """Write `groups.safetensors`."""
        from safetensors.torch import save_file

        largest = max(map(len, self.members))
        padded = torch.tensor([[*own, *[-1] * (largest - len(own))] for own in self.members])
        save_file({"members": padded, "mean": self.mean, "spread": self.spread}, str(folder / FILE))

    @classmethod
    def load(cls, folder: Path) -> "Grouping":
        """Read what `save` wrote."""
        from safetensors.torch import load_file

        found = load_file(str(folder / FILE))
        members = tuple(tuple(unit for unit in own if unit >= 0) for own in found["members"].tolist())
        return cls(members, found["mean"], found["spread"])

    def _scaled(self, acts: Tensor, own: Sequence[int]) -> Float[Tensor, "rows members"]:
        return (columns_of(acts, own) - self.mean[list(own)]) / self.spread[list(own)]


def columns_of(acts: Tensor, units: Sequence[int]) -> Float[Tensor, "images chosen"]:
    """Some units' activations, dense."""
    if acts.is_sparse_csr:
        return torch.from_numpy(np.asarray(to_scipy(acts)[:, list(units)].todense()))
    return acts[:, list(units)]


def high_units(acts: Tensor, sds: float = 5.0) -> Any:
    """Where units are high: scipy's csr_array of bool [images, units].

    acts: [images, units], dense or CSR, finite, >= 0. Rows are scaled to length 1; high is above mean + `sds` standard
    deviations of all entries of the scaled matrix, zeros included. Source: FALCON's code.
    """
    from scipy.sparse import csr_array

    found = csr_array(to_scipy(acts) if acts.is_sparse_csr else acts.numpy()).astype(np.float64)
    length = np.sqrt((found.multiply(found)).sum(axis=1))
    scaled = csr_array(found.multiply(1 / np.where(length > 0, length, 1)[:, None]))
    count = scaled.shape[0] * scaled.shape[1]
    mean = scaled.data.sum() / count
    spread = np.sqrt(max(0.0, (scaled.data**2).sum() / count - mean**2))
    scaled.data = scaled.data > mean + sds * spread
    scaled.eliminate_zeros()
    return scaled.astype(bool)


def falcon_groups(
    acts: Tensor, image_emb: Float[Tensor, "images d_text"], support: int = 10, cosine: float = 0.8, sds: float = 5.0
) -> list[tuple[int, ...]]:
    """FALCON's own groups: the high units of a picture, where more than `support` pictures have them all high.

    The mean cosine of the embeddings of each two of these pictures is above `cosine`. In the order of their first
    picture. The authors embed the parts of the pictures that fire the group; give such embeddings to do as they do.
    """
    high = high_units(acts, sds)
    emb = image_emb.double().numpy()
    emb = emb / np.linalg.norm(emb, axis=1, keepdims=True).clip(1e-12)
    sets = (tuple(high.indices[a:b].tolist()) for a, b in zip(high.indptr[:-1], high.indptr[1:], strict=True))
    found = []
    for units in dict.fromkeys(tuple(sorted(own)) for own in sets if own):
        pictures = np.flatnonzero(high[:, list(units)].sum(axis=1) == len(units))
        if len(pictures) > support:
            own = emb[pictures]
            pairs = len(own) * (len(own) - 1)
            if (own.sum(0) @ own.sum(0) - (own * own).sum()) / pairs > cosine:
                found.append(units)
    return found


def find_groups(high: Any, settings: GroupSettings, alike: Int[np.ndarray, "images"] | None = None) -> Groups:
    """Sets of 2 to `largest` units that are high together on at least `support` pictures and beyond chance.

    high: csr_array of bool [images, units]. alike: a number a picture, equal for near-duplicates, which count as one.
    Chance: each unit's high pictures are drawn anew, `permutations` times; every two units of a group exceed what they
    would share by chance by more than the largest excess of any pair in all but 5 % of these (`pair_excess`). Of groups
    on the same pictures only the largest is kept. Largest support first. Raises UserError for more than 20,000.
    """
    if alike is not None:
        high = _merge(high, alike)
    pairs, excess = pair_excess(high, settings.support)
    bound = _bound(high, settings)
    fits: dict[int, list[int]] = {}
    for one, other in pairs[:, excess > bound].T.tolist():
        fits.setdefault(one, []).append(other)
    found = _grow(fits, _columns(high, fits), settings)
    kept = _closed(found)
    order = sorted(kept, key=lambda own: (-len(kept[own]), own))
    return Groups(tuple(order), tuple(len(kept[own]) for own in order), bound)


def pair_excess(high: Any, support: int) -> tuple[Int[np.ndarray, "2 pairs"], Float[np.ndarray, "pairs"]]:
    """Each two units that are high together on `support` pictures, and how far above chance, in standard deviations.

    By chance n p q of n pictures, with variance n p q (1 - p)(1 - q) (hypergeometric, n for n - 1). First the lower
    unit of each pair.
    """
    counts = high.astype(np.int64)
    together = (counts.T @ counts).tocoo()
    kept = (together.data >= support) & (together.row < together.col)
    pairs, shared = np.stack([together.row[kept], together.col[kept]]), together.data[kept]
    n, p = high.shape[0], np.asarray(counts.sum(axis=0)).ravel() / max(1, high.shape[0])
    one, other = p[pairs[0]], p[pairs[1]]
    variance = n * one * other * (1 - one) * (1 - other)
    return pairs, (shared - n * one * other) / np.sqrt(np.where(variance > 0, variance, np.inf))


def _merge(high: Any, alike: Int[np.ndarray, "images"]) -> Any:
    """One row for each set of near-duplicates: high where it is high on any of them."""
    from scipy.sparse import csr_array

    _, of = np.unique(alike, return_inverse=True)
    ones = csr_array((np.ones(len(of), np.int64), (of, np.arange(len(of)))))
    merged = (ones @ high.astype(np.int64)).tocsr()
    merged.data = merged.data > 0
    return merged.astype(bool)


def _bound(high: Any, settings: GroupSettings) -> float:
    """The excess that the best pair of permuted units reaches in 5 % of permutations, 0 where none shares enough."""
    from scipy.sparse import csc_array

    rng, best = np.random.default_rng(settings.seed), [0.0]
    columns = csc_array(high)
    counts = np.diff(columns.indptr)
    for _ in range(settings.permutations):
        rows = [rng.choice(high.shape[0], size=count, replace=False) for count in counts]
        indices = np.concatenate(rows) if rows else np.zeros(0, np.int64)
        drawn = csc_array((np.ones(len(indices), bool), indices, columns.indptr), shape=high.shape)
        best.append(max(0.0, float(pair_excess(drawn, settings.support)[1].max(initial=0.0))))
    return float(np.quantile(best[1:] or best, 0.95, method="higher"))


def _columns(high: Any, fits: dict[int, list[int]]) -> dict[int, frozenset[int]]:
    """The pictures on which each unit of a pair is high."""
    from scipy.sparse import csc_array

    own, wanted = csc_array(high), {unit for one, others in fits.items() for unit in (one, *others)}
    return {unit: frozenset(own.indices[own.indptr[unit] : own.indptr[unit + 1]].tolist()) for unit in wanted}


def _grow(
    fits: dict[int, list[int]], pictures: dict[int, frozenset[int]], settings: GroupSettings
) -> dict[tuple[int, ...], frozenset[int]]:
    """Every set of units each two of which fit and which share enough pictures, with these (Eclat: depth first)."""
    found: dict[tuple[int, ...], frozenset[int]] = {}

    def extend(units: tuple[int, ...], shared: frozenset[int], others: list[int]) -> None:
        for place, unit in enumerate(others):
            both = shared & pictures[unit] if units else pictures[unit]
            if len(both) < settings.support:
                continue
            own = (*units, unit)
            if len(own) > 1:
                found[own] = both
                if len(found) > MOST:
                    raise UserError("groups.support", settings.support, f"more than {MOST} groups", "raise it")
            if len(own) < settings.largest:
                near = set(fits.get(unit, ()))
                extend(own, both, [other for other in others[place + 1 :] if other in near])

    extend((), frozenset(), sorted(pictures))
    return found


def _closed(found: dict[tuple[int, ...], frozenset[int]]) -> dict[tuple[int, ...], frozenset[int]]:
    """Without sets that a larger one with the same pictures holds."""
    kept: dict[tuple[int, ...], frozenset[int]] = {}
    by_pictures: dict[frozenset[int], list[tuple[int, ...]]] = {}
    for own in sorted(found, key=len, reverse=True):
        rivals = by_pictures.setdefault(found[own], [])
        if not any(set(own) < set(rival) for rival in rivals):
            rivals.append(own)
            kept[own] = found[own]
    return kept
