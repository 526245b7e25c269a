"""Long rows of numbers: which hold a number that is not finite, and where their largest are."""

from math import isqrt

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor


def finite_rows(rows: Float[Tensor, "rows n"]) -> Bool[Tensor, "rows"]:
    """Whether all numbers of a row are finite. A finite sum says so at once; large numbers may overflow one."""
    finite = rows.sum(dim=1).isfinite()
    doubtful = (~finite).nonzero()[:, 0]
    finite[doubtful] = rows[doubtful].isfinite().all(dim=1)
    return finite


def largest(rows: Float[Tensor, "rows n"], k: int) -> tuple[Float[Tensor, "rows k"], Int[Tensor, "rows k"]]:
    """The k largest numbers of each row and where they are: largest first, equal ones by place.

    Which of several that equal the last one are taken is left open, as torch.topk does.
    """
    share = isqrt(rows.shape[1] // k)
    values, places = _largest_by_groups(rows, k, share) if share > 1 else rows.topk(k, dim=1)
    equal = (values[:, 1:] == values[:, :-1]).any(dim=1).nonzero()[:, 0]
    values[equal], places[equal] = in_order(values[equal], places[equal])
    return values, places


def in_order(
    values: Float[Tensor, "rows n"], places: Int[Tensor, "rows n"]
) -> tuple[Float[Tensor, "rows n"], Int[Tensor, "rows n"]]:
    """The same, each row by value, largest first, and equal values by place."""
    places, by_place = places.sort(dim=1)
    values, by_value = values.gather(1, by_place).sort(dim=1, descending=True, stable=True)
    return values, places.gather(1, by_value)


def _largest_by_groups(rows: Tensor, k: int, share: int) -> tuple[Tensor, Tensor]:
    """The same, in any order of equal ones: the k largest are in the k groups with the largest maxima, or in the rest.

    Group g holds `share` places, `groups` apart. Maxima take a tenth of the time of a top-k of the row, which is left
    with the maxima and then with k groups.
    """
    groups = rows.shape[1] // share
    grouped = rows[:, : share * groups].view(-1, share, groups)
    chosen = grouped.amax(dim=1).topk(k, dim=1, sorted=False).indices
    offsets = torch.arange(0, share * groups, groups, device=rows.device)
    places = (chosen[:, None, :] + offsets[:, None]).flatten(1)
    rest = torch.arange(share * groups, rows.shape[1], device=rows.device).expand(len(rows), -1)
    places = torch.cat([places, rest], dim=1)
    values, index = rows.gather(1, places).topk(k, dim=1)
    return values, places.gather(1, index)
