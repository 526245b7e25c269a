"""Bootstrap numbers of sparse units: what is asked of a resample is a sum over the images that a unit stores.

All other images of a unit are silent and enter as one: by how often the resample drew any image, any image with the
label, and the label's own sums, which all of its units share. Each number equals what the dense columns give
(`saelab.evaluate.intervals`).
"""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import torch
from jaxtyping import Bool, Float, Int, UInt8
from torch import Tensor

from saelab.acts import Acts, Columns, firing_threshold
from saelab.evaluate.similar import Spread, spread_of
from saelab.metrics.faithfulness import FLAT, centred_length

ELEMENTS = 1 << 22  # numbers held at once
Draws = UInt8[np.ndarray, "resamples images"]
PerUnit = Float[np.ndarray, "resamples units"]


def halves(acts: Acts) -> tuple[Int[Tensor, "few"], Int[Tensor, "many"]]:
    """Units that store at most half of the images, and the others, for which there is nothing to save.

    Sums of squares about the mean are safe for the former: at most half of them is the mean's.
    """
    if not isinstance(acts, Columns):
        return torch.arange(0), torch.arange(acts.shape[1])
    few = acts.counts * 2 <= acts.images
    return few.nonzero()[:, 0], (~few).nonzero()[:, 0]


class Sums:
    """Weighted sums over images in every resample."""

    def __init__(self, drawn: Draws) -> None:
        self.by_image = np.ascontiguousarray(drawn.T)  # [images, resamples]: an image's counts lie together
        self.images, self.resamples = self.by_image.shape
        self.n = drawn.sum(axis=1, dtype=np.int64)

    def over_entries(self, acts: Columns, entries: Float[Tensor, "entries"]) -> PerUnit:
        """Of a number at each stored entry, unit by unit."""
        from scipy.sparse import csr_array

        parts = (entries.double().numpy(), acts.rows.numpy(), acts.starts.numpy())
        matrix = csr_array(parts, shape=(acts.units, self.images))
        made = np.empty((self.resamples, acts.units))
        for some in self.slices(self.images):
            made[some] = (matrix @ self.by_image[:, some].astype(np.float64)).T
        return made

    def over_columns(self, blocks: Iterable[Float[Tensor, "images some"]]) -> PerUnit:
        """Of whole columns, which come in blocks."""
        found = []
        for block in blocks:
            columns, made = block.double().numpy(), np.empty((self.resamples, block.shape[1]))
            for some in self.slices(self.images):
                made[some] = self.by_image[:, some].T.astype(np.float64) @ columns
            found.append(made)
        return np.concatenate(found, axis=1)

    def slices(self, rows: int) -> list[slice]:
        """Runs of resamples, as many as a matrix of so many rows may have columns."""
        step = max(1, ELEMENTS // max(rows, 1))
        return [slice(first, first + step) for first in range(0, self.resamples, step)]


@dataclass(frozen=True)
class Labels:
    """Columns of labels over all images: at the entries of units only what these ask for, else sums by resample."""

    spread: Spread
    sums: PerUnit  # [resamples, labels]: of the centred columns of unit length
    squares: PerUnit  # [resamples, labels]: of their squares

    @classmethod
    def of(cls, columns: Callable[[], Iterator[Float[Tensor, "images some"]]], sums: Sums) -> "Labels":
        """From a function that gives the columns, some at a time, each time it is called."""
        spread = spread_of(columns())
        return cls(spread, *(sums.over_columns(_scaled(columns(), spread, power)) for power in (1, 2)))

    def scale(self, other: Float[Tensor, "entries"], label: Int[Tensor, "entries"]) -> Float[Tensor, "entries"]:
        """Entries of the labels' columns as those of the centred columns of unit length."""
        return (other - self.spread.mean[label]) / self.spread.length[label].clamp(min=1e-30)


def _scaled(columns: Iterator[Tensor], spread: Spread, power: int) -> Iterator[Tensor]:
    first = 0
    for block in columns:
        some = slice(first, first + block.shape[1])
        yield ((block - spread.mean[some]) / spread.length[some].clamp(min=1e-30)).pow(power)
        first = some.stop


def correlations(
    acts: Columns, other: Float[Tensor, "entries"], label: Int[Tensor, "units"], labels: Labels, sums: Sums
) -> PerUnit:
    """`intervals.correlations` of sparse units and their labels' columns; NaN where one is constant in a resample.

    `other`: what the column of a unit's label holds at its stored entries.
    """
    owner, length = acts.unit_of_entry, centred_length(acts)[0].clamp(min=1e-30)
    values, other = acts.values.double() / length[owner], labels.scale(other, label[owner])
    a, aa, ab = (sums.over_entries(acts, x) for x in (values, values * values, values * other))
    b, bb, n = labels.sums[:, label.numpy()], labels.squares[:, label.numpy()], sums.n[:, None]
    left, right = aa - a**2 / n, bb - b**2 / n
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.where((left < FLAT) | (right < FLAT), np.nan, (ab - a * b / n) / np.sqrt(left * right))


def average_precisions(
    acts: Columns, true: Bool[Tensor, "entries"], holds: Int[np.ndarray, "resamples units"], sums: Sums
) -> PerUnit:
    """`intervals.average_precision` of each unit. `true`: the label's truth at the stored entries; `holds`: on how
    many of a resample's images it is true, unit by unit."""
    made = np.empty((sums.resamples, acts.units))
    starts, values = acts.starts.tolist(), acts.values.double().numpy()  # NumPy has no bfloat16
    for unit, (first, last) in enumerate(pairwise(starts)):
        rows, own = acts.rows[first:last].numpy(), (values[first:last], true[first:last].numpy())
        for some in sums.slices(last - first):
            counts = sums.by_image[rows, some]
            made[some, unit] = _average_precision(*own, counts, holds[some, unit], sums.n[some])
    return made


def _average_precision(
    values: Float[np.ndarray, "entries"],
    true: Bool[np.ndarray, "entries"],
    counts: UInt8[np.ndarray, "entries resamples"],
    holds: Int[np.ndarray, "resamples"],
    n: Int[np.ndarray, "resamples"],
) -> Float[np.ndarray, "resamples"]:
    """Of one unit: its stored images, strongest first, with the silent rest at its place among them, as one image."""
    order = np.argsort(-values, kind="stable")
    place = int(np.count_nonzero(values > 0))  # of the rest: 0 stands before what is below it
    counts, hits = counts[order].astype(np.int32), counts[order[true[order]]].astype(np.int32)
    rest, missed = n - counts.sum(axis=0), holds - hits.sum(axis=0)
    counts = np.insert(counts, place, rest, axis=0)
    hits = np.insert(hits, int(np.count_nonzero(values[true] > 0)), missed, axis=0)
    value, held = np.insert(values[order], place, 0.0), np.insert(true[order], place, True)
    last = np.r_[value[1:] != value[:-1], True]
    run = np.cumsum(last) - last
    gaining = np.unique(run[held])
    called = np.cumsum(counts, axis=0)[np.flatnonzero(last)[gaining]]
    hits = np.add.reduceat(hits, np.searchsorted(run[held], gaining), axis=0)
    right = np.cumsum(hits, axis=0)
    with np.errstate(invalid="ignore", divide="ignore"):
        return (hits * (right / np.maximum(called, 1))).sum(axis=0) / right[-1]


def agreements(
    acts: Columns,
    true: Bool[Tensor, "entries"],
    threshold: Float[Tensor, "units"],
    holds: Int[np.ndarray, "resamples units"],
    sums: Sums,
) -> dict[str, PerUnit]:
    """F1 and IoU of "activation >= threshold" in every resample; NaN without a threshold or without a true image."""
    silent = threshold <= 0  # the images that are not stored are called too: count those that are not
    owner = acts.unit_of_entry
    counted = (acts.values >= threshold[owner]) != silent[owner]
    called, both = sums.over_entries(acts, counted), sums.over_entries(acts, counted & true)
    turned = silent.numpy()
    called = np.where(turned, sums.n[:, None] - called, called)
    both = np.where(turned, holds - both, both)
    either, fitted = called + holds - both, torch.isfinite(threshold).numpy()
    with np.errstate(invalid="ignore", divide="ignore"):
        values = {"f1": 2 * both / (both + either), "iou": both / either}
    return {name: np.where(fitted & (holds > 0), value, np.nan) for name, value in values.items()}


@dataclass(frozen=True)
class Truths:
    """Boolean columns of labels, and their sums by resample."""

    member: Bool[Tensor, "images labels"]
    labels: Labels
    holds: Int[np.ndarray, "resamples labels"]  # on how many images of a resample each is true
    sums: Sums

    @classmethod
    def of(cls, member: Bool[Tensor, "images labels"], drawn: Draws) -> "Truths":
        """Of these columns under these resamples."""
        sums, step = Sums(drawn), max(1, ELEMENTS // len(member))

        def columns() -> Iterator[Tensor]:
            return (some.double() for some in member.split(step, dim=1))

        return cls(member, Labels.of(columns, sums), np.rint(sums.over_columns(columns())).astype(np.int64), sums)

    def numbers(
        self, acts: Columns, label: Int[Tensor, "units"], threshold: Float[Tensor, "units"]
    ) -> dict[str, PerUnit]:
        """Correlation, AUPRC, F1 and IoU of each unit in every resample."""
        true = self.member[acts.rows, label[acts.unit_of_entry]]
        holds = self.holds[:, label.numpy()]
        made = {"truth_r": correlations(acts, true.double(), label, self.labels, self.sums)}
        made["auprc"] = average_precisions(acts, true, holds, self.sums)
        return made | agreements(acts, true, threshold, holds, self.sums)


def groups_fired(acts: Columns, groups: Int[np.ndarray, "images"]) -> Int[np.ndarray, "units"]:
    """In how many groups of images each unit fires (at most half of the images are stored: a zero is nobody's)."""
    none = torch.zeros(acts.units, dtype=acts.values.dtype)
    high = none.scatter_reduce(0, acts.unit_of_entry, acts.values, "amax")
    fires = acts.values > firing_threshold(high)[acts.unit_of_entry]
    width = int(groups.max(initial=-1)) + 1
    pairs = acts.unit_of_entry[fires] * width + torch.from_numpy(groups)[acts.rows[fires]]
    return torch.bincount(pairs.unique() // max(width, 1), minlength=acts.units).numpy()
