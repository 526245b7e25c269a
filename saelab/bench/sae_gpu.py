"""A full optimiser step on a GPU, by size, precision, kernels and CUDA graph, against what the card allows.

The target is 5 million tokens a second at 768 -> 24576, k 32, batch 32768 on an H200. A line has, beside what `sae`
measures (`gemm_seconds`: of a bfloat16 product): `screen`, what chose in the end; `waits`, how often a step makes the
host wait for the device (it should be 0); `idle`, the share of a step's time in which no kernel runs;
`floor_operations`, the seconds of the encoder product in the line's own precision, and `floor_bytes`, of what Adam and
the tokens have to read and write, at the speed at which this card copies. Last, by precision, FVU and the least
`screen_recall` after some thousand steps on planted tokens. What a card lacks, and what `seconds` leaves no time for,
has a line that says so.
"""

import math
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from saelab.bench.sae import MB, alternate, record
from saelab.errors import UserError
from saelab.sae import SAEConfig, TrainConfig, Trainer, rough

WARM_UP = 5  # steps before anything is measured: Triton compiles, the allocator fills, a graph is captured
PRECISIONS = ("float32", "tf32", "bfloat16", "float8")  # of the product that chooses; the last two are screens
PROFILED = 5  # steps in which kernels are counted
COPIED = 1 << 28  # numbers copied to learn the card's speed
LR, DIRECTIONS, ACTIVE, NOISE = 1e-3, 4, 8, 0.02  # of the planted tokens: times d_in, a token, of each dimension
LAST = 100  # steps whose mean FVU counts


def cases(
    shapes: list[list[int]],
    k: int,
    precisions: list[str],
    kernels: list[str],
    rounds: int,
    steps: int,
    batch: int,
    seconds: int,
    device: str,
) -> Iterator[dict[str, Any]]:
    """A line for each size, precision, kernels, and graph or none; or why there is none. Then what each reaches.

    `steps` of `batch` tokens are trained for FVU. Nothing begins after so many `seconds`.
    Nine parameters: the section `sae_gpu` of bench.yaml, which no other function takes together.
    """
    unknown = [name for name in precisions if name not in PRECISIONS]
    if unknown:
        raise UserError("sae_gpu.precisions", unknown[0], f"one of {', '.join(PRECISIONS)}")
    if device == "cuda" and not torch.cuda.is_available():
        yield {"case": "sae step on cuda", "skipped": "no CUDA device"}
        return
    end, speed = time.monotonic() + seconds, copy_speed(device)
    for d_in, latents, tokens in shapes:
        for precision in precisions:
            for name in kernels:
                line = Line(d_in, latents, tokens, k, precision, name, device)
                case = f"sae step, {line}, kernels={name}"
                yield from _lines(case, end, partial(steps_of, line, rounds, speed))
    for d_in, latents, _ in shapes:
        for precision in precisions:
            line = Line(d_in, latents, batch, k, precision, "torch", device)
            yield from _lines(f"sae after {steps} steps, {line}", end, partial(reach, line, steps))


@dataclass(frozen=True)
class Line:
    """What a line is of."""

    d_in: int
    latents: int
    batch: int
    k: int
    precision: str
    kernels: str
    device: str

    def __str__(self) -> str:
        return f"{self.d_in}->{self.latents} on {self.device}, batch {self.batch}, {self.precision}"

    @property
    def config(self) -> SAEConfig:
        """Of its SAE. Raises UserError for one that can't be trained."""
        chosen = self.precision if self.precision in rough.NUMBERS else "float32"
        return SAEConfig(self.d_in, self.latents, k=self.k, lr=LR, screen=chosen, kernels=self.kernels)


def _lines(case: str, end: float, measure: Callable[[], Iterator[dict[str, Any]]]) -> Iterator[dict[str, Any]]:
    """What is measured, under its name; or why it isn't."""
    if time.monotonic() > end:
        yield {"case": case, "skipped": "no time left: raise sae_gpu.seconds"}
        return
    try:
        for found in measure():
            yield {"case": case, **found}
    except (UserError, RuntimeError) as error:  # of torch too: no memory, a call that a graph can't hold
        yield {"case": case, "skipped": str(error).splitlines()[0]}


def steps_of(line: Line, rounds: int, speed: float) -> Iterator[dict[str, Any]]:
    """A step as it is trained by, and as a CUDA graph where there is one: medians, each until the device is done."""
    config, x = line.config, torch.randn(line.batch, line.d_in, device=line.device)
    floors = {name: round(size / speed, 6) for name, size in bytes_of_step(line).items()}
    for graph in (False, True) if line.device == "cuda" else (False,):
        with products_in(line.precision):
            trainer = Trainer(config, line.device, graph=graph)
            step = partial(trainer.step, x)
            for _ in range(WARM_UP):
                step()
            if trainer.graph is not None and trainer.graph.refusal is not None:
                yield {"graph": graph, "skipped": trainer.graph.refusal}
                return
            floors["floor_operations"] = round(product_seconds(trainer, x, line.precision, rounds), 6)
            found = {**measured(step, trainer, x, rounds), "idle": idle(step), "waits": _waits(step)}
            yield {"graph": graph, "screen": trainer.screen, **found, **floors}


