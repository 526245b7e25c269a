"""How far would a label's faithfulness move with other test images? Bootstrap over images, unit by unit.

A mean over units has its interval from the comparison; this is the interval of one unit's number, for its page. The
label, its threshold and the unit are taken as they are: only the test images are drawn anew. Where a number hangs on a
handful of images, a bootstrap of them says nothing, and no interval is given.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

import numpy as np
import torch
from jaxtyping import Bool, Float, Int, UInt8
from torch import Tensor

from saelab.acts import Acts, Columns, blocks, firing_threshold, pick
from saelab.evaluate import resampled, similar
from saelab.evaluate.faithfulness import best_thresholds, known_rows

if TYPE_CHECKING:
    from saelab.evaluate.faithfulness import Judges, Splits
    from saelab.truth import Similarity, Truth

RESAMPLES = 1000
LEVEL = 0.95
FEWEST = 5  # groups of images that fire the unit, have the label, and lack it, below which there is no interval
ELEMENTS = 1 << 22  # numbers of a block of resamples held at once
BLOCK = 1 << 18  # numbers of a block of units held at once

Draws = UInt8[np.ndarray, "resamples images"]  # how often each image is in each resample
Bounds = Float[np.ndarray, "units two"]  # low and high of each unit, NaN where there is no interval


def intervals(
    mine: Acts,
    test: Acts,
    texts: Sequence[str | None],
    evidence: "Judges",
    splits: "Splits",
    seed: int = 0,
    resamples: int = RESAMPLES,
    groups: Sequence[object] | np.ndarray | None = None,
) -> list[dict[str, list[float]]]:
    """Per unit `{metric: [low, high]}` of its label: 95 % expanded percentile bootstrap intervals over test images.

    `groups`: the group of each test image (near-duplicates, a series), drawn together; by default each its own. Of
    `faithfulness.FAITHFULNESS`, given the same arguments, all but AUROC, whose interval is too narrow for few images.
    One that has no number or hangs on fewer than 5 groups (that fire the unit, have the label or lack it) is left out.
    In memory: a byte per resample and image, and blocks of bounded size.
    Eight parameters: the five of `faithfulness.faithfulness`, and three of the bootstrap with defaults.
    """
    if not resamples:
        return [{} for _ in texts]
    ids = torch.as_tensor(splits.test)
    of = np.unique(np.arange(len(ids)) if groups is None else np.asarray(groups), return_inverse=True)[1]
    drawing = partial(Drawn.of, seed=seed, resamples=resamples, groups=of)
    found = {"scs": _simulated(test, texts, evidence.judge, ids, drawing)}
    if evidence.captions is not None:
        found["caption_r"] = _simulated(test, texts, evidence.captions, ids, drawing)
    if evidence.truth is not None:
        found |= _against_truth(mine, test, texts, evidence.truth, splits, drawing)
    return [
        {name: bounds[u].tolist() for name, bounds in found.items() if np.isfinite(bounds[u]).all()}
        for u in range(len(texts))
    ]


def draws(
    images: int, seed: int = 0, resamples: int = RESAMPLES, groups: Int[np.ndarray, "images"] | None = None
) -> Draws:
    """Bootstrap resamples of the images as counts; images of one group (by default each its own) are drawn together."""
    rng = np.random.default_rng(seed)
    of = np.arange(images) if groups is None else np.unique(groups, return_inverse=True)[1]
    count = int(of.max()) + 1 if images else 0
    made = np.empty((resamples, images), np.uint8)
    for row in made:
        row[:] = np.bincount(rng.integers(0, count, count), minlength=count).clip(max=255)[of]
    return made


@dataclass(frozen=True)
class Drawn:
    """Resamples of the images that a metric knows, and the group of each of these."""

    counts: Draws
    groups: Int[np.ndarray, "images"]  # 0, 1, ...

    @classmethod
    def of(cls, known: Bool[Tensor, "images"], seed: int, resamples: int, groups: np.ndarray) -> "Drawn":
        """From the groups of all images."""
        here = np.unique(groups[known.numpy(force=True)], return_inverse=True)[1]
        return cls(draws(len(here), seed, resamples, here), here)

    def spread(self, flags: Bool[np.ndarray, "images units"]) -> Int[np.ndarray, "units"]:
        """Groups in which a flag is set, column by column."""
        seen = np.zeros((int(self.groups.max(initial=-1)) + 1, flags.shape[1]), dtype=bool)
        np.logical_or.at(seen, self.groups, flags)
        return seen.sum(0)

    def bounds(self, made: Float[np.ndarray, "resamples units"], fires: Int[np.ndarray, "units"]) -> Bounds:
        """Intervals of units that fire in enough groups."""
        found = bounds_of(made, int(self.groups.max(initial=-1)) + 1)
        return np.where((fires >= FEWEST)[:, None], found, np.nan)

    def fires(self, acts: Float[np.ndarray, "images units"]) -> Int[np.ndarray, "units"]:
        """Groups in which each unit fires."""
        return self.spread(acts > firing_threshold(acts.max(0)))


def correlations(
    a: Float[np.ndarray, "images units"], b: Float[np.ndarray, "images units"], drawn: Draws
) -> Float[np.ndarray, "resamples units"]:
    """Pearson's r of paired columns in every resample, as five matrix products; NaN where one is constant there."""
    images, units = a.shape
    a, b = (_standardised(x) for x in (a, b))
    sums = np.concatenate([a, b, a * a, b * b, a * b], axis=1)
    made = np.empty((len(drawn), units))
    step = max(1, ELEMENTS // images)
    for first in range(0, len(drawn), step):
        n = drawn[first : first + step].sum(1, dtype=np.int64)[:, None]  # groups of unequal size: no fixed number
        part = (drawn[first : first + step].astype(np.float64) @ sums).reshape(-1, 5, units)
        of_a, of_b, of_aa, of_bb, of_ab = part.transpose(1, 0, 2)
        left, right = of_aa - of_a**2 / n, of_bb - of_b**2 / n
        flat = (left < 1e-12) | (right < 1e-12)
        with np.errstate(invalid="ignore", divide="ignore"):
            made[first : first + step] = np.where(flat, np.nan, (of_ab - of_a * of_b / n) / np.sqrt(left * right))
    return made


def _standardised(values: np.ndarray) -> np.ndarray:
    """Columns of mean 0 and length 1, so that a constant one stands out from rounding."""
    centred = values - values.mean(0)
    return centred / np.maximum(np.linalg.norm(centred, axis=0), 1e-30)


def average_precision(
    a: Float[np.ndarray, "images"], true: Bool[np.ndarray, "images"], drawn: Draws
) -> Float[np.ndarray, "resamples"]:
    """Average precision of one unit in every resample, equal activations as one threshold (as `metrics.auprc`)."""
    order = np.argsort(-a, kind="stable")
    value, holds = a[order], true[order]
    last = np.r_[value[1:] != value[:-1], True]  # of each run of equal activations
    run = np.cumsum(last) - last
    gaining = np.unique(run[holds])  # runs that hold a true image: the others gain nothing
    until, first = np.flatnonzero(last)[gaining], np.searchsorted(run[holds], gaining)
    made = np.empty(len(drawn))
    step = max(1, ELEMENTS // len(a))
    for at in range(0, len(drawn), step):
        counts = drawn[at : at + step].T[order]  # [images, some resamples], strongest image first
        called = np.cumsum(counts, axis=0, dtype=np.int64)[until]
        hits = np.add.reduceat(counts[holds], first, axis=0, dtype=np.int64)
        right = np.cumsum(hits, axis=0)
        with np.errstate(invalid="ignore"):
            made[at : at + step] = (hits * right / np.maximum(called, 1)).sum(0) / right[-1]
    return made


def bounds_of(made: Float[np.ndarray, "resamples units"], groups: int) -> Bounds:
    """Expanded percentile interval of each column over the resamples that have a number (Hesterberg 2015).

    Quantiles further out than the level, by as much as Student's t of so many groups exceeds the normal: the plain
    percentile interval of few groups is too narrow.
    """
    from scipy.stats import norm, t

    free = max(groups - 1, 1)
    out = float(norm.cdf(np.sqrt(groups / free) * t.ppf((1 - LEVEL) / 2, free)))
    with np.errstate(invalid="ignore"):
        made = np.where(np.isfinite(made), made, np.nan)
    ordered = np.sort(made, axis=0)  # NaN last
    return np.stack([_quantile(ordered, out), _quantile(ordered, 1 - out)], axis=1)


def _quantile(ordered: Float[np.ndarray, "resamples units"], q: float) -> Float[np.ndarray, "units"]:
    """`np.nanquantile` of sorted columns, which NumPy takes one by one where a NaN is among them."""
    last = np.isfinite(ordered).sum(0) - 1
    at = q * np.maximum(last, 0)
    below = np.floor(at).astype(np.int64)
    columns = np.arange(ordered.shape[1])
    low, high = ordered[below, columns], ordered[np.minimum(below + 1, np.maximum(last, 0)), columns]
    part, step = at - below, high - low
    return np.where(part < 0.5, low + step * part, high - step * (1 - part))


def _simulated(
    test: Acts, texts: Sequence[str | None], space: "Similarity", ids: Tensor, drawing: Callable[[Tensor], Drawn]
) -> Bounds:
    known = space.known[ids]
    images = space.images[ids[known]]
    found = np.full((len(texts), 2), np.nan)
    named = torch.tensor([u for u, text in enumerate(texts) if text is not None], dtype=torch.long)
    if len(named) == 0 or len(images) < 2 * FEWEST:
        return found
    rows = torch.tensor([space.row[text] for text in texts if text is not None], dtype=torch.long)
    distinct, label = rows.unique(return_inverse=True)
    drawn, acts, labels = drawing(known), known_rows(pick(test, named), known), space.labels[distinct]
    few, many = resampled.halves(acts)
    if isinstance(acts, Columns) and len(few):
        sums = resampled.Sums(drawn.counts)
        of_labels = resampled.Labels.of(partial(similar.label_blocks, images, labels), sums)
        for some in few.split(max(1, ELEMENTS // sums.resamples)):
            part, own = acts.pick(some), label[some]
            made = resampled.correlations(part, similar.at_entries(part, images, labels, own), own, of_labels, sums)
            found[named[some]] = drawn.bounds(made, resampled.groups_fired(part, drawn.groups))
    images = images.double()
    for block, dense in blocks(pick(acts, many), BLOCK):
        a, b = dense.double().numpy(), (images @ labels[label[many[block]]].double().T).numpy()
        found[named[many[block]]] = drawn.bounds(correlations(a, b, drawn.counts), drawn.fires(a))
    return found


def _against_truth(
    mine: Acts,
    test: Acts,
    texts: Sequence[str | None],
    truth: "Truth",
    splits: "Splits",
    drawing: Callable[[Tensor], Drawn],
) -> dict[str, Bounds]:
    of_mine, of_test = torch.as_tensor(splits.mine), torch.as_tensor(splits.test)
    known_mine, known = truth.known[of_mine], truth.known[of_test]
    on_mine, on_test = truth.member[of_mine[known_mine]], truth.member[of_test[known]]
    drawn = drawing(known)
    holds, lacks = (drawn.spread(flags.numpy()) for flags in (on_test, ~on_test))
    have = [(u, truth.column[text]) for u, text in enumerate(texts) if text is not None and text in truth.column]
    usable = [(u, c) for u, c in have if min(holds[c], lacks[c]) >= FEWEST]
    found = {name: np.full((len(texts), 2), np.nan) for name in ("truth_r", "auprc", "f1", "iou")}
    if not usable:
        return found
    units, concepts = torch.tensor(usable).T
    threshold = best_thresholds(known_rows(pick(mine, units), known_mine), on_mine, concepts)
    acts = known_rows(pick(test, units), known)
    few, many = resampled.halves(acts)
    if isinstance(acts, Columns) and len(few):
        distinct, label = concepts.unique(return_inverse=True)
        truths = resampled.Truths.of(on_test[:, distinct], drawn.counts)
        for some in few.split(max(1, ELEMENTS // len(drawn.counts))):
            part = acts.pick(some)
            fires = resampled.groups_fired(part, drawn.groups)
            for name, values in truths.numbers(part, label[some], threshold[some]).items():
                found[name][units[some]] = drawn.bounds(values, fires)
    for block, dense in blocks(pick(acts, many), BLOCK):
        a, at = dense.double().numpy(), many[block]
        for name, values in _numbers(a, on_test[:, concepts[at]].numpy(), threshold[at], drawn.counts).items():
            found[name][units[at]] = drawn.bounds(values, drawn.fires(a))
    return found


def _numbers(a: np.ndarray, true: np.ndarray, threshold: Tensor, drawn: Draws) -> dict[str, np.ndarray]:
    """Each number of some units against their truth, in every resample."""
    least = threshold.double().numpy()
    made = {"truth_r": correlations(a, true.astype(np.float64), drawn)}
    made["auprc"] = np.stack([average_precision(a[:, j], true[:, j], drawn) for j in range(a.shape[1])], axis=1)
    return made | _agreement(a >= least, true, np.isfinite(least), drawn)


def _agreement(called: np.ndarray, true: np.ndarray, fitted: np.ndarray, drawn: Draws) -> dict[str, np.ndarray]:
    """F1 and IoU of "called" against the truth in every resample; NaN without a threshold or without a true image."""
    units, step = true.shape[1], max(1, ELEMENTS // drawn.shape[1])
    flags = np.concatenate([called & true, called | true, true], axis=1).astype(np.float64)
    sums = [drawn[i : i + step].astype(np.float64) @ flags for i in range(0, len(drawn), step)]
    both, either, holds = np.concatenate(sums).reshape(-1, 3, units).transpose(1, 0, 2)
    with np.errstate(invalid="ignore", divide="ignore"):
        values = {"f1": 2 * both / (both + either), "iou": both / either}
    return {name: np.where(fitted & (holds > 0), value, np.nan) for name, value in values.items()}
