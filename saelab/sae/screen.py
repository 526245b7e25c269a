"""The screen: a rough product (rough.py) says which pre-activations are worth float32's look.

Training keeps the best of more candidates than it needs (`screened_top_k`, `screened_top_of_batch`): at least half as
many again of the bfloat16 product, twice as many of int8's. It measures what share of the true ones is among them
(`screen_recall`, `screen_recall_of_batch`). Encoding proves that nothing is lost (`exact_top_k`, `exact_codes`):
rounding to bfloat16 moves no product by more than `slack`, and what that leaves in doubt float32 decides. Values are
float32's own everywhere.
"""

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from saelab.sae import rough, select
from saelab.sae.reach import Reached, in_rows
from saelab.sae.rough import ROWS, in_chunks, rank_batch_roughly, rank_roughly
from saelab.sae.sparse import TORCH, Pairs, Products, products, sampled_products, sort_by_latent, starts

ROUNDING = 1e-5  # of a number: two sums of the same float32 products differ by less
FEW = 1 / 32  # of the latents: rescoring more candidates costs what the rough product saves
UNIT = 2.0**-8  # of a number, at the most: what rounding it to bfloat16 changes
SUM_UNIT = 2.0**-23  # of |x| |w|, for each of d_in terms, at the most: what float32 sums lose


def pays_to_encode(rows: int, W: Float[Tensor, "n d_in"], k: int) -> bool:
    """Whether encoding by the screen is faster: on a CPU with bfloat16 instructions, for enough rows and latents."""
    cpu = W.device.type == "cpu" and W.dtype == torch.float32
    return cpu and rows >= ROWS and 2 * k <= FEW * len(W) and rough.has_fast_bfloat16(W.device)


def screened_top_k(
    x: Float[Tensor, "rows d_in"],
    W: Float[Tensor, "n d_in"],
    bias: Float[Tensor, "n"],
    k: int,
    by: str = "bfloat16",
    kernels: str = "torch",
) -> tuple[Float[Tensor, "rows k"], Int[Tensor, "rows k"]]:
    """The k largest of each row of x W' + bias (float32, and int64), among the `candidates` of the rough product.

    `by`: its numbers, bfloat16 | int8, or float8 on cards that have it. A true member is lost only where rounding ranks
    it below all candidates (`screen_recall` counts). `kernels` (torch | triton) rank and rescore.
    """
    count = min(len(W), count_candidates(k, by))
    if x.device.type == "cpu" and kernels == "torch" and len(x):  # parts of no rows can't be joined
        return _rescore_reached(x, W, bias, rough.reach_roughly(x, W, bias, count, by), k)
    _, candidates = rank_roughly(x, W, bias, count, by, kernels)
    return _rescore(x, W, bias, candidates, k, products(kernels, x.device))


def screened_top_of_batch(
    x: Float[Tensor, "rows d_in"],
    W: Float[Tensor, "n d_in"],
    bias: Float[Tensor, "n"],
    count: int,
    by: str = "bfloat16",
) -> tuple[Float[Tensor, "count"], Int[Tensor, "count"]]:
    """The `count` largest of all of x W' + bias and their flat positions, in the order of these (BatchTopK).

    Among the candidates of the rough product; `by`: see `screened_top_k`.
    """
    rows, n = len(x), len(W)
    flat = rank_batch_roughly(x, W, bias, min(rows * n, count_candidates(count, by)), by)
    row, columns = _split(flat, n)
    exact = _products(starts(row, rows), columns, x, W) + bias[columns]
    kept = select.find_largest(exact, count)
    return exact[kept], flat[kept]


def screen_recall(
    x: Float[Tensor, "rows d_in"],
    W: Float[Tensor, "n d_in"],
    bias: Float[Tensor, "n"],
    k: int,
    by: str = "bfloat16",
    kernels: str = "torch",
) -> Float[Tensor, ""]:
    """Share of the k largest of each row of x W' + bias that `screened_top_k` finds.

    One that is missing counts as found where a number within float32's rounding stands in its place.
    """
    lost = torch.zeros((), dtype=torch.int64, device=x.device)
    for some in x.split(min(ROWS, select.rows_at_once(len(W)))):
        true, members = torch.addmm(bias, some, W.T).topk(k, dim=1)
        values, found = screened_top_k(some, W, bias, k, by, kernels)
        absent = (members.unsqueeze(2) != found.unsqueeze(1)).all(2)
        lost += (absent & (true - values.amin(1, keepdim=True) > ROUNDING * true.abs())).sum()
    return 1 - lost / (len(x) * k)