def measured(step: Callable[[], Any], trainer: Trainer, x: Tensor, rounds: int) -> dict[str, Any]:
    """Median seconds of a step and of a bfloat16 product, and the memory that the step adds to what is there."""
    left, right = x.bfloat16(), trainer.weights["W_enc"].bfloat16().T
    product, own = alternate(_wait_for(lambda: left @ right), _wait_for(step), rounds)
    del left, right
    peak = 0
    if x.is_cuda:
        before = torch.cuda.memory_allocated()
        torch.cuda.reset_peak_memory_stats()
        step()
        peak = torch.cuda.max_memory_allocated() - before
    line = record("", own, product, len(x), peak / MB)
    return {name: value for name, value in line.items() if name != "case"}


def idle(step: Callable[[], Any]) -> float | None:
    """Share of the time of some steps in which no kernel runs; None where there is no CUDA."""
    if not torch.cuda.is_available():
        return None
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as seen:
        for _ in range(PROFILED):
            step()
        torch.cuda.synchronize()
    kind = torch.autograd.DeviceType.CUDA
    ranges = [event.time_range for event in seen.events() or () if event.device_type == kind]
    return uncovered([(own.start, own.end) for own in ranges])


def uncovered(spans: Sequence[tuple[float, float]]) -> float | None:
    """Share of the time from the first start to the last end that lies in none of the spans; None without spans."""
    if not spans:
        return None
    first, last, busy, reached = min(spans)[0], max(end for _, end in spans), 0.0, -math.inf
    for start, end in sorted(spans):
        busy += max(0.0, end - max(start, reached))
        reached = max(reached, end)
    return round(1 - busy / (last - first), 4) if last > first else None


def product_seconds(trainer: Trainer, x: Tensor, precision: str, rounds: int) -> float:
    """Median seconds of the encoder product in a precision: what its operations cost this card at the least."""
    W_enc = trainer.weights["W_enc"]
    if precision == "float8":
        (left, per_row), (right, per_latent) = rough.quantise_float8(x), rough.quantise_float8(W_enc)
        multiply = partial(torch._scaled_mm, left, right.T, per_row, per_latent.T, out_dtype=torch.bfloat16)
    else:
        kind = torch.bfloat16 if precision == "bfloat16" else torch.float32
        multiply = partial(torch.mm, x.to(kind), W_enc.to(kind).T)
    return alternate(lambda: None, _wait_for(multiply), rounds)[1]


def bytes_of_step(line: Line) -> dict[str, int]:
    """Bytes that a step reads and writes at the least: of both matrices the weight, two moments and the gradient, each
    read and written once, and the tokens and reconstructions. Beside it those of one row for each of the k pairs, for
    decoding and three gradients: the card's cache spares some of them.
    """
    matrices, pairs = 2 * line.latents * line.d_in, line.batch * line.k * line.d_in
    return {"floor_bytes": 4 * (8 * matrices + 2 * line.batch * line.d_in), "gathers_uncached": 4 * 4 * pairs}


def copy_speed(device: str) -> float:
    """Bytes a second that the device reads and writes in a copy."""
    source = torch.zeros(COPIED if device == "cuda" else 1 << 20, device=device)
    out = torch.empty_like(source)
    return 2 * 4 * source.numel() / alternate(lambda: None, _wait_for(lambda: out.copy_(source)), 5)[1]


def reach(line: Line, steps: int) -> Iterator[dict[str, Any]]:
    """Mean FVU of the last steps, and the least recall of the screen that the trainer measured (None: no screen)."""
    schedule, trainer = TrainConfig(line.batch, steps=steps), Trainer(line.config, line.device)
    fvus, recalls, start = [], [], time.monotonic()
    with products_in(line.precision):
        for step, x in enumerate(planted(line.d_in, line.batch, steps, line.device)):
            found = trainer.step(x, schedule.lr_factor(step, steps))
            fvus.append(found["fvu"])
            recalls += [found["screen_recall"]] if "screen_recall" in found else []
    fvu = float(torch.stack(fvus[-LAST:]).mean())
    recall = float(torch.stack(recalls).min()) if recalls else None
    spent = time.monotonic() - start
    yield {"fvu": round(fvu, 5), "screen_recall": recall, "screen": trainer.screen, "seconds": round(spent, 2)}


def planted(d_in: int, batch: int, steps: int, device: str) -> Iterator[Float[Tensor, "batch d_in"]]:
    """Tokens of a few of many directions each, and noise: the same in every precision."""
    g = torch.Generator(device).manual_seed(0)
    count = DIRECTIONS * d_in
    rows = torch.nn.functional.normalize(torch.randn(count, d_in, generator=g, device=device), dim=1)
    for _ in range(steps):
        # squared, so that some directions are in many tokens and most in few
        which = (torch.rand(batch, ACTIVE, generator=g, device=device).square() * count).long().clamp(max=count - 1)
        sizes = torch.rand(batch, ACTIVE, generator=g, device=device) + 0.5
        noise = torch.randn(batch, d_in, generator=g, device=device)
        yield torch.nn.functional.embedding_bag(which, rows, per_sample_weights=sizes, mode="sum") + NOISE * noise


@contextmanager
def products_in(precision: str) -> Iterator[None]:
    """float32 products by TF32 instructions within the block, where that is the precision."""
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("high" if precision == "tf32" else "highest")
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)


def _wait_for(work: Callable[[], Any]) -> Callable[[], None]:
    def run() -> None:
        work()
        if torch.cuda.is_available():
            torch.cuda.synchronize()

    return run


def _waits(step: Callable[[], Any]) -> int:
    """How many calls of a step torch knows to wait for the device."""
    if not torch.cuda.is_available():
        return 0
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        torch.cuda.set_sync_debug_mode("warn")
        try:
            step()
        finally:
            torch.cuda.set_sync_debug_mode("default")
    return sum("synchroniz" in str(warning.message) for warning in caught)
