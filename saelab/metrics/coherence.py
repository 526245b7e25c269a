"""How coherent a unit is by itself, no label needed."""

import torch
from jaxtyping import Bool, Float
from torch import Tensor
from torch.nn.functional import normalize

from saelab.acts import Acts, Columns, blocks, columns, shape
from saelab.errors import UserError
from saelab.metrics.two_means import two_means

LONE_FIRST = 10  # positives that polysemanticity looks at where a cluster has one member


def clarity(
    pos_emb: Float[Tensor, "units k d_text"], valid: Bool[Tensor, "units k"] | None = None
) -> Float[Tensor, "units"]:
    """Mean cosine between two different positives: k/(k-1) (|mean v|^2 - 1/k), v of unit length; at most 1.

    Source: SemanticLens (Dreyer et al., 2025). NaN with fewer than two valid positives.
    """
    unit, valid = _unit_rows(pos_emb, valid)
    k = valid.sum(dim=1).to(unit.dtype)
    mean = unit.sum(dim=1) / k[:, None]
    return (k / (k - 1) * ((mean**2).sum(dim=1) - 1 / k)).masked_fill(k < 2, torch.nan).float()


def redundancy(
    pos_emb: Float[Tensor, "units k d_text"], valid: Bool[Tensor, "units k"] | None = None
) -> Float[Tensor, "units"]:
    """Largest cosine of each unit's mean positive to that of another unit; a layer's redundancy is their mean.

    Source: SemanticLens (Dreyer et al., 2025). Depends on which units are passed together. NaN for units without a
    valid positive and where there is no other unit.
    """
    means = normalize(_mean_rows(pos_emb, valid), dim=1)
    known = ~means[:, 0].isnan()
    out = torch.full((len(means),), torch.nan, dtype=means.dtype, device=means.device)
    if int(known.sum()) < 2:
        return out.float()
    kept = means[known]
    best = torch.empty(len(kept), dtype=means.dtype, device=means.device)
    for first in range(0, len(kept), 1024):
        cosines = kept[first : first + 1024] @ kept.T
        cosines.diagonal(offset=first).fill_(-torch.inf)
        best[first : first + 1024] = cosines.max(dim=1).values
    out[known] = best
    return out.float()


def polysemanticity(
    pos_emb: Float[Tensor, "units k d_text"], valid: Bool[Tensor, "units k"] | None = None
) -> Float[Tensor, "units"]:
    """1 - cosine of the centres of the positives' two clusters (2-means); 0 to 2.

    Source: SemanticLens (Dreyer et al., 2025); centres are plain means. For at most 12 positives the best of all
    splits is taken, beyond that what scikit-learn's KMeans gives (n_init 10, seed 123). If a cluster has one member:
    1 - mean over the first min(10, k) positives of cos(mean of all, positive). If there is one cluster only (equal
    positives): 0. NaN with fewer than two positives.
    """
    unit_rows, valid = _checked(pos_emb, valid)
    counts = valid.sum(dim=1)
    finite = (unit_rows.isfinite() | ~valid[:, :, None]).all(dim=2).all(dim=1)
    rows = unit_rows.masked_fill(~valid[:, :, None], 0.0).nan_to_num(0.0, 0.0, 0.0)
    second = two_means(rows, valid)
    sizes = second.sum(dim=1)
    centres = [rows.mul(part[:, :, None]).sum(dim=1) for part in (second, valid & ~second)]
    value = 1 - torch.cosine_similarity(centres[0], centres[1], dim=1)
    value = value.masked_fill((sizes == 0) | (sizes == counts), 0.0)
    lone = (sizes == 1) | (counts - sizes == 1)
    first = valid & (valid.cumsum(dim=1) <= LONE_FIRST)
    cosines = torch.cosine_similarity(rows.sum(dim=1, keepdim=True), rows, dim=2)
    alike = cosines.mul(first).sum(dim=1) / first.sum(dim=1)
    return torch.where(lone, 1 - alike, value).masked_fill((counts < 2) | ~finite, torch.nan).float()


def monosemanticity(acts: Acts, image_emb: Float[Tensor, "images d_text"]) -> Float[Tensor, "units"]:
    """Activation-weighted mean cosine over all pairs of different images (Pach et al., NeurIPS 2025); -1 to 1.

    With a scaled by minimum and maximum to [0, 1] and unit-length e from an independent encoder:
    (|sum a e|^2 - sum a^2) / ((sum a)^2 - sum a^2), which equals the paper's double sum; in float64. NaN where the
    unit is constant or not finite, or fires on a single image.
    """
    acts = columns(acts)
    images, units = shape(acts)
    if image_emb.ndim != 2 or len(image_emb) != images:
        raise UserError("image_emb", tuple(image_emb.shape), f"expected one row for each of the {images} images")
    if not images:
        return torch.full((units,), torch.nan, device=image_emb.device)
    emb = normalize(image_emb.double(), dim=1)
    if isinstance(acts, Columns):
        return _monosemanticity_sparse(acts, emb)
    out = torch.empty(units, dtype=torch.float64, device=image_emb.device)
    for block, part in blocks(acts, 1 << 22):
        low, high = part.double().amin(dim=0), part.double().amax(dim=0)
        scaled = (part - low) / (high - low)
        out[block] = _pair_mean(scaled.T @ emb, scaled.sum(dim=0), (scaled**2).sum(dim=0))
    return out.float()


def _monosemanticity_sparse(acts: Columns, emb: Float[Tensor, "images d_text"]) -> Float[Tensor, "units"]:
    """The same from stored entries: an unstored image's zero becomes c0 = -min / (max - min), often 0."""
    owner, values = acts.unit_of_entry, acts.values.double()
    unstored = (acts.images - acts.counts).double()
    start = torch.where(unstored > 0, 0.0, torch.inf).double()
    low = start.scatter_reduce(0, owner, values, "amin")
    high = (-start).scatter_reduce(0, owner, values, "amax")
    zero = -low / (high - low)
    scaled = (values - low[owner]) / (high - low)[owner]
    summed = acts.product(scaled - zero[owner], emb) + zero[:, None] * emb.sum(dim=0)
    total = acts.total(scaled) + unstored * zero
    return _pair_mean(summed, total, acts.total(scaled**2) + unstored * zero**2).float()


def _pair_mean(summed: Tensor, total: Tensor, squares: Tensor) -> Float[Tensor, "units"]:
    pairs = total**2 - squares
    value = ((summed**2).sum(dim=1) - squares) / pairs
    return value.masked_fill(~(pairs > 1e-12 * total**2), torch.nan)


def _unit_rows(pos_emb: Tensor, valid: Tensor | None) -> tuple[Tensor, Tensor]:
    rows, valid = _checked(pos_emb, valid)
    return normalize(rows, dim=2).masked_fill(~valid[:, :, None], 0.0), valid


def _checked(pos_emb: Tensor, valid: Tensor | None) -> tuple[Tensor, Tensor]:
    valid = torch.ones(pos_emb.shape[:2], dtype=torch.bool, device=pos_emb.device) if valid is None else valid
    if pos_emb.ndim != 3 or valid.shape != pos_emb.shape[:2]:
        raise UserError("pos_emb", tuple(pos_emb.shape), "expected [units, k, d_text], and valid [units, k]")
    return pos_emb.double(), valid


def _mean_rows(pos_emb: Tensor, valid: Tensor | None) -> Float[Tensor, "units d_text"]:
    rows, kept = _checked(pos_emb, valid)
    return rows.masked_fill(~kept[:, :, None], 0.0).sum(dim=1) / kept.sum(dim=1, keepdim=True)
