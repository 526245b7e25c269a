"""INVERT: which concept, or formula of concepts, a unit tells from the rest (NeurIPS 2023)."""

from collections.abc import Callable

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from saelab.acts import Acts, blocks, columns, part, shape
from saelab.arrays import takes_arrays
from saelab.errors import UserError


@takes_arrays
def invert_auc(acts: Acts, concepts: Bool[Tensor, "images labels"]) -> Float[Tensor, "units labels"]:
    """AUROC of each unit against each binary concept, from mid-ranks: P(in > out) + P(in = out) / 2.

    Source: Bykov et al., INVERT (NeurIPS 2023), without upstream's sigmoid, which makes ties. NaN where a concept
    holds on no or on every image and for units that are not finite.
    """
    return invert_rows(acts, concepts)(slice(None))


def invert_rows(acts: Acts, concepts: Bool[Tensor, "images labels"]) -> Callable[[slice], Tensor]:
    """`invert_auc` for a slice of units at a time."""
    acts = columns(acts)
    images = shape(acts)[0]
    if concepts.ndim != 2 or len(concepts) != images:
        raise UserError("concepts", tuple(concepts.shape), f"expected [images, labels] with {images} images")
    inside = concepts.double()
    n1 = inside.sum(dim=0)

    def rows(units: slice) -> Float[Tensor, "some labels"]:
        parts = []
        for _, block in blocks(part(acts, units), 1 << 22):
            sums = mid_ranks(block.T) @ inside
            parts.append(((sums - n1 * (n1 + 1) / 2) / (n1 * (images - n1))).float())
        return torch.cat(parts)

    return rows


def mid_ranks(rows: Float[Tensor, "units images"]) -> Float[Tensor, "units images"]:
    """Ranks from 1 along each row, ties at their mean, in float64; NaN for a row that is not finite."""
    ordered, place = rows.sort(dim=1)
    new = torch.ones_like(ordered, dtype=torch.bool)
    new[:, 1:] = ordered[:, 1:] != ordered[:, :-1]
    index = torch.arange(1, rows.shape[1] + 1, device=rows.device, dtype=torch.float64).expand(rows.shape)
    first = torch.where(new, index, 0).cummax(dim=1).values
    last_of = torch.ones_like(new)
    last_of[:, :-1] = new[:, 1:]
    last = torch.where(last_of, index, torch.inf).flip(1).cummin(dim=1).values.flip(1)
    ranks = torch.empty_like(first).scatter_(1, place, (first + last) / 2)
    return ranks.masked_fill_(~rows.isfinite().all(dim=1, keepdim=True), torch.nan)
