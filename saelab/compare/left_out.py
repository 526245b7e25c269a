"""Every unit's value on all images, and again with each part of the images left out (a delete-a-group jackknife).

The sums over what is left are the sums over everything less those over the part, so all parts together cost a few
passes over the matrix, however many they are.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from saelab.compare.sides import Groups, Side, clusters_of, pairs_of_blocks

FLAT = 1e-10  # share of a column's variance below which what is left of it is constant


@dataclass(frozen=True)
class Parts:
    """Images in parts, of which one at a time is left out; no group of images is split."""

    of: Int[Tensor, "images"]  # part of each image
    sizes: Float[Tensor, "parts"]  # images in each
    groups: int  # groups of images there are

    @classmethod
    def deal(cls, groups: Groups, most: int, seed: int) -> "Parts":
        """A part for each group; where there are more than `most`, so many parts of whole groups dealt at random."""
        count = int(groups.max()) + 1
        order = np.arange(count)
        if count > most:
            order = np.random.default_rng(seed).permutation(count) % most
        of = torch.from_numpy(order[groups])
        return cls(of, torch.bincount(of).double(), count)

    def __len__(self) -> int:
        return len(self.sizes)

    def sums(self, rows: Float[Tensor, "images some"]) -> Float[Tensor, "parts some"]:
        """Sums of the rows over the images of each part."""
        return rows.new_zeros(len(self), rows.shape[1]).index_add_(0, self.of, rows)


@dataclass(frozen=True)
class Measured:
    """A side's units, seeds one after the other, those with NaN left out."""

    values: Float[np.ndarray, "units"]  # above chance
    raw: Float[np.ndarray, "units"]
    left_out: Float[np.ndarray, "parts units"]  # `values` without each part
    cluster: Int[np.ndarray, "units"]
    seed: Int[np.ndarray, "units"]
    unit: Int[np.ndarray, "units"]  # place among the units of its seed
    seeds: int
    dropped: int  # units left out for NaN
    unscaled: int = 0  # units whose own label is the reference itself: nothing can be above chance

    @property
    def kept(self) -> tuple[int, ...]:
        """Units in each seed."""
        return tuple(np.bincount(self.seed, minlength=self.seeds).tolist())

    def only(self, keep: Bool[np.ndarray, "units"]) -> "Measured":
        """Some of the units."""
        kept = {name: getattr(self, name)[keep] for name in ("values", "raw", "seed", "unit")}
        cluster = np.unique(self.cluster[keep], return_inverse=True)[1]
        return replace(self, **kept, left_out=self.left_out[:, keep], cluster=cluster)

    def zero(self, where: Bool[np.ndarray, "units"]) -> "Measured":
        """Itself with 0 for some units."""
        values, raw, left_out = (np.where(where, 0.0, x) for x in (self.values, self.raw, self.left_out))
        return replace(self, values=values, raw=raw, left_out=left_out)


def measure(side: Side, parts: Parts, metric: str, reference: Float[Tensor, "images"] | None) -> Measured:
    """Values of one side: `pearson` or `auprc`, above the reference (None: raw)."""
    nothing = torch.zeros(0, dtype=torch.float64)  # of a seed whose units are all left out
    found: list[tuple[Tensor, Tensor, Tensor]] = [(nothing, nothing, nothing.new_zeros(len(parts.sizes), 0))]
    kept: list[Bool[np.ndarray, units]] = []
    for acts, target in zip(side.acts, side.target):
        there_of = []
        for _, a, t, there in pairs_of_blocks(acts, target):
            there_of.append(there)
            if metric == "pearson":
                found.append(_correlations(a[:, there], t[:, there], parts, reference))
            else:
                found.append(_precisions(a[:, there], t[:, there], parts, reference is not None))
        kept.append(torch.cat(there_of).numpy() if there_of else np.zeros(0, dtype=bool))
    values, raw, left_out = (torch.cat(columns, dim=-1) for columns in zip(*found))
    lost = ~torch.isfinite(values)
    cluster, seed = clusters_of(side, kept)
    return Measured(
        values.masked_fill(lost, 0.0).numpy(),
        raw.numpy(),
        left_out.masked_fill(lost, 0.0).nan_to_num(0.0, 0.0, 0.0).numpy(),
        cluster,
        seed,
        np.concatenate([np.flatnonzero(keep) for keep in kept]),
        len(kept),
        sum(int((~keep).sum()) for keep in kept),
        int(lost.sum()),
    )


