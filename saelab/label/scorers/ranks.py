"""Mid-ranks: places in order, equal numbers sharing the mean of theirs."""

import torch
from jaxtyping import Float
from torch import Tensor


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