def screen_recall_of_batch(
    x: Float[Tensor, "rows d_in"],
    W: Float[Tensor, "n d_in"],
    bias: Float[Tensor, "n"],
    count: int,
    by: str = "bfloat16",
) -> Float[Tensor, ""]:
    """Share of the `count` largest of all of x W' + bias that `screened_top_of_batch` finds; see `screen_recall`."""
    true, members = x.new_empty(0), torch.empty(0, dtype=torch.int64, device=x.device)
    rows = min(ROWS, select.rows_at_once(len(W)))
    for first, some in zip(range(0, len(x), rows), x.split(rows)):  # the largest so far, and those of some more rows
        more, flat = select.top_of_batch(torch.addmm(bias, some, W.T), min(count, len(some) * len(W)))
        true, members = torch.cat([true, more]), torch.cat([members, flat + first * len(W)])
        kept = select.find_largest(true, min(count, len(true)))
        true, members = true[kept], members[kept]
    values, found = screened_top_of_batch(x, W, bias, count, by)
    absent = torch.isin(members, found, invert=True)
    return 1 - (absent & (true - values.min() > ROUNDING * true.abs())).sum() / count


def exact_top_k(
    x: Float[Tensor, "rows d_in"], W: Float[Tensor, "n d_in"], bias: Float[Tensor, "n"], k: int
) -> tuple[Float[Tensor, "rows k"], Int[Tensor, "rows k"]]:
    """The k largest of each row of x W' + bias, less what is below 0: float32's own, by way of 2 k or more candidates.

    No number but the candidates exceeds the bound of their rough values (`reach`) by more than `slack`. Rows whose k-th
    largest does not reach that either are multiplied again in float32.
    """
    if not len(x):
        return x.new_empty(0, k), torch.empty(0, k, dtype=torch.int64)
    candidates = rough.reach_roughly(x, W, bias, min(len(W), 2 * k), "bfloat16")
    values, indices = _rescore_reached(x, W, bias, candidates, k)
    least = candidates.least
    proven = values.amin(1).clamp(min=0) >= least + 2 * UNIT * least.abs() + slack(x, W, bias)
    doubtful = proven.logical_not().nonzero().squeeze(1)
    if len(doubtful):
        values[doubtful], indices[doubtful] = select.chunked_top_k(x[doubtful], W, bias, k)
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
    for first, wide in in_chunks(x, W, bias):
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


def count_candidates(count: int, by: str = "bfloat16") -> int:
    """Candidates for so many members, in training; int8 and float8 round more than bfloat16, so they get more."""
    return 2 * count if by in ("int8", "float8") else count + (count + 1) // 2


def _split(flat: Tensor, n: int) -> tuple[Tensor, Tensor]:
    """Rows and columns of flat positions in a matrix n wide."""
    row = torch.div(flat, n, rounding_mode="floor")
    return row, flat - row * n


def _rescore(
    x: Tensor, W: Tensor, bias: Tensor, candidates: Tensor, k: int, library: Products
) -> tuple[Tensor, Tensor]:
    """The k largest of each row's candidates, by float32 products, and where they lie."""
    count = candidates.shape[1]
    bags = torch.arange(0, candidates.numel() + 1, count, device=x.device)
    exact = _products(bags, candidates.reshape(-1), x, W, library).view(-1, count) + bias[candidates]
    values, inner = select.rank(exact, k)
    return values, candidates.gather(1, inner)


def _rescore_reached(x: Tensor, W: Tensor, bias: Tensor, found: Reached, k: int) -> tuple[Tensor, Tensor]:
    """The same of what reaches a bound."""
    exact, columns = in_rows(found, _products(found.offsets, found.columns, x, W) + bias[found.columns])
    values, inner = select.rank(exact, k)
    return values, columns.gather(1, inner)


def _products(offsets: Tensor, columns: Tensor, x: Tensor, W: Tensor, library: Products = TORCH) -> Tensor:
    """`sampled_products`; on the CPU latent by latent, since x fits into a cache that W does not."""
    if x.device.type != "cpu" or library is not TORCH:
        return library.sampled_products(offsets, columns, x, W)
    grouped = sort_by_latent(Pairs(x.new_empty(0), columns, offsets), len(W))
    found = sampled_products(grouped.offsets, grouped.bags, W, x)
    return torch.empty_like(found).scatter_(0, grouped.order.long(), found)
