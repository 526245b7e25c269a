"""Scorers that correlate a unit's activations with each label's similarity over the whole image set."""

from collections.abc import Callable

import torch
from jaxtyping import Float
from torch import Tensor

from saelab.columns import Acts, Columns, blocks, part, shape
from saelab.label.assign.checks import similarities
from saelab.label.mine.status import column_means

FLOOR = 1e-3  # CLIP-Dissect's least norm of a column


def cosine(
    acts: Acts, image_emb: Float[Tensor, "images d_text"], label_emb: Float[Tensor, "labels d_text"]
) -> Float[Tensor, "units labels"]:
    """CLIP-Dissect's `cos_similarity`: cosine of the raw columns of activations and similarities, not centred.

    Source: Oikarinen and Weng, ICLR 2023 (their norms are floored at 1e-3). NaN for units that are not finite.
    """
    return cosine_rows(*similarities(acts, image_emb, label_emb))(slice(None))


def pearson(
    acts: Acts, image_emb: Float[Tensor, "images d_text"], label_emb: Float[Tensor, "labels d_text"]
) -> Float[Tensor, "units labels"]:
    """Pearson correlation over images of a unit's activations with its similarity to each label; NaN if constant."""
    return pearson_rows(*similarities(acts, image_emb, label_emb))(slice(None))


def cos_cubed(
    acts: Acts, image_emb: Float[Tensor, "images d_text"], label_emb: Float[Tensor, "labels d_text"]
) -> Float[Tensor, "units labels"]:
    """CLIP-Dissect's `cos_similarity_cubed`: cosine of the cubes of the centred columns.

    Source: Oikarinen and Weng, ICLR 2023. Columns are divided by at least 1e-3, as theirs are, so that scores of
    labels of very low spread are damped (`floored_labels` counts them). NaN for units that are not finite.
    """
    return cos_cubed_rows(*similarities(acts, image_emb, label_emb))(slice(None))


def floored_labels(sims: Float[Tensor, "images labels"]) -> int:
    """How many labels have so little spread over the images that cos-cubed's floor of 1e-3 damps their scores."""
    return int((((sims - sims.mean(dim=0)) ** 3).norm(dim=0) < FLOOR).sum())


def cosine_rows(acts: Acts, sims: Float[Tensor, "images labels"]) -> Callable[[slice], Tensor]:
    """`cosine` for a slice of units at a time, given the similarities."""
    right = sims / sims.norm(dim=0).clamp(min=FLOOR)
    return _rows(acts, right, torch.zeros(shape(acts)[1], dtype=torch.float64, device=sims.device), power=1)


def pearson_rows(acts: Acts, sims: Float[Tensor, "images labels"]) -> Callable[[slice], Tensor]:
    """`pearson` for a slice of units at a time, given the similarities."""
    return _rows(acts, standardised(sims), column_means(acts), power=1, floor=0.0)


def cos_cubed_rows(acts: Acts, sims: Float[Tensor, "images labels"]) -> Callable[[slice], Tensor]:
    """`cos_cubed` for a slice of units at a time, given the similarities."""
    return _rows(acts, cubed(sims), column_means(acts), power=3)


def standardised(sims: Float[Tensor, "images labels"]) -> Float[Tensor, "images labels"]:
    """Columns centred and scaled to unit length; NaN for a label that is equally like every image."""
    centred = sims - sims.mean(dim=0)
    norms = centred.norm(dim=0)
    return centred / norms.masked_fill(norms <= 1e-6 * sims.norm(dim=0), torch.nan)


def cubed(sims: Float[Tensor, "images labels"]) -> Float[Tensor, "images labels"]:
    """Cubes of the centred columns over their norm, floored at 1e-3."""
    cubes = (sims - sims.mean(dim=0)).pow_(3)
    return cubes.div_(cubes.norm(dim=0).clamp(min=FLOOR))


def _rows(
    acts: Acts,
    right: Float[Tensor, "images labels"],
    centres: Float[Tensor, "units"],
    power: int,
    floor: float = FLOOR,
) -> Callable[[slice], Tensor]:
    sums = right.sum(dim=0, dtype=torch.float64).to(right.dtype)

    def rows(units: slice) -> Float[Tensor, "some labels"]:
        some = part(acts, units)
        if isinstance(some, Columns):
            return _against_sparse(some, right, sums, centres[units], power, floor)
        return torch.cat([_against_dense(block, right, centres[units][at], power, floor) for at, block in blocks(some)])

    return rows


def _against_dense(
    acts: Float[Tensor, "images some"], right: Tensor, centres: Tensor, power: int, floor: float
) -> Float[Tensor, "some labels"]:
    """Cosine of (a - centre) ** power with each column of `right`, which is scaled already."""
    entries = (acts - centres).to(right.dtype).pow_(power)
    norms = entries.norm(dim=0).clamp(min=floor)
    flat = acts.amin(dim=0) == acts.amax(dim=0)
    scores = entries.div_(norms).T @ right
    return scores.masked_fill_(flat[:, None], torch.nan) if power == 1 and floor == 0 else scores


def _against_sparse(
    acts: Columns, right: Tensor, sums: Tensor, centres: Tensor, power: int, floor: float
) -> Float[Tensor, "some labels"]:
    """The same from stored entries.

    Every unstored image has the same entry z = (-centre) ** power, so the product is the sum over stored images of
    (entry - z) x right plus z times the column sums of `right`, which cubing leaves far from zero.
    """
    owner = acts.unit_of_entry
    entries = (acts.values - centres[owner]) ** power
    unstored = (-centres) ** power
    norms = (acts.total(entries**2) + (acts.images - acts.counts) * unstored**2).sqrt().clamp(min=floor)
    scores = acts.product((entries - unstored[owner]) / norms[owner], right)
    return scores + (unstored / norms).to(right.dtype)[:, None] * sums
