"""Selection: the k largest of each row, and the largest of a whole batch, where rows are thousands of latents wide.

The k largest numbers lie in the k groups with the largest maxima. So one pass takes the maxima of short groups, the
groups are ranked (by groups of groups), and only the numbers of the best groups are ranked again. On the CPU numpy
ranks; elsewhere torch does.
"""

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn.functional import max_pool1d

from saelab.sae.sparse import sampled_products

GROUP = 16  # latents a group: a cache line of float32
FAN = 4  # groups a group of groups, and numbers a group where rows are short
SPARE = 29  # bits of a float64's fraction that a float32 leaves at zero
ROUNDING = 1e-5  # of a number: two sums of the same float32 products differ by less
SCREENED = 512  # rows that a CPU screens at once: what is ranked is still in its cache


def top_k(x: Float[Tensor, "rows n"], k: int) -> tuple[Float[Tensor, "rows k"], Int[Tensor, "rows k"]]:
    """The k largest of each row and where they lie (int64), in no particular order."""
    rows, n = x.shape
    group = next((size for size in (GROUP, FAN) if n % size == 0 and n >= 2 * size * k), 1)
    if group == 1 or not rows:
        return _rank(x, k)
    x = x.contiguous()
    best = top_k(_maxima(x, group), k)[1]
    lines = best + torch.arange(0, rows * n // group, n // group, device=x.device).unsqueeze(1)
    near = x.view(-1, group).index_select(0, lines.view(-1)).view(rows, k * group)
    values, inner = top_k(near, k)
    which, within = _split(inner, group)
    return values, best.gather(1, which) * group + within


def top_of_batch(x: Float[Tensor, "rows n"], count: int) -> tuple[Float[Tensor, "count"], Int[Tensor, "count"]]:
    """The `count` largest of all of x and their flat positions, in the order of these (BatchTopK)."""
    rows, n = x.shape
    flat = x.reshape(-1)
    if n % GROUP or rows * n // GROUP < 4 * count:
        places = _find_largest(flat, count)
        return flat[places], places
    maxima = _maxima(x, GROUP).view(-1)
    lines = _find_largest(maxima, count)
    near = flat.view(-1, GROUP).index_select(0, lines).view(-1)
    inner = _find_largest(near, count, floor=maxima[lines].min())
    which, within = _split(inner, GROUP)
    return near[inner], lines[which] * GROUP + within


def screened_top_k(
    x: Float[Tensor, "rows d_in"], W: Float[Tensor, "n d_in"], bias: Float[Tensor, "n"], k: int
) -> tuple[Float[Tensor, "rows k"], Int[Tensor, "rows k"]]:
    """The k largest of each row of x W' + bias: a bfloat16 product chooses 1.5 k candidates, float32 rescores them.

    Values are float32's own; a true member is lost only where bfloat16's rounding ranks it below all candidates
    (`screen_recall` counts). On the CPU the rough product exists for 512 rows at a time.
    """
    count = min(len(W), k + (k + 1) // 2)
    candidates = _candidates(x.bfloat16(), W.bfloat16().T, bias.bfloat16(), count)
    bags = torch.arange(0, candidates.numel() + 1, count, device=x.device)
    exact = sampled_products(bags, candidates.reshape(-1), x, W).view(-1, count) + bias[candidates]
    values, inner = _rank(exact, k)
    return values, candidates.gather(1, inner)


def screen_recall(
    x: Float[Tensor, "rows d_in"], W: Float[Tensor, "n d_in"], bias: Float[Tensor, "n"], k: int
) -> Float[Tensor, ""]:
    """Share of the k largest of each row of x W' + bias that `screened_top_k` finds.

    One that is missing counts as found where a number within float32's rounding stands in its place.
    """
    lost = torch.zeros((), dtype=torch.int64, device=x.device)
    for some in x.split(SCREENED):
        true, members = torch.addmm(bias, some, W.T).topk(k, dim=1)
        values, found = screened_top_k(some, W, bias, k)
        absent = (members.unsqueeze(2) != found.unsqueeze(1)).all(2)
        lost += (absent & (true - values.amin(1, keepdim=True) > ROUNDING * true.abs())).sum()
    return 1 - lost / (len(x) * k)


def _candidates(
    x: Float[Tensor, "rows d_in"], W: Float[Tensor, "d_in n"], bias: Float[Tensor, "n"], count: int
) -> Int[Tensor, "rows count"]:
    """Where the `count` largest of each row of x W + bias lie, ranked as float32."""
    if x.device.type != "cpu":
        return top_k(torch.addmm(bias, x, W).float(), count)[1]
    rough, wide = (torch.empty(min(SCREENED, len(x)), W.shape[1], dtype=t) for t in (x.dtype, torch.float32))
    found = []
    for some in x.split(SCREENED):
        torch.addmm(bias, some, W, out=rough[: len(some)])
        found.append(top_k(wide[: len(some)].copy_(rough[: len(some)]), count)[1])
    return torch.cat(found) if found else torch.empty(0, count, dtype=torch.int64)


def widen(x: Float[Tensor, "..."]) -> Float[Tensor, "..."]:
    """x in float64; on the CPU where its device has none (MPS)."""
    return (x.cpu() if x.device.type == "mps" else x).double()


def has_fast_bfloat16(device: torch.device) -> bool:
    """Whether the device multiplies bfloat16 matrices in hardware."""
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    tests = ("_is_avx512_bf16_supported", "_is_amx_tile_supported")
    return device.type == "cpu" and any(getattr(torch.cpu, test, bool)() for test in tests)


def _maxima(x: Float[Tensor, "rows n"], group: int) -> Float[Tensor, "rows groups"]:
    """The largest of each group of neighbours."""
    return max_pool1d(x.unsqueeze(1), group).squeeze(1)


def _split(places: Int[Tensor, "..."], group: int) -> tuple[Int[Tensor, "..."], Int[Tensor, "..."]]:
    """The groups (of a power of two) that numbers lie in and where within; shifts are much faster than divisions."""
    return places >> (group.bit_length() - 1), places & (group - 1)


def _rank(x: Float[Tensor, "rows n"], k: int) -> tuple[Float[Tensor, "rows k"], Int[Tensor, "rows k"]]:
    """The k largest of each row and where they lie, by looking at every number.

    On the CPU each float32 is widened to a float64 that has the number's place in the bits left over, since numpy sorts
    numbers an order faster than it sorts places.
    """
    rows, n = x.shape
    if x.device.type != "cpu" or x.dtype != torch.float32 or not rows:
        return x.topk(k, dim=1, sorted=False)
    largest = torch.finfo(torch.float32).max
    keys = x.nan_to_num(nan=largest).double()  # infinities hold no place; what is no number goes first, for all to see
    keys.view(torch.int64).bitwise_or_(torch.arange(n))
    keys.numpy().sort(axis=1)
    places = keys[:, n - k :].view(torch.int64) & ((1 << SPARE) - 1)
    return x.gather(1, places), places


def _find_largest(flat: Float[Tensor, "n"], count: int, floor: Tensor | None = None) -> Int[Tensor, "count"]:
    """Where the `count` largest lie, in the order of their places; of equals at the edge the first.

    `floor`: a number that at least `count` reach, where one is known: the others then need no ranking.
    """
    if flat.device.type != "cpu":
        return flat.topk(count, sorted=False).indices.sort().values
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
