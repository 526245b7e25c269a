"""Rough products x W' + bias, in bfloat16 or int8, and the largest of them: candidates for the screen.

bfloat16 keeps 8 bits of each number. int8 keeps each row of x and of W as integers up to 127 and one float32 scale
(the row's largest number), and sums exactly, in int32; a row with one outlier rounds its other numbers by 1/254 of it.
float8 keeps 4 bits of each number, with such scales, on cards that have it.
On the CPU the product is worked out for `ROWS` rows at a time, then widened and looked through for `RANKED`, in the
cache.
"""

from collections.abc import Callable, Iterator

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn.functional import pad

from saelab.sae import select
from saelab.sae.reach import Reached, join, reach

NUMBERS = ("bfloat16", "int8", "float8")  # that a rough product may be of
ROWS = 512  # that a CPU multiplies at once
RANKED = 128  # of these, that it widens and looks through at once: they are still in its second cache
LARGEST_FLOAT8 = 448.0  # of e4m3
WIDE = 512  # numbers of an activation from which on a rough product pays on a CPU with AMX, or with int8 alone
SIDE = 16  # cards multiply float8 matrices whose sides it divides
LARGEST = 127  # int8, and its negative: so that a row and its negative round alike


def has_fast_bfloat16(device: torch.device) -> bool:
    """Whether the device multiplies bfloat16 matrices in hardware."""
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    return device.type == "cpu" and _cpu_has("_is_avx512_bf16_supported", "_is_amx_tile_supported")


def has_fast_int8(device: torch.device) -> bool:
    """Whether the device is a CPU that multiplies int8 matrices in hardware, to int32 (VNNI)."""
    return device.type == "cpu" and torch.backends.mkldnn.is_available() and _cpu_has("_is_vnni_supported")


def has_amx(device: torch.device) -> bool:
    """Whether the device is a CPU that multiplies tiles of bfloat16 and int8 (AMX)."""
    return device.type == "cpu" and _cpu_has("_is_amx_tile_supported")


def numbers_that_pay(d_in: int, device: torch.device) -> tuple[str, ...]:
    """Those by which a rough product makes a step faster on the device, the fastest first.

    int8 where a CPU has instructions for it, else bfloat16 where the device has. With AMX both products are so fast
    that choosing takes longer: there bfloat16 was ahead, as it needs fewer candidates, and for narrow activations
    float32 (docs/sae.md; choosing is faster since then). For these float32 was ahead on a CPU with int8's instructions
    alone, too. float8 is left to whoever asks for it.
    """
    if has_amx(device):
        return ("bfloat16",) if d_in >= WIDE else ()
    if d_in < WIDE and not has_fast_bfloat16(device):
        return ()
    known = {"int8": has_fast_int8, "bfloat16": has_fast_bfloat16}
    return tuple(by for by, is_fast in known.items() if is_fast(device))


def has_float8(device: torch.device) -> bool:
    """Whether the device is a card that multiplies float8 matrices with a scale for each row (Hopper and later)."""
    return device.type == "cuda" and torch.cuda.get_device_capability(device) >= (9, 0)


def _cpu_has(*tests: str) -> bool:
    return any(getattr(torch.cpu, test, bool)() for test in tests)


def quantise(rows: Float[Tensor, "n d"]) -> tuple[Int[Tensor, "n d"], Float[Tensor, "n"]]:
    """Each row as int8 from -127 to 127, and the float32 it is to be multiplied by: its largest |number| / 127.

    No number moves by more than half of that. The scale of a row with NaN or infinity is not finite.
    """
    whole, scale = torch.empty(rows.shape, dtype=torch.int8), rows.new_empty(len(rows))
    for first in range(0, len(rows), ROWS):
        some = rows[first : first + ROWS]
        per_unit = torch.div(some.abs().amax(1).clamp_(min=1e-30), LARGEST, out=scale[first : first + ROWS])
        whole[first : first + ROWS] = (some / per_unit.unsqueeze(1)).round_()
    return whole, scale


class _Bfloat16:
    """x W' + bias by bfloat16 instructions."""

    def __init__(self, x: Tensor, W: Tensor, bias: Tensor) -> None:
        self.x, self.W, self.bias = x, W.bfloat16().T, bias.bfloat16()
        self.kept = torch.empty(min(ROWS, len(x)), len(W), dtype=torch.bfloat16)

    def multiply(self, first: int) -> Tensor:
        some = self.x[first : first + ROWS].bfloat16()
        return torch.addmm(self.bias, some, self.W, out=self.kept[: len(some)])

    def widen(self, part: Tensor, first: int, out: Tensor) -> None:
        out.copy_(part)


class _Int8:
    """x W' + bias by int8 instructions: sums are exact, in int32."""

    def __init__(self, x: Tensor, W: Tensor, bias: Tensor) -> None:
        (self.x, self.scale), (self.W, self.per_latent), self.bias = quantise(x), quantise(W), bias
        self.kept = torch.empty(min(ROWS, len(x)), len(W), dtype=torch.int32)

    def multiply(self, first: int) -> Tensor:
        some = self.x[first : first + ROWS]
        return torch._int_mm(some, self.W.T, out=self.kept[: len(some)])

    def widen(self, part: Tensor, first: int, out: Tensor) -> None:
        out.copy_(part).mul_(self.scale[first : first + len(part)].unsqueeze(1))
        torch.addcmul(self.bias, out, self.per_latent, out=out)


