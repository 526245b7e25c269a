"""How well a label agrees with the unit: against an encoder's simulation, or against known concept truth."""

from collections.abc import Callable, Iterable, Iterator

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from saelab.acts import Acts, Columns, blocks, columns, shape
from saelab.errors import UserError
from saelab.metrics.items import Items, of_blocks

FLAT = 1e-12  # a column nowhere further from its mean than this is constant
AT_ONCE = 1 << 22  # numbers of a block of columns


def simulation_correlation(acts: Acts, sims: Float[Tensor, "images units"]) -> Float[Tensor, "units"]:
    """SCS: Pearson correlation of each unit with its own label's similarity to each image; -1 to 1.

    Source: CSP (arXiv 2604.22477), after Bills et al. 2023 and FALCON. `sims[:, u]` is <image, label of u> from an
    encoder other than the one that chose the label. NaN where either column is constant.
    """
    return correlation(acts, sims)


def correlation(acts: Acts, other: Tensor) -> Float[Tensor, "units"]:
    """Pearson correlation of paired columns, in float64; NaN where a column is constant or not finite."""
    parts = []
    for block, part in _paired(acts, other):
        a, b = part.double(), other[:, block].double()
        a, b = a - a.mean(dim=0), b - b.mean(dim=0)
        scale = a.norm(dim=0) * b.norm(dim=0)
        flat = (a.abs().amax(dim=0) < FLAT) | (b.abs().amax(dim=0) < FLAT)
        parts.append(((a * b).sum(dim=0) / scale).masked_fill(flat, torch.nan))
    return torch.cat(parts).float()


def typical_column(columns: Float[Tensor, "images labels"], times: Int[Tensor, "labels"]) -> Float[Tensor, "images"]:
    """The mean of the columns, each centred and of unit length and counted so many times; constant ones left out."""
    return typical_of(columns.split(max(1, AT_ONCE // max(len(columns), 1)), dim=1), times)


def typical_of(blocks: Iterable[Float[Tensor, "images some"]], times: Int[Tensor, "labels"]) -> Float[Tensor, "images"]:
    """`typical_column` of columns that come in blocks, so that they are never held together."""
    total, weights, first = torch.zeros(()), 0.0, 0
    for block in blocks:
        centred = block.double() - block.double().mean(dim=0)
        there = centred.abs().amax(dim=0) >= FLAT
        weight = (times[first : first + block.shape[1]] * there).double()
        units = centred / centred.norm(dim=0).masked_fill(~there, 1.0)
        total, weights, first = total + units @ weight, weights + float(weight.sum()), first + block.shape[1]
    return total / max(weights, 1.0)


def chance_correlation(acts: Acts, typical: Float[Tensor, "images"]) -> Float[Tensor, "units"]:
    """What `correlation` gives a unit on average over the columns that `typical_column` was made of; -1 to 1.

    If those are the labels of all units, each as often as units have it, that is exactly the expectation where the
    labels are dealt out to the units anew: 0 unless what drives many units goes with what many labels say. NaN for a
    unit that is constant or not finite.
    """
    acts, centred = columns(acts), typical.double() - typical.double().mean()
    if isinstance(acts, Columns):
        length, flat = centred_length(acts)
        return (acts.total(acts.values.double() * centred[acts.rows]) / length).masked_fill(flat, torch.nan).float()
    parts = []
    for _, part in blocks(acts):
        a = part.double() - part.double().mean(dim=0)
        flat = a.abs().amax(dim=0) < FLAT
        parts.append((centred @ a / a.norm(dim=0)).masked_fill(flat, torch.nan))
    return torch.cat(parts).float()


def centred_length(acts: Columns) -> tuple[Float[Tensor, "units"], Bool[Tensor, "units"]]:
    """Length of each unit's centred column, in float64, and whether it is constant (the length then says nothing)."""
    owner, values, rest = acts.unit_of_entry, acts.values.double(), acts.images - acts.counts
    means = acts.total(values) / acts.images
    squares = acts.total((values - means[owner]).square()) + rest * means.square()
    furthest = torch.where(rest > 0, means.abs(), 0.0)
    furthest = furthest.scatter_reduce(0, owner, (values - means[owner]).abs(), "amax")
    return squares.sqrt(), furthest < FLAT


def cosine(acts: Acts, truth: Tensor) -> Float[Tensor, "units"]:
    """Cosine of paired raw columns, not centred; NaN where a column is all zero. Source: NeuronEval (ICML 2025)."""
    parts = []
    for block, part in _paired(acts, truth):
        a, b = part.double(), truth[:, block].double()
        parts.append((a * b).sum(dim=0) / (a.norm(dim=0) * b.norm(dim=0)))
    return torch.cat(parts).float()


def auprc(acts: Acts, truth: Bool[Tensor, "images units"]) -> Float[Tensor, "units"]:
    """Area under precision and recall: scikit-learn's average precision, equal activations as one threshold; 0 to 1.

    NaN where a label holds on no image or the unit is not finite. A random unit gets the label's frequency.
    """
    return _of_items(acts, truth, lambda items, _: items.average_precision()).float()


def best_f1_threshold(acts: Acts, truth: Bool[Tensor, "images units"]) -> Float[Tensor, "units"]:
    """The activation from which calling the label gives the best F1; to be found on `mine`, the highest of equals.

    "From": an image counts where a >= threshold, as in scikit-learn. NaN where a label holds on no image.
    """
    return _of_items(acts, truth, lambda items, _: items.best_threshold())


def f1(acts: Acts, truth: Bool[Tensor, "images units"], threshold: Float[Tensor, "units"]) -> Float[Tensor, "units"]:
    """F1 of "activation >= threshold" against the truth: 2 TP / (2 TP + FP + FN); NaN without a positive image."""
    both, either = _counts(acts, truth, threshold)
    return 2 * both / (both + either)


def iou(acts: Acts, truth: Bool[Tensor, "images units"], threshold: Float[Tensor, "units"]) -> Float[Tensor, "units"]:
    """Intersection over union of "activation >= threshold" and the truth: TP / (TP + FP + FN); NaN as in `f1`."""
    both, either = _counts(acts, truth, threshold)
    return both / either


def _counts(acts: Acts, truth: Tensor, threshold: Tensor) -> tuple[Tensor, Tensor]:
    """TP and TP + FP + FN per unit; NaN where no image has the label or the threshold is NaN."""
    if threshold.shape != (shape(columns(acts))[1],):
        raise UserError("threshold", tuple(threshold.shape), "expected one for each unit, [units]")
    counts = _of_items(acts, truth, lambda items, some: torch.stack(items.agreement(threshold[some]), dim=1)).float()
    return counts[:, 0], counts[:, 1]


def _of_items(acts: Acts, truth: Tensor, number: Callable[[Items, Tensor], Tensor]) -> Tensor:
    """A number, or several, of each unit's items."""
    acts = _check(acts, truth)
    every = torch.arange(truth.shape[1], device=truth.device)
    found = [(some, number(items, some)) for some, items in of_blocks(acts, truth.bool(), every)]
    units, numbers = (torch.cat(column) for column in zip(*found, strict=True))
    return numbers[units.argsort()]


def _paired(acts: Acts, other: Tensor) -> Iterator[tuple[slice, Tensor]]:
    return blocks(_check(acts, other), 1 << 22)


def _check(acts: Acts, other: Tensor) -> Acts:
    acts = columns(acts)
    if tuple(other.shape) != shape(acts):
        raise UserError(
            "truth", tuple(other.shape), f"expected a column for each unit, [images, units] = {shape(acts)}"
        )
    return acts
