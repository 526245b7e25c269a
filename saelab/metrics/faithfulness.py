"""How well a label agrees with the unit: against an encoder's simulation, or against known concept truth."""

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from saelab.acts import Acts, blocks, columns, shape
from saelab.errors import UserError


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
        flat = (a.abs().amax(dim=0) < 1e-12) | (b.abs().amax(dim=0) < 1e-12)
        parts.append(((a * b).sum(dim=0) / scale).masked_fill(flat, torch.nan))
    return torch.cat(parts).float()


def typical_column(columns: Float[Tensor, "images labels"], times: Int[Tensor, "labels"]) -> Float[Tensor, "images"]:
    """The mean of the columns, each centred and of unit length and counted so many times; constant ones left out."""
    centred = columns.double() - columns.double().mean(dim=0)
    there = centred.abs().amax(dim=0) >= 1e-12
    weight = (times * there).double()
    units = centred / centred.norm(dim=0).masked_fill(~there, 1.0)
    return units @ (weight / weight.sum().clamp(min=1))


def chance_correlation(acts: Acts, typical: Float[Tensor, "images"]) -> Float[Tensor, "units"]:
    """What `correlation` gives a unit on average over the columns that `typical_column` was made of; -1 to 1.

    If those are the labels of all units, each as often as units have it, that is exactly the expectation where the
    labels are dealt out to the units anew: 0 unless what drives many units goes with what many labels say. NaN for a
    unit that is constant or not finite.
    """
    parts = []
    for _, part in blocks(acts):
        a = part.double() - part.double().mean(dim=0)
        flat = a.abs().amax(dim=0) < 1e-12
        parts.append((typical.double() @ a / a.norm(dim=0)).masked_fill(flat, torch.nan))
    return torch.cat(parts).float()


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
    parts = [_per_block(part, truth[:, block])[0] for block, part in _paired(acts, truth)]
    return torch.cat(parts).float()


def best_f1_threshold(acts: Acts, truth: Bool[Tensor, "images units"]) -> Float[Tensor, "units"]:
    """The activation from which calling the label gives the best F1; to be found on `mine`, the highest of equals.

    "From": an image counts where a >= threshold, as in scikit-learn. NaN where a label holds on no image.
    """
    parts = [_per_block(part, truth[:, block])[1] for block, part in _paired(acts, truth)]
    return torch.cat(parts)


def f1(acts: Acts, truth: Bool[Tensor, "images units"], threshold: Float[Tensor, "units"]) -> Float[Tensor, "units"]:
    """F1 of "activation >= threshold" against the truth: 2 TP / (2 TP + FP + FN); NaN without a positive image."""
    both, either, _ = _counts(acts, truth, threshold)
    return 2 * both / (both + either)


def iou(acts: Acts, truth: Bool[Tensor, "images units"], threshold: Float[Tensor, "units"]) -> Float[Tensor, "units"]:
    """Intersection over union of "activation >= threshold" and the truth: TP / (TP + FP + FN); NaN as in `f1`."""
    both, either, _ = _counts(acts, truth, threshold)
    return both / either


def _counts(acts: Acts, truth: Tensor, threshold: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """TP and TP + FP + FN per unit; NaN where no image has the label or the threshold is NaN."""
    if threshold.shape != (shape(columns(acts))[1],):
        raise UserError("threshold", tuple(threshold.shape), "expected one for each unit, [units]")
    both, either, known = [], [], []
    for block, part in _paired(acts, truth):
        called, true = part >= threshold[block], truth[:, block].bool()
        both.append((called & true).sum(dim=0))
        either.append((called | true).sum(dim=0))
        known.append(true.any(dim=0) & ~threshold[block].isnan() & part.isfinite().all(dim=0))
    lost = ~torch.cat(known)
    return torch.cat(both).float().masked_fill(lost, torch.nan), torch.cat(either).float(), lost


def _per_block(part: Float[Tensor, "images some"], truth: Tensor) -> tuple[Tensor, Tensor]:
    """Average precision and best-F1 threshold of each column, equal activations taken together."""
    ordered, place = part.T.sort(dim=1, descending=True)
    hits = truth.T.bool().gather(1, place)
    images = part.shape[0]
    true = hits.double().cumsum(dim=1)
    total = true[:, -1:]
    called = torch.arange(1, images + 1, dtype=torch.float64, device=part.device)
    last = torch.ones_like(hits)
    last[:, :-1] = ordered[:, 1:] != ordered[:, :-1]  # a threshold takes all of a run of equals or none
    before = torch.where(last, true, 0).cummax(dim=1).values.roll(1, dims=1)
    before[:, 0] = 0
    gained = torch.where(last, true - before, 0)
    average = (gained * true / called).sum(dim=1) / total[:, 0]
    score = torch.where(last, 2 * true / (called + total), -1)
    threshold = ordered.gather(1, score.argmax(dim=1, keepdim=True))[:, 0]
    lost = (total[:, 0] == 0) | ~part.isfinite().all(dim=0)
    return average.masked_fill(lost, torch.nan), threshold.masked_fill(lost, torch.nan)


def _paired(acts: Acts, other: Tensor):
    acts = columns(acts)
    if tuple(other.shape) != shape(acts):
        raise UserError(
            "truth", tuple(other.shape), f"expected a column for each unit, [images, units] = {shape(acts)}"
        )
    return blocks(acts, 1 << 22)
