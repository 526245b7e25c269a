"""Selection: the k largest of each row, and the largest of a whole batch, where rows are thousands of latents wide.

The k largest numbers lie in the k groups with the largest maxima. So one pass takes the maxima of short groups, the
groups are ranked, and only the numbers of the best groups are ranked again. On the CPU numpy ranks (vectorised, and
two to three times faster than torch's top-k); elsewhere torch does.
"""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn.functional import max_pool1d

from saelab.sae.sparse import sampled_products

GROUP = 16  # latents a group: a cache line of float32


def top_k(x: Float[Tensor, "rows n"], k: int) -> tuple[Float[Tensor, "rows k"], Int[Tensor, "rows k"]]:
    """The k largest of each row and where they lie (int64), in no particular order."""
    rows, n = x.shape
    if n % GROUP or n // GROUP < 4 * k or not rows:
        return _rank(x, k)
    x = x.contiguous()
    best = _rank(_maxima(x), k)[1]
    lines = best + torch.arange(0, rows * n // GROUP, n // GROUP, device=x.device).unsqueeze(1)
    near = x.view(-1, GROUP).index_select(0, lines.view(-1)).view(rows, k * GROUP)
    values, inner = _rank(near, k)
    group = torch.div(inner, GROUP, rounding_mode="floor")
    return values, best.gather(1, group) * GROUP + inner % GROUP


def top_of_batch(x: Float[Tensor, "rows n"], count: int) -> tuple[Float[Tensor, "count"], Int[Tensor, "count"]]:
    """The `count` largest of all of x and their flat positions, in the order of these (BatchTopK)."""
    rows, n = x.shape
    if n % GROUP or rows * n // GROUP < 4 * count:
        values, places = _rank(x.reshape(1, -1), count)
        places, order = places.view(-1).sort()
        return values.view(-1)[order], places
    x = x.contiguous()
    best = _rank(_maxima(x).view(1, -1), count)[1].view(-1).sort().values
    near = x.view(-1, GROUP).index_select(0, best).view(1, -1)
    values, inner = _rank(near, count)
    inner, order = inner.view(-1).sort()
    places = best[torch.div(inner, GROUP, rounding_mode="floor")] * GROUP + inner % GROUP
    return values.view(-1)[order], places


def screened_top_k(
    x: Float[Tensor, "rows d_in"], W: Float[Tensor, "n d_in"], bias: Float[Tensor, "n"], k: int
) -> tuple[Float[Tensor, "rows k"], Int[Tensor, "rows k"]]:
    """The k largest of each row of x W' + bias: a bfloat16 product chooses 1.5 k candidates, float32 rescores them.

    Values are float32's own; a true member is lost only where bfloat16's rounding ranks it below all candidates.
    """
    count = min(len(W), k + (k + 1) // 2)
    rough = torch.addmm(bias.bfloat16(), x.bfloat16(), W.bfloat16().T).float()
    candidates = top_k(rough, count)[1]
    bags = torch.arange(0, candidates.numel() + 1, count, device=x.device)
    exact = sampled_products(bags, candidates.reshape(-1), x, W).view(-1, count) + bias[candidates]
    values, inner = _rank(exact, k)
    return values, candidates.gather(1, inner)


def fast_bfloat16(device: torch.device) -> bool:
    """Whether the device multiplies bfloat16 matrices in hardware."""
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    tests = ("_is_avx512_bf16_supported", "_is_amx_tile_supported")
    return device.type == "cpu" and any(getattr(torch.cpu, test, bool)() for test in tests)


def _maxima(x: Float[Tensor, "rows n"]) -> Float[Tensor, "rows groups"]:
    """The largest of each group of neighbours."""
    return max_pool1d(x.unsqueeze(1), GROUP).squeeze(1)


def _rank(x: Float[Tensor, "rows n"], k: int) -> tuple[Float[Tensor, "rows k"], Int[Tensor, "rows k"]]:
    if x.device.type != "cpu" or x.dtype not in (torch.float32, torch.float64) or k == x.shape[1]:
        return x.topk(k, dim=1, sorted=False)
    array = x.detach().numpy()
    last = array.shape[1] - k
    chosen = in_threads(lambda part: np.argpartition(array[part], last, axis=1)[:, last:], len(array))
    indices = torch.from_numpy(np.concatenate(chosen))
    return x.gather(1, indices), indices


def in_threads(work: Callable[[slice], np.ndarray], rows: int) -> list[np.ndarray]:
    """`work` on equal slices of the rows, one for each of torch's threads; results in order."""
    threads = min(torch.get_num_threads(), max(1, rows))
    edges = [rows * i // threads for i in range(threads + 1)]
    parts = [slice(a, b) for a, b in pairwise(edges)]
    if threads == 1:
        return [work(parts[0])]
    with ThreadPoolExecutor(threads) as pool:
        return list(pool.map(work, parts))
