"""Selection: the k largest of each row, and the largest of a whole batch, where rows are thousands of latents wide.

The k largest numbers lie in the k groups with the largest maxima. So one pass takes the maxima of short groups, the
groups are ranked (by groups of groups), and only the numbers of the best groups are ranked again. On the CPU numpy
ranks; elsewhere torch does. Of equal numbers the one at the smaller place is chosen, so that processes which each see
a part choose as one process would; only MPS, which ranks no int64, states no order. NaN counts as the largest number.
"""

from collections.abc import Iterator

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn.functional import max_pool1d

GROUP = 16  # latents a group: a cache line of float32
FAN = 4  # groups a group of groups, and numbers a group where rows are short
SAMPLED = 7  # of so many groups one is looked at for a bound; unless it divides the groups of a row, all take part
SPARE = 29  # bits of a float64's fraction that a float32 leaves at zero
AT_ONCE = 1 << 26  # float32 pre-activations that are held at once: 256 MiB


def top_k(x: Float[Tensor, "rows n"], k: int) -> tuple[Float[Tensor, "rows k"], Int[Tensor, "rows k"]]:
    """The k largest of each row and where they lie (int64), in no particular order; of equals the first."""
    rows, n = x.shape
    group = next((size for size in (GROUP, FAN) if n % size == 0 and n >= 2 * size * k), 1)
    if group == 1 or not rows or not k:
        return rank(x, k)
    x = x.contiguous()
    best = _ascending(top_k(maxima_of(x, group), k)[1])  # in the order of x, so that of equals the first stays first
    lines = best + torch.arange(0, rows * n // group, n // group, device=x.device).unsqueeze(1)
    near = x.view(-1, group).index_select(0, lines.view(-1)).view(rows, k * group)
    values, inner = top_k(near, k)
    which, within = _split(inner, group)
    return values, best.gather(1, which) * group + within


def top_of_batch(x: Float[Tensor, "rows n"], count: int) -> tuple[Float[Tensor, "count"], Int[Tensor, "count"]]:
    """The `count` largest of all of x (BatchTopK) and their flat positions, in the order of these; of equals
    the first.
    """
    rows, n = x.shape
    if not grouped(rows, n, count):
        flat = x.reshape(-1)
        places = find_largest(flat, count)
        return flat[places], places
    return top_by_maxima(x, maxima_of(x, GROUP), count)


def grouped(rows: int, n: int, count: int) -> bool:
    """Whether the `count` largest of rows x n numbers are found faster by the maxima of groups."""
    return n % GROUP == 0 and rows * n // GROUP >= 4 * count


def top_by_maxima(
    x: Float[Tensor, "rows n"], maxima: Float[Tensor, "rows groups"], count: int
) -> tuple[Float[Tensor, "count"], Int[Tensor, "count"]]:
    """`top_of_batch` of x, in the dtype of the maxima of its groups of neighbours, which are known."""
    maxima = maxima.view(-1)
    lines = find_largest(maxima, count)
    near = x.reshape(-1, GROUP).index_select(0, lines).view(-1).to(maxima.dtype)
    inner = find_largest(near, count, floor=maxima[lines].min())
    which, within = _split(inner, GROUP)
    return near[inner], lines[which] * GROUP + within


def rows_at_once(n: int) -> int:
    """Rows of n pre-activations that are held at once."""
    return max(1, AT_ONCE // n)


def in_chunks(
    x: Float[Tensor, "rows d_in"], W: Float[Tensor, "n d_in"], bias: Float[Tensor, "n"]
) -> Iterator[tuple[int, Float[Tensor, "chunk n"]]]:
    """x W' + bias, `rows_at_once` after another in a buffer that is kept, each with its first row."""
    step = rows_at_once(len(W))
    kept = x.new_empty(min(step, len(x)), len(W))
    for first in range(0, len(x), step):
        some = x[first : first + step]
        yield first, torch.addmm(bias, some, W.T, out=kept[: len(some)])


def chunked_top_k(
    x: Float[Tensor, "rows d_in"], W: Float[Tensor, "n d_in"], bias: Float[Tensor, "n"], k: int
) -> tuple[Float[Tensor, "rows k"], Int[Tensor, "rows k"]]:
    """`top_k` of x W' + bias, of which no more than `AT_ONCE` numbers are held."""
    return join_top_k(in_chunks(x, W, bias), x, k)


def join_top_k(
    parts: Iterator[tuple[int, Float[Tensor, "chunk n"]]], x: Float[Tensor, "rows d_in"], k: int
) -> tuple[Float[Tensor, "rows k"], Int[Tensor, "rows k"]]:
    """`top_k` of a product of all rows of x that comes in chunks, each with its first row."""
    values, places = x.new_empty(len(x), k), torch.empty(len(x), k, dtype=torch.int64, device=x.device)
    for first, pre in parts:
        last = first + len(pre)
        values[first:last], places[first:last] = top_k(pre, k)
    return values, places


def chunked_top_of_batch(
    x: Float[Tensor, "rows d_in"], W: Float[Tensor, "n d_in"], bias: Float[Tensor, "n"], count: int
) -> tuple[Float[Tensor, "count"], Int[Tensor, "count"]]:
    """`top_of_batch` of x W' + bias, of which no more than `AT_ONCE` numbers are held."""
    return join_top_of_batch(in_chunks(x, W, bias), x, len(W), count)


def join_top_of_batch(
    parts: Iterator[tuple[int, Float[Tensor, "chunk n"]]], x: Float[Tensor, "rows d_in"], n: int, count: int
) -> tuple[Float[Tensor, "count"], Int[Tensor, "count"]]:
    """`top_of_batch` of a product n wide of all rows of x that comes in chunks, each with its first row."""
    values, flat = x.new_empty(0), torch.empty(0, dtype=torch.int64, device=x.device)
    for first, pre in parts:  # the largest so far, and those of some more rows
        more, places = top_of_batch(pre, min(count, pre.numel()))
        values, flat = torch.cat([values, more]), torch.cat([flat, places + first * n])
        kept = find_largest(values, min(count, len(values)))
        values, flat = values[kept], flat[kept]
    return values, flat


def about_the_largest(
    x: Float[Tensor, "rows n"], maxima: Float[Tensor, "rows groups"], count: int
) -> Int[Tensor, "some"]:
    """Flat positions of about the `count` largest of x, in the order of these, on the CPU.

    All that reach a bound: about the `count`-th of the maxima of groups of neighbours, which are known, by every
    `SAMPLED`-th of these. Exactly `count` where that finds fewer than nine tenths or more than 1.5 times as many.
    """
    flat = maxima.reshape(-1)
    sample = flat[::SAMPLED].contiguous()
    least = _last_of(sample, min(len(sample), -(-count // SAMPLED)))
    lines = torch.from_numpy(np.flatnonzero(flat.numpy() >= least))
    if len(lines) > 1.5 * count or flat.isnan().any():
        return top_by_maxima(x, maxima, count)[1]
    near = x.reshape(-1, GROUP).index_select(0, lines).view(-1)
    inner = torch.from_numpy(np.flatnonzero(near.to(flat.dtype).numpy() >= least))
    if not 0.9 * count <= len(inner) <= 1.5 * count:
        return top_by_maxima(x, maxima, count)[1]
    which, within = _split(inner, GROUP)
    return lines[which] * GROUP + within


def widen(x: Float[Tensor, "..."]) -> Float[Tensor, "..."]:
    """x in float64; on the CPU where its device has none (MPS)."""
    return (x.cpu() if x.device.type == "mps" else x).double()


def maxima_of(x: Float[Tensor, "rows n"], group: int) -> Float[Tensor, "rows groups"]:
    """The largest of each group of neighbours."""
    return max_pool1d(x.unsqueeze(1), group).squeeze(1)


def _split(places: Int[Tensor, "..."], group: int) -> tuple[Int[Tensor, "..."], Int[Tensor, "..."]]:
    """The groups (of a power of two) that numbers lie in and where within; shifts are much faster than divisions."""
    return places >> (group.bit_length() - 1), places & (group - 1)


def rank(x: Float[Tensor, "rows n"], k: int) -> tuple[Float[Tensor, "rows k"], Int[Tensor, "rows k"]]:
    """The k largest of each row and where they lie, by looking at every number; of equals the first.

    On the CPU each float32 is widened to a float64 that has the number's place in the bits left over, since numpy sorts
    numbers an order faster than it sorts places.
    """
    rows, n = x.shape
    if x.device.type == "mps":
        return x.topk(k, dim=1, sorted=False)
    if x.device.type != "cpu" and x.dtype != torch.float64:
        places = _keys(x).topk(k, dim=1, sorted=False).indices
        return x.gather(1, places), places
    if x.dtype != torch.float32 or not rows or not k:
        places = x.sort(dim=1, descending=True, stable=True).indices[:, :k]
        return x.gather(1, places), places
    largest = torch.finfo(torch.float32).max
    keys = x.nan_to_num(nan=largest).double()  # infinities hold no place; what is no number goes first, for all to see
    keys.view(torch.int64).bitwise_or_(torch.arange(n - 1, -1, -1))  # the later, the smaller
    keys.numpy().sort(axis=1)
    places = (n - 1) - (keys[:, n - k :].view(torch.int64) & ((1 << SPARE) - 1))
    values = x.gather(1, places)
    if k < n:  # below 0 (and for -0, which equals 0) the later is the larger: rows where that may matter, once more
        left, taken = keys[:, n - k - 1], keys[:, n - k]
        again = (left.signbit() & (left.float() == taken.float())).nonzero().squeeze(1)
        if len(again):
            places[again] = x[again].sort(dim=1, descending=True, stable=True).indices[:, :k]
            values[again] = x[again].gather(1, places[again])
    return values, places


def _keys(x: Float[Tensor, "... n"]) -> Int[Tensor, "... n"]:
    """Numbers that rank as those of x do and, where these are equal, the earlier as the larger; n below 2^32."""
    largest = torch.finfo(torch.float32).max
    bits = (x.float().nan_to_num(nan=largest) + 0.0).view(torch.int32)  # -0 + 0 is 0
    rising = bits ^ ((bits >> 31) & 0x7FFFFFFF)  # floats below 0 grow as their bits fall
    n = x.shape[-1]
    return (rising.long() << 32) | torch.arange(n - 1, -1, -1, device=x.device)


def _ascending(places: Int[Tensor, "rows k"]) -> Int[Tensor, "rows k"]:
    """Each row in order; on the CPU in place, by numpy, whose sort is ten times as fast."""
    if places.device.type != "cpu":
        return places.sort(dim=1).values
    places.numpy().sort(axis=1)
    return places


def find_largest(flat: Float[Tensor, "n"], count: int, floor: Tensor | None = None) -> Int[Tensor, "count"]:
    """Where the `count` largest lie, in the order of their places; of equals at the edge the first.

    `floor`: a number that at least `count` reach, where one is known: the others then need no ranking.
    """
    if flat.device.type != "cpu":
        return rank(flat.unsqueeze(0), count)[1].squeeze(0).sort().values
    least = _last_of(flat, count) if floor is None else float(floor)
    places = torch.from_numpy(~(flat.detach().numpy() < least)).nonzero().squeeze(1)
    if len(places) > count:
        values = flat[places]
        least = _last_of(values, count)
        above = values > least
        equal = (above | (values < least)).logical_not_()
        places = places[above | (equal & (equal.cumsum(0) <= count - above.sum()))]
    return places


def _last_of(flat: Float[Tensor, "n"], count: int) -> float:
    """The count-th largest number."""
    rest = len(flat) - count
    return float(np.partition(flat.detach().numpy(), rest)[rest])
