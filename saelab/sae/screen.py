"""The bfloat16 screen: a rough product says which pre-activations are worth float32's look.

Training keeps the best of half as many candidates again as it needs (`screened_top_k`, `screened_top_of_batch`), and
measures what share of the true ones is among them (`screen_recall`, `screen_recall_of_batch`). Encoding proves that
nothing is lost (`exact_top_k`, `exact_codes`): rounding moves no product by more than `slack`, and what that leaves in
doubt float32 decides. Values are float32's own everywhere. On the CPU the rough product is ranked 512 rows at a time.
"""

from collections.abc import Iterator

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from saelab.sae import select
from saelab.sae.sparse import sampled_products, starts

ROUNDING = 1e-5  # of a number: two sums of the same float32 products differ by less
ROWS = 512  # that a CPU screens at once: what is ranked is still in its cache
FEW = 1 / 32  # of the latents: rescoring more candidates costs what the rough product saves
UNIT = 2.0**-8  # of a number, at the most: what rounding it to bfloat16 changes
SUM_UNIT = 2.0**-23  # of |x| |w|, for each of d_in terms, at the most: what float32 sums lose


def has_fast_bfloat16(device: torch.device) -> bool:
    """Whether the device multiplies bfloat16 matrices in hardware."""
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    tests = ("_is_avx512_bf16_supported", "_is_amx_tile_supported")
    return device.type == "cpu" and any(getattr(torch.cpu, test, bool)() for test in tests)


def pays_to_encode(rows: int, W: Float[Tensor, "n d_in"], k: int) -> bool:
    """Whether encoding by the screen is faster: on a CPU with bfloat16 instructions, for enough rows and latents."""
    cpu = W.device.type == "cpu" and W.dtype == torch.float32
    return cpu and rows >= ROWS and 2 * k <= FEW * len(W) and has_fast_bfloat16(W.device)


def screened_top_k(
    x: Float[Tensor, "rows d_in"], W: Float[Tensor, "n d_in"], bias: Float[Tensor, "n"], k: int
) -> tuple[Float[Tensor, "rows k"], Int[Tensor, "rows k"]]:
    """The k largest of each row of x W' + bias, among the 1.5 k that are largest in the rough product.

    A true member is lost only where rounding ranks it below all candidates (`screen_recall` counts).
    """
    _, candidates = _rank_roughly(x, W, bias, min(len(W), half_more(k)))
    return _rescore(x, W, bias, candidates, k)


