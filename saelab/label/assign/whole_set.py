"""Scorers that correlate a unit's activations with each label's similarity over the whole image set."""

import torch
from jaxtyping import Float
from torch import Tensor

from saelab.columns import Acts, Columns, blocks, shape
from saelab.label.assign.checks import similarities
from saelab.label.mine.status import column_means

FLOOR = 1e-3  # CLIP-Dissect's least norm of a cubed column


def cosine(
    acts: Acts, image_emb: Float[Tensor, "images d_text"], label_emb: Float[Tensor, "labels d_text"]
) -> Float[Tensor, "units labels"]:
    """CLIP-Dissect's `cos_similarity`: cosine of the raw columns of activations and similarities, not centred.

    Source: Oikarinen and Weng, ICLR 2023 (their norms are floored at 1e-3). NaN for units that are not finite.
    """
    acts, sims = similarities(acts, image_emb, label_emb)
    return _columns_against(acts, _scaled(sims), torch.zeros(shape(acts)[1], dtype=torch.float64), power=1)


def pearson(
    acts: Acts, image_emb: Float[Tensor, "images d_text"], label_emb: Float[Tensor, "labels d_text"]
) -> Float[Tensor, "units labels"]:
    """Pearson correlation over images of a unit's activations with its similarity to each label; NaN if constant."""
    acts, sims = similarities(acts, image_emb, label_emb)
    right = sims - sims.mean(dim=0)
    norms = right.norm(dim=0)
    flat = norms <= 1e-6 * sims.norm(dim=0)
    scores = _columns_against(acts, right / norms, column_means(acts), power=1, floor=0.0)
    return scores.masked_fill(flat, torch.nan)


def cos_cubed(
    acts: Acts, image_emb: Float[Tensor, "images d_text"], label_emb: Float[Tensor, "labels d_text"]
) -> Float[Tensor, "units labels"]:
    """CLIP-Dissect's `cos_similarity_cubed`: cosine of the cubes of the centred columns.

    Source: Oikarinen and Weng, ICLR 2023. Columns are divided by at least 1e-3, as theirs are, so that scores of
    labels of very low spread are damped (`floored_labels` counts them). NaN for units that are not finite.
    """
    acts, sims = similarities(acts, image_emb, label_emb)
    return _columns_against(acts, _scaled((sims - sims.mean(dim=0)) ** 3), column_means(acts), power=3)


def floored_labels(image_emb: Float[Tensor, "images d_text"], label_emb: Float[Tensor, "labels d_text"]) -> int:
    """How many labels have so little spread over the images that cos-cubed's floor of 1e-3 damps their scores."""
    sims = image_emb @ label_emb.T
    return int((((sims - sims.mean(dim=0)) ** 3).norm(dim=0) < FLOOR).sum())


def _scaled(matrix: Float[Tensor, "images labels"]) -> Float[Tensor, "images labels"]:
    return matrix / matrix.norm(dim=0).clamp(min=FLOOR)


def _columns_against(
    acts: Acts, right: Float[Tensor, "images labels"], centres: Float[Tensor, "units"], power: int, floor: float = FLOOR
) -> Float[Tensor, "units labels"]:
    """Cosine of ((a - centre) ** power) with each column of `right` (scaled already); dense or sparse.

    Sparse: every unstored image has the same entry z = (-centre) ** power, so the product is the sum over stored
    images of (entry - z) x right plus z times the column sums of `right`, which cubing leaves far from zero.
    """
    centres = centres.to(right.device)
    if not isinstance(acts, Columns):
        parts = []
        for block, part in blocks(acts):
            entries = (part - centres[block]).to(right.dtype) ** power
            norms = entries.norm(dim=0)
            parts.append((entries / norms.clamp(min=floor)).T @ right)
        return torch.cat(parts)
    owner = acts.unit_of_entry
    entries = (acts.values - centres[owner]) ** power
    unstored = (-centres) ** power
    norms = (acts.total(entries**2) + (acts.images - acts.counts) * unstored**2).sqrt().clamp(min=floor)
    scores = acts.product((entries - unstored[owner]) / norms[owner], right)
    return scores + (unstored / norms).to(right.dtype)[:, None] * right.sum(dim=0, dtype=torch.float64).to(right.dtype)
