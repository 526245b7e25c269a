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

GROUPS = (16, 8, 4)  # numbers a group, the first that leaves enough groups
SPREAD = 4  # groups for each number that is asked for: then one in eight shares its group with a larger one
MOST = 2  # times as many numbers as are asked for: where more reach the bound there are ties, which ranking breaks


class Reached(NamedTuple):
    """The numbers of some rows that reach their row's bound: in the order of the columns, row after row."""

    columns: Int[Tensor, "found"]
    offsets: Int[Tensor, "rows+1"]  # row i has columns[offsets[i]:offsets[i + 1]]
    least: Float[Tensor, "rows"]  # the bound: no other number of the row reaches it


def reach(x: Float[Tensor, "rows n"], count: int) -> Reached | None:
    """The numbers of each row that reach the `count`-th largest of its groups' maxima: the largest, and few more.

    x: float32, on the CPU. None where rows are short, or where equal numbers or NaN leave no such bound: there ranking
    has to decide.
    """
    rows, n = x.shape
    group = next((size for size in GROUPS if n % size == 0 and n >= SPREAD * size * count), 0)
    if not (group and rows and count):
        return None
    groups = n // group
    maxima = x.reshape(rows, group, groups).amax(1).numpy()
    maxima.partition(groups - count, axis=1)
    if np.isnan(maxima[:, groups - count :]).any():
        return None
    least = maxima[:, groups - count].copy()
    places = np.flatnonzero(x.numpy() >= least[:, None])
    offsets = np.searchsorted(places, np.arange(0, rows * n + 1, n))
    counts = np.diff(offsets)
    if counts.max() > MOST * count:
        return None
    places -= np.repeat(np.arange(0, rows * n, n), counts)
    return Reached(*(torch.from_numpy(found) for found in (places, offsets, least)))


def fixed(values: Float[Tensor, "rows count"], columns: Int[Tensor, "rows count"]) -> Reached:
    """The same of as many numbers of each row, in any order."""
    rows, count = columns.shape
    offsets = torch.arange(0, rows * count + 1, count)
    return Reached(columns.sort(dim=1).values.view(-1), offsets, values.amin(1))


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