def in_chunks(
    x: Float[Tensor, "rows d_in"], W: Float[Tensor, "n d_in"], bias: Float[Tensor, "n"], by: str = "bfloat16"
) -> Iterator[tuple[int, Float[Tensor, "some n"]]]:
    """The rough product of up to RANKED rows after another, in float32 in a kept buffer, each with its first row.

    On the CPU; `by`: bfloat16 | int8.
    """
    narrow = (_Int8 if by == "int8" else _Bfloat16)(x, W, bias)
    wide = torch.empty(min(RANKED, len(x)), len(W))
    for first in range(0, len(x), ROWS):
        part = narrow.multiply(first)
        for start in range(0, len(part), RANKED):
            some = part[start : start + RANKED]
            narrow.widen(some, first + start, wide[: len(some)])
            yield first + start, wide[: len(some)]


def rank_roughly(
    x: Float[Tensor, "rows d_in"],
    W: Float[Tensor, "n d_in"],
    bias: Float[Tensor, "n"],
    count: int,
    by: str = "bfloat16",
    kernels: str = "torch",
) -> tuple[Float[Tensor, "rows count"], Int[Tensor, "rows count"]]:
    """The `count` largest of each row of the rough product, and where they lie.

    `kernels=triton`: of bfloat16's, where `maxima.serves`, all but a few, without writing the product.
    """
    if kernels == "triton" and by == "bfloat16" and (x.device.type == "cpu" or has_fast_bfloat16(x.device)):
        from saelab.sae import maxima

        if maxima.serves(len(W), count):
            return maxima.rank_roughly(x, W, bias, count)
    parts = in_chunks(x, W, bias, by) if x.device.type == "cpu" else _elsewhere(x, W, bias, by)
    return select.join_top_k(parts, x, count)


def reach_roughly(
    x: Float[Tensor, "rows d_in"], W: Float[Tensor, "n d_in"], bias: Float[Tensor, "n"], count: int, by: str
) -> Reached:
    """The `count` largest of each row of the rough product, and a few more: on the CPU, of one row or more."""
    return join([reach(wide, count) for _, wide in in_chunks(x, W, bias, by)])


def rank_batch_roughly(
    x: Float[Tensor, "rows d_in"],
    W: Float[Tensor, "n d_in"],
    bias: Float[Tensor, "n"],
    count: int,
    by: str = "bfloat16",
) -> Int[Tensor, "some"]:
    """Flat positions of the `count` largest of the whole rough product, or about so many, in the order of these."""
    rows, n = len(x), len(W)
    if x.device.type != "cpu":
        return select.join_top_of_batch(_elsewhere(x, W, bias, by), x, n, count)[1]
    rough = torch.empty(rows, n, dtype=torch.bfloat16)  # all of it; int8's is rounded again
    grouped = select.grouped(rows, n, count)
    maxima = torch.empty(rows, n // select.GROUP if grouped else 0)
    for first, wide in in_chunks(x, W, bias, by):
        some = slice(first, first + len(wide))
        rough[some] = wide
        if grouped:
            maxima[some] = select.maxima_of(wide, select.GROUP).bfloat16()  # the maxima of `rough`
    return select.about_the_largest(rough, maxima, count) if grouped else select.top_of_batch(rough.float(), count)[1]


def _elsewhere(x: Tensor, W: Tensor, bias: Tensor, by: str) -> Iterator[tuple[int, Tensor]]:
    """The rough product of `rows_at_once` after another, in float32, each with its first row: off the CPU."""
    multiply = _by_float8(W, bias) if by == "float8" else _by_bfloat16(W, bias)
    step = select.rows_at_once(len(W))
    yield from ((first, multiply(x[first : first + step])) for first in range(0, len(x), step))


def _by_bfloat16(W: Tensor, bias: Tensor) -> Callable[[Tensor], Tensor]:
    narrow, own = W.bfloat16().T, bias.bfloat16()
    return lambda some: torch.addmm(own, some.bfloat16(), narrow).float()


def _by_float8(W: Tensor, bias: Tensor) -> Callable[[Tensor], Tensor]:
    """Each row of x and of W in e4m3 with a scale of its own; sums in float32, rounded to bfloat16."""
    n, d_in = W.shape
    more = (0, -d_in % SIDE)  # zeros, which add nothing
    narrow, per_latent = quantise_float8(pad(W, (*more, 0, -n % SIDE)))

    def multiply(some: Tensor) -> Tensor:
        rows, scale = quantise_float8(pad(some, more))
        found = torch._scaled_mm(rows, narrow.T, scale, per_latent.T, out_dtype=torch.bfloat16, use_fast_accum=True)
        return found[:, :n].float().add_(bias)

    return multiply


def quantise_float8(rows: Float[Tensor, "n d"]) -> tuple[Float[Tensor, "n d"], Float[Tensor, "n 1"]]:
    """Each row as float8 (e4m3: 4 bits of each number, up to 448), and the float32 it is to be multiplied by."""
    scale = rows.abs().amax(1, keepdim=True).clamp_(min=1e-30).div_(LARGEST_FLOAT8)
    return (rows / scale).to(torch.float8_e4m3fn), scale
