"""What of each row reaches a bound of its own: candidates for the largest, found by two passes over the row, on CPUs.

The count-th largest of the maxima of a row's groups is a number that the count largest of the row all reach, and few
others do: only numbers that share a group with a larger one. So nothing but the maxima is ranked.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from saelab.sae import select

GROUPS = (16, 8, 4)  # numbers a group, the first that leaves enough groups; they lie as far apart as there are groups
SPREAD = 4  # groups for each number that is asked for: then one in eight shares its group with a larger one
MOST = 2  # times as many numbers as are asked for; where more reach the bound (ties, groups of like latents): ranking


class Reached(NamedTuple):
    """The numbers of some rows that reach their row's bound: in the order of the columns, row after row."""

    columns: Int[Tensor, "found"]
    offsets: Int[Tensor, "rows+1"]  # row i has columns[offsets[i]:offsets[i + 1]]
    least: Float[Tensor, "rows"]  # the bound: no other number of the row exceeds it


def reach(x: Float[Tensor, "rows n"], count: int) -> Reached:
    """The numbers of each row that reach the `count`-th largest of its groups' maxima: the largest, and a few more.

    x: float32, on the CPU. Exactly the `count` largest by `select.top_k` where rows are short, and of a row in which
    NaN, equal numbers or crowded groups leave no bound that few numbers reach: whatever the other rows are.
    """
    rows, n = x.shape
    group = next((size for size in GROUPS if n % size == 0 and n >= SPREAD * size * count), 0)
    if not (group and rows):
        return _ranked(x, count)
    groups = n // group
    maxima = x.reshape(rows, group, groups).amax(1).numpy()
    maxima.partition(groups - count, axis=1)
    least = maxima[:, groups - count].copy()
    near = x.numpy() >= least[:, None]
    places, offsets = _list(near)
    lost = np.isnan(maxima[:, groups - count :]).any(1) | (np.diff(offsets) > MOST * count)
    if lost.any():
        some = _ranked(x[torch.from_numpy(lost)], count)
        near[lost] = False
        near[lost.nonzero()[0].repeat(count), some.columns.numpy()] = True
        least[lost] = some.least.numpy()
        places, offsets = _list(near)
    places -= np.repeat(np.arange(0, rows * n, n), np.diff(offsets))
    return Reached(*(torch.from_numpy(found) for found in (places, offsets, least)))


def join(parts: Sequence[Reached]) -> Reached:
    """Some rows after another."""
    columns, offsets, least = zip(*parts, strict=True)
    ends = torch.cat([own.diff() for own in offsets]).cumsum(0)
    return Reached(torch.cat(columns), torch.cat([ends.new_zeros(1), ends]), torch.cat(least))


def in_rows(
    found: Reached, values: Float[Tensor, "found"]
) -> tuple[Float[Tensor, "rows most"], Int[Tensor, "rows most"]]:
    """A value for each column that was found, a row each, and the columns; -inf beyond a row's own."""
    counts = found.offsets.diff()
    there = torch.arange(int(counts.max())) < counts.unsqueeze(1)
    laid, columns = values.new_full(there.shape, -torch.inf), torch.zeros(there.shape, dtype=torch.int64)
    return laid.masked_scatter_(there, values), columns.masked_scatter_(there, found.columns)


def _ranked(x: Tensor, count: int) -> Reached:
    values, columns = select.top_k(x, count)
    return Reached(columns.sort(dim=1).values.view(-1), torch.arange(len(x) + 1) * count, values.amin(1))


def _list(near: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Flat places of what is True, and where each row's begin."""
    rows, n = near.shape
    places = np.flatnonzero(near)
    return places, np.searchsorted(places, np.arange(0, rows * n + 1, n))
