"""The largest of x W' + bias without x W' + bias: a Triton kernel that writes `KEPT` of every `MEMBERS` numbers.

A program multiplies tiles of x and W, in bfloat16 with float32 sums, and writes the largest of each group of latents:
an eighth of the product's numbers, which are ranked then. Of each `MEMBERS`-th of the latents a group has one, at the
place after the last one's, so that neither neighbours nor repeated blocks of rows share a group; in a tile one thread
has them all. Each number holds in its last bits which member it is, so it is right to 2^-18 of itself.
The k largest of a row are among those written unless more than `KEPT` of them share a group: where the largest lie at
random and `serves` holds, fewer than 1 in 100,000 are lost so. `screen_recall` counts them with the rest.
"""

import torch
import triton
import triton.language as tl
from jaxtyping import Float, Int
from torch import Tensor

from saelab.sae import select

MEMBERS, KEPT = 32, 4  # latents of a group, and how many of them are written
ROWS, GROUPS, UNITS = 128, 8, 64  # of a tile: 128 tokens x 256 latents, 64 units of the activations at a time
STRIP = 8  # tiles of tokens that go through the latents side by side, so that a card's cache holds what they share
WARPS, STAGES = 8, 3


def serves(latents: int, count: int) -> bool:
    """Whether the `count` largest of so many latents are seldom more than `KEPT` of a group."""
    return latents % MEMBERS == 0 and latents >= 128 * count


def rank_roughly(
    x: Float[Tensor, "rows d_in"], W: Float[Tensor, "n d_in"], bias: Float[Tensor, "n"], count: int
) -> tuple[Float[Tensor, "rows count"], Int[Tensor, "rows count"]]:
    """About the `count` largest of each row of the bfloat16 product, and where they lie, in the order of these.

    `serves` says of which sizes. What is no number counts as the largest. Rows go by chunks: at most an eighth of
    `select.AT_ONCE` numbers are written at once.
    """
    narrow, values = W.bfloat16(), x.new_empty(len(x), count)
    places = torch.empty(len(x), count, dtype=torch.int64, device=x.device)
    step = select.rows_at_once(len(W))
    for first in range(0, len(x), step):
        last = first + step
        written = largest_of_groups(x[first:last].bfloat16(), narrow, bias)
        values[first:last], inner = select.top_k(written, count)
        places[first:last] = find_members(values[first:last], inner, len(W) // MEMBERS)
    places, order = places.sort(dim=1)
    return values.gather(1, order), places


def largest_of_groups(
    x: Float[Tensor, "rows d_in"], W: Float[Tensor, "n d_in"], bias: Float[Tensor, "n"]
) -> Float[Tensor, "rows kept_groups"]:
    """The `KEPT` largest of each group of x W' + bias, from bfloat16: first all groups' largest, then their second.

    float32, in whose last 5 bits `find_members` finds the place in the group. NaN and infinity become float32's largest
    finite numbers.
    """
    (rows, d_in), groups = x.shape, len(W) // MEMBERS
    out = torch.empty(rows, KEPT * groups, device=x.device)
    if x.device.type == "cpu":  # Triton's interpreter multiplies bfloat16's bits
        x, W = x.float(), W.float()
    grid = (triton.cdiv(rows, ROWS) * triton.cdiv(groups, GROUPS),)
    sizes = {"MEMBERS": MEMBERS, "KEPT": KEPT, "ROWS": ROWS, "GROUPS": GROUPS, "UNITS": UNITS, "STRIP": STRIP}
    x, W, bias = x.contiguous(), W.contiguous(), bias.contiguous()
    with torch.cuda.device_of(x):
        _largest_of_groups[grid](x, W, bias, out, rows, groups, d_in, **sizes, num_warps=WARPS, num_stages=STAGES)
    return out


def find_members(values: Float[Tensor, "rows k"], places: Int[Tensor, "rows k"], groups: int) -> Int[Tensor, "rows k"]:
    """The latents of numbers that `largest_of_groups` wrote, by these and their places there."""
    bits = values.view(torch.int32)
    member = (MEMBERS - 1) - ((bits ^ ((bits >> 31) & 0x7FFFFFFF)) & (MEMBERS - 1))
    return member * groups + (places + member) % groups


@triton.jit
def _largest_of_groups(
    x,
    W,
    bias,
    out,
    rows,
    groups,
    d_in,
    MEMBERS: tl.constexpr,
    KEPT: tl.constexpr,
    ROWS: tl.constexpr,
    GROUPS: tl.constexpr,
    UNITS: tl.constexpr,
    STRIP: tl.constexpr,
):
    # tiles of tokens in strips: within one, all of them come before the next tile of groups
    tiles, across = tl.cdiv(rows, ROWS), tl.cdiv(groups, GROUPS)
    strip = tl.program_id(0) // (STRIP * across)
    high = tl.minimum(tiles - strip * STRIP, STRIP)
    inside = tl.program_id(0) % (STRIP * across)
    row = (strip * STRIP + inside % high) * ROWS + tl.arange(0, ROWS)
    first = inside // high * GROUPS

    column = tl.arange(0, MEMBERS * GROUPS)
    group, member = first + column % GROUPS, column // GROUPS
    latent = member * groups + (group + member) % groups
    units = tl.arange(0, UNITS)
    ours = x + row[:, None].to(tl.int64) * d_in + units[None, :]
    theirs = W + latent[None, :].to(tl.int64) * d_in + units[:, None]
    total = tl.zeros([ROWS, MEMBERS * GROUPS], tl.float32)
    for start in range(0, d_in, UNITS):
        left = tl.load(ours + start, mask=(row < rows)[:, None] & (start + units < d_in)[None, :], other=0)
        right = tl.load(theirs + start, mask=(group < groups)[None, :] & (start + units < d_in)[:, None], other=0)
        total = tl.dot(left, right, total)
    total += tl.load(bias + latent, mask=group < groups, other=0)[None, :]

    # integers that rise as the numbers do, NaN and infinity as the largest that is finite; the last bits say which
    # member, of equals the first as the larger
    bits = total.to(tl.int32, bitcast=True)
    rising = tl.where(total != total, 0x7F7FFFFF, bits ^ ((bits >> 31) & 0x7FFFFFFF))
    rising = tl.minimum(tl.maximum(rising, -0x7F800000), 0x7F7FFFFF)
    keys = (rising & -MEMBERS) | (MEMBERS - 1 - member)[None, :]
    keys = tl.reshape(keys, [ROWS, MEMBERS, GROUPS])
    group = first + tl.arange(0, GROUPS)
    place = out + row[:, None].to(tl.int64) * (KEPT * groups) + group[None, :]
    for rank in tl.static_range(KEPT):
        best = tl.max(keys, 1)
        keys = tl.where(keys == best[:, None, :], -0x80000000, keys)
        best ^= (best >> 31) & 0x7FFFFFFF
        inside_both = (row < rows)[:, None] & (group < groups)[None, :]
        tl.store(place + rank * groups, best.to(tl.float32, bitcast=True), mask=inside_both)