def screened_top_of_batch(
    x: Float[Tensor, "rows d_in"], W: Float[Tensor, "n d_in"], bias: Float[Tensor, "n"], count: int
) -> tuple[Float[Tensor, "count"], Int[Tensor, "count"]]:
    """The `count` largest of all of x W' + bias and their flat positions, in the order of these (BatchTopK).

    Among the 1.5 `count` that are largest in the rough product.
    """
    rows, n = len(x), len(W)
    many = min(rows * n, half_more(count))
    if x.device.type == "cpu" and select.grouped(rows, n, many):
        rough, maxima = torch.empty(rows, n, dtype=torch.bfloat16), torch.empty(rows, n // select.GROUP)
        for first, wide in _in_chunks(x, W, bias, rough):
            maxima[first : first + len(wide)] = select.maxima_of(wide, select.GROUP)
        flat = select.top_by_maxima(rough, maxima, many)[1]
    else:
        flat = select.top_of_batch(_product(x, W, bias).float(), many)[1]
    row, columns = _split(flat, n)
    exact = sampled_products(starts(row, rows), columns, x, W) + bias[columns]
    kept = select.find_largest(exact, count)
    return exact[kept], flat[kept]


def screen_recall(
    x: Float[Tensor, "rows d_in"], W: Float[Tensor, "n d_in"], bias: Float[Tensor, "n"], k: int
) -> Float[Tensor, ""]:
    """Share of the k largest of each row of x W' + bias that `screened_top_k` finds.

    One that is missing counts as found where a number within float32's rounding stands in its place.
    """
    lost = torch.zeros((), dtype=torch.int64, device=x.device)
    for some in x.split(ROWS):
        true, members = torch.addmm(bias, some, W.T).topk(k, dim=1)
        values, found = screened_top_k(some, W, bias, k)
        absent = (members.unsqueeze(2) != found.unsqueeze(1)).all(2)
        lost += (absent & (true - values.amin(1, keepdim=True) > ROUNDING * true.abs())).sum()
    return 1 - lost / (len(x) * k)


def screen_recall_of_batch(
    x: Float[Tensor, "rows d_in"], W: Float[Tensor, "n d_in"], bias: Float[Tensor, "n"], count: int
) -> Float[Tensor, ""]:
    """Share of the `count` largest of all of x W' + bias that `screened_top_of_batch` finds; see `screen_recall`."""
    true, members = x.new_empty(0), torch.empty(0, dtype=torch.int64, device=x.device)
    for first, some in zip(range(0, len(x), ROWS), x.split(ROWS)):  # the largest so far, and those of some more rows
        more, flat = select.top_of_batch(torch.addmm(bias, some, W.T), min(count, len(some) * len(W)))
        true, members = torch.cat([true, more]), torch.cat([members, flat + first * len(W)])
        kept = select.find_largest(true, min(count, len(true)))
        true, members = true[kept], members[kept]
    values, found = screened_top_of_batch(x, W, bias, count)
    absent = torch.isin(members, found, invert=True)
    return 1 - (absent & (true - values.min() > ROUNDING * true.abs())).sum() / count


def exact_top_k(
    x: Float[Tensor, "rows d_in"], W: Float[Tensor, "n d_in"], bias: Float[Tensor, "n"], k: int
) -> tuple[Float[Tensor, "rows k"], Int[Tensor, "rows k"]]:
    """The k largest of each row of x W' + bias, less what is below 0: float32's own, by way of 2 k candidates.

    No number but the candidates reaches the least candidate's rough value plus `slack`. Rows whose k-th largest does
    not reach that either are multiplied again in float32.
    """
    roughly, candidates = _rank_roughly(x, W, bias, min(len(W), 2 * k))
    values, indices = _rescore(x, W, bias, candidates, k)
    least = roughly.amin(1)
    proven = values.amin(1).clamp(min=0) >= least + 2 * UNIT * least.abs() + slack(x, W, bias)
    doubtful = proven.logical_not().nonzero().squeeze(1)
    if len(doubtful):
        values[doubtful], indices[doubtful] = select.top_k(torch.addmm(bias, x[doubtful], W.T), k)
    return values.relu_(), indices


def exact_codes(
    x: Float[Tensor, "rows d_in"],
    W: Float[Tensor, "n d_in"],
    bias: Float[Tensor, "n"],
    threshold: Float[Tensor, "n"],
) -> Float[Tensor, "rows n"] | None:
    """What of x W' + bias exceeds its threshold and 0, the rest 0: float32's own, of what may by the rough product.

    None where so much may exceed it that one float32 product is faster.
    """
    threshold = threshold.clamp(min=0)
    codes, room = x.new_zeros(len(x), len(W)), slack(x, W, bias).unsqueeze(1) * (1 + 4 * UNIT)
    for first, wide in _in_chunks(x, W, bias):
        last = first + len(wide)
        # |rough| UNIT twice, from below 0 too: there it is less than the part of `room` that is added for it
        near = wide.mul_(1 + 2 * UNIT).sub_(threshold) > -room[first:last]
        places = torch.from_numpy(np.flatnonzero(near.numpy()))  # torch's takes several times as long
        if len(places) > FEW * near.numel():
            return None
        row, columns = _split(places, len(W))
        exact = sampled_products(starts(row, len(wide)), columns, x[first:last], W) + bias[columns]
        codes[first:last].view(-1)[places] = torch.where(exact > threshold[columns], exact, 0)
    return codes


def slack(x: Float[Tensor, "rows d_in"], W: Float[Tensor, "n d_in"], bias: Float[Tensor, "n"]) -> Float[Tensor, "rows"]:
    """By how much each row of the rough product may differ from x W' + bias, besides 2 `UNIT` of a number itself.

    By Cauchy and Schwarz, from what rounding took from x, W and bias; and what sums in float32 may lose.
    """
    narrow = x.bfloat16().float()
    length, moved = (torch.linalg.vector_norm(part, dim=1) for part in (narrow, x - narrow))
    longest, lost = x.new_zeros(()), x.new_zeros(())
    for rows in W.split(ROWS):
        longest = torch.maximum(longest, torch.linalg.vector_norm(rows, dim=1).amax())
        lost = torch.maximum(lost, torch.linalg.vector_norm(rows - rows.bfloat16().float(), dim=1).amax())
    bound = moved * longest + length * lost
    return bound + SUM_UNIT * x.shape[1] * length * longest + 2 * UNIT * bias.abs().amax()


def half_more(count: int) -> int:
    """Candidates for so many members, in training."""
    return count + (count + 1) // 2


def _split(flat: Tensor, n: int) -> tuple[Tensor, Tensor]:
    """Rows and columns of flat positions in a matrix n wide."""
    row = torch.div(flat, n, rounding_mode="floor")
    return row, flat - row * n


def _product(x: Tensor, W: Tensor, bias: Tensor) -> Tensor:
    return torch.addmm(bias.bfloat16(), x.bfloat16(), W.bfloat16().T)


def _in_chunks(x: Tensor, W: Tensor, bias: Tensor, out: Tensor | None = None) -> Iterator[tuple[int, Tensor]]:
    """The rough product of ROWS rows after another, widened to float32 in a kept buffer, each with its first row.

    `out` [rows, n] takes all of it as it is, bfloat16.
    """
    W, bias = W.bfloat16().T, bias.bfloat16()
    kept = torch.empty(min(ROWS, len(x)), W.shape[1], dtype=torch.bfloat16) if out is None else out
    wide = torch.empty(min(ROWS, len(x)), W.shape[1])
    for first in range(0, len(x), ROWS):
        some = x[first : first + ROWS].bfloat16()
        part = kept[: len(some)] if out is None else kept[first : first + ROWS]
        torch.addmm(bias, some, W, out=part)
        yield first, wide[: len(some)].copy_(part)


def _rank_roughly(x: Tensor, W: Tensor, bias: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """The `count` largest of each row of the rough product, and where they lie."""
    if x.device.type != "cpu" or not len(x):
        return select.top_k(_product(x, W, bias).float(), count)
    found = [select.top_k(wide, count) for _, wide in _in_chunks(x, W, bias)]
    values, indices = zip(*found)
    return torch.cat(values), torch.cat(indices)


def _rescore(x: Tensor, W: Tensor, bias: Tensor, candidates: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """The k largest of each row's candidates, by float32 products, and where they lie."""
    count = candidates.shape[1]
    bags = torch.arange(0, candidates.numel() + 1, count, device=x.device)
    exact = sampled_products(bags, candidates.reshape(-1), x, W).view(-1, count) + bias[candidates]
    values, inner = select.rank(exact, k)
    return values, candidates.gather(1, inner)
