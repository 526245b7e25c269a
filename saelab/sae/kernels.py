"""Triton kernels for the two sparse products of a training step: an option on CUDA (`SAEConfig.kernels`).

Both have the signatures and the results of their twins in `sparse.py`. Each program sums in float32, pair after pair in
the order given and without atomics, so that the same input gives the same bits. Storage may be float32, bfloat16 or
float16, indices int32 or int64. Importing this module needs the package triton.
"""

import os

import torch
import triton
import triton.language as tl
from jaxtyping import Float, Int
from torch import Tensor

WIDTH = 256  # units of the activations that a program holds at once, at most
PAIRS = 8  # pairs whose rows are under way at once


def runs_on(device: torch.device) -> bool:
    """Whether these kernels run on the device's tensors: CUDA, or any in Triton's interpreter."""
    return device.type == "cuda" or os.environ.get("TRITON_INTERPRET") == "1"


def weighted_sums(
    offsets: Int[Tensor, "n+1"],
    columns: Int[Tensor, "pairs"],
    weights: Float[Tensor, "pairs"],
    source: Float[Tensor, "m d_in"],
    out: Float[Tensor, "n d_in"],
) -> Float[Tensor, "n d_in"]:
    """out[i] = sum over j in offsets[i]:offsets[i + 1] of weights[j] source[columns[j]], into `out` (contiguous)."""
    rows, d_in = out.shape
    width = _width(d_in)
    if out.numel():
        grid = (rows, triton.cdiv(d_in, width))
        columns, weights, source = columns.contiguous(), weights.contiguous(), source.contiguous()
        with torch.cuda.device_of(out):
            _weighted_sums[grid](offsets, columns, weights, source, out, d_in, WIDTH=width, PAIRS=PAIRS)
    return out


def sampled_products(
    offsets: Int[Tensor, "n+1"],
    columns: Int[Tensor, "pairs"],
    left: Float[Tensor, "n d_in"],
    right: Float[Tensor, "m d_in"],
) -> Float[Tensor, "pairs"]:
    """<left[i], right[column]> for each column in columns[offsets[i]:offsets[i + 1]], float32."""
    out = torch.empty(len(columns), device=left.device)
    d_in = left.shape[1]
    if len(columns):
        columns, left, right = columns.contiguous(), left.contiguous(), right.contiguous()
        with torch.cuda.device_of(left):  # Triton starts kernels on the current device
            _sampled_products[(len(left),)](offsets, columns, left, right, out, d_in, WIDTH=_width(d_in), PAIRS=PAIRS)
    return out


def _width(d_in: int) -> int:
    return min(WIDTH, triton.next_power_of_2(d_in))


@triton.jit
def _weighted_sums(offsets, columns, weights, source, out, d_in, WIDTH: tl.constexpr, PAIRS: tl.constexpr):
    row = tl.program_id(0).to(tl.int64)
    units = tl.program_id(1) * WIDTH + tl.arange(0, WIDTH)
    stop = tl.load(offsets + row + 1).to(tl.int64)
    total = tl.zeros([WIDTH], tl.float32)
    for first in range(tl.load(offsets + row).to(tl.int64), stop, PAIRS):
        pairs = first + tl.arange(0, PAIRS)
        column = tl.load(columns + pairs, mask=pairs < stop, other=0).to(tl.int64)
        weight = tl.load(weights + pairs, mask=pairs < stop, other=0).to(tl.float32)
        mask = (pairs < stop)[:, None] & (units < d_in)[None, :]
        rows = tl.load(source + column[:, None] * d_in + units[None, :], mask=mask, other=0).to(tl.float32)
        total += tl.sum(weight[:, None] * rows, 0)
    tl.store(out + row * d_in + units, total, mask=units < d_in)


@triton.jit
def _sampled_products(offsets, columns, left, right, out, d_in, WIDTH: tl.constexpr, PAIRS: tl.constexpr):
    row = tl.program_id(0).to(tl.int64)
    stop = tl.load(offsets + row + 1).to(tl.int64)
    for first in range(tl.load(offsets + row).to(tl.int64), stop, PAIRS):
        pairs = first + tl.arange(0, PAIRS)
        column = tl.load(columns + pairs, mask=pairs < stop, other=0).to(tl.int64)
        total = tl.zeros([PAIRS], tl.float32)
        for start in range(0, d_in, WIDTH):
            units = start + tl.arange(0, WIDTH)
            ours = tl.load(left + row * d_in + units, mask=units < d_in, other=0).to(tl.float32)
            mask = (pairs < stop)[:, None] & (units < d_in)[None, :]
            theirs = tl.load(right + column[:, None] * d_in + units[None, :], mask=mask, other=0).to(tl.float32)
            total += tl.sum(ours[None, :] * theirs, 1)
        tl.store(out + pairs, total, mask=pairs < stop)