def _correlations(
    a: Float[Tensor, "images some"], t: Float[Tensor, "images some"], parts: Parts, reference: Tensor | None
) -> tuple[Tensor, Tensor, Tensor]:
    """Pearson's r above the reference, raw, and above it without each part; 0 where a column is constant.

    Above a reference column c, the mean of many labels' columns: (r - <z_a, c>) / (1 - <z_t, c>), z of length 1. What
    the unit would reach with a label drawn from the reference is its chance; its own label would reach 1.
    """
    c = None if reference is None else (reference - reference.mean())[:, None].double()
    rows = [a, t, a * a, t * t, a * t] + ([] if c is None else [a * c, t * c, c])
    taken = [parts.sums(x) for x in rows]
    everything = [x.sum(0, keepdim=True) for x in taken]
    whole, raw = _above(everything, everything, float(len(a)), len(a))
    left = [x - y for x, y in zip(everything, taken)]
    without, _ = _above(left, everything, (len(a) - parts.sizes)[:, None], len(a))
    return whole[0], raw[0], without


def _above(
    sums: Sequence[Tensor], everything: Sequence[Tensor], n: Tensor | float, images: int
) -> tuple[Tensor, Tensor]:
    """The correlation above the reference, and raw, from the sums over n images."""
    of_a, of_t, aa, tt, at, *with_c = sums
    var_a, var_t = aa - of_a**2 / n, tt - of_t**2 / n
    flat_a, flat_t = var_a <= FLAT * everything[2], var_t <= FLAT * everything[3]
    length_a, length_t = var_a.masked_fill(flat_a, 1.0).sqrt(), var_t.masked_fill(flat_t, 1.0).sqrt()
    r = ((at - of_a * of_t / n) / (length_a * length_t)).masked_fill(flat_a | flat_t, 0.0)
    if not with_c:
        return r, r
    ac, tc, of_c = with_c
    share = (n / images) ** 0.5  # the reference's columns have length 1 on all images
    chance = ((ac - of_a * of_c / n) / (length_a * share)).masked_fill(flat_a, 0.0)
    own = ((tc - of_t * of_c / n) / (length_t * share)).masked_fill(flat_t, 0.0)
    return torch.where(own < 1 - 1e-6, (r - chance) / (1 - own), torch.nan), r


def _precisions(
    a: Float[Tensor, "images some"], t: Float[Tensor, "images some"], parts: Parts, above: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """Average precision (equal activations as one threshold) likewise; chance is the label's frequency.

    Without a part: the exact changes that leaving out each of its images makes, summed. A label true of no image, or
    of all, counts 0 above chance.
    """
    true = t > 0  # centred: true is above the mean
    images = torch.full((1, a.shape[1]), float(len(a)), dtype=torch.float64)
    positives = true.sum(0, keepdim=True).double()
    whole, changes = _left_one_out(a, true)
    total, fewer = parts.sums(changes), positives - parts.sums(true.double())
    some = (fewer > 0) & (positives > 0)
    without = torch.where(some, whole + total, 0.0).clamp(0, 1)
    raw = torch.where(positives > 0, whole, 0.0)
    if not above:
        return raw[0], raw[0], without
    share, rest = positives / images, fewer / (images - parts.sizes[:, None])
    return (
        torch.where((share > 0) & (share < 1), (raw - share) / (1 - share), 0.0)[0],
        raw[0],
        torch.where(some & (rest < 1), (without - rest) / (1 - rest), 0.0),
    )


def _left_one_out(
    a: Float[Tensor, "images some"], true: Bool[Tensor, "images some"]
) -> tuple[Float[Tensor, "1 some"], Float[Tensor, "images some"]]:
    """Average precision of each column, and by how much it changes when each image is left out."""
    images = len(a)
    order = torch.argsort(-a, dim=0, stable=True)
    value, hit = a.gather(0, order), true.gather(0, order)
    ends = torch.ones_like(hit)
    ends[:-1] = value[1:] != value[:-1]
    at = torch.arange(images)[:, None].expand_as(value)
    last = torch.where(ends, at, images).flip(0).cummin(0).values.flip(0)  # of the run of equal activations
    first = torch.where(ends.roll(1, 0) | (at == 0), at, 0).cummax(0).values
    called = last.double() + 1
    right = hit.double().cumsum(0).gather(0, last)  # true images down to the end of the run
    fewer = (called - 1).clamp(min=1)
    gain = [torch.where(hit, x, 0.0) for x in (right / called, right / fewer, (right - 1) / fewer)]
    zero = value.new_zeros(1, value.shape[1])
    until = [torch.cat([zero, x.cumsum(0)]) for x in gain]  # sums over the images before a place
    before = until[0].gather(0, first)
    after = [u[-1:] - u.gather(0, first) for u in until]
    p = hit.sum(0, keepdim=True).double()
    whole = until[0][-1:] / p.clamp(min=1)
    without_false = (before + after[1]) / p.clamp(min=1)
    without_true = (before + after[2] - (right - 1) / fewer) / (p - 1).clamp(min=1)
    changed = torch.where(hit, torch.where(p > 1, without_true, whole), without_false) - whole
    return whole, torch.zeros_like(changed).scatter_(0, order, changed)


def seeds_of(measured: Measured) -> Sequence[np.ndarray]:
    """Places of each seed's units."""
    return [np.flatnonzero(measured.seed == s) for s in range(len(measured.kept))]
