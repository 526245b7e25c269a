"""A full optimiser step, with and without silent latents, and the loader, against one float32 encoder product."""

import statistics
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from saelab.cache import Batches
from saelab.sae import SAEConfig, Trainer

MB = 2**20


def cases(
    shapes: list[list[int]], k: int, rules: list[str], rounds: int, screens: Sequence[str] = ("auto",)
) -> Iterator[dict[str, Any]]:
    """Step, step with a quarter of the latents silent (`over_plain_step`: in turns with one without), and loader.

    `screens`: products that choose latents; a step is named by the one that it settles on, and measured once.
    """
    for d_in, latents, batch in shapes:
        for rule in rules:
            seen = set()
            for screen in screens:
                trainer, x = _trainer(d_in, latents, batch, k, rule, screen)
                if trainer.screen not in seen:
                    seen.add(trainer.screen)
                    name = f"sae step, {rule} {d_in}->{latents}, {trainer.screen}"
                    yield measured(name, trainer, partial(trainer.step, x), x, rounds)
        trainer, x = _trainer(d_in, latents, batch, k, "topk")
        quarter = slice(0, latents // 4)
        trainer.weights["W_enc"][quarter] *= 0.01  # too faint to be kept

        def silent(trainer: Trainer = trainer, x: torch.Tensor = x, quarter: slice = quarter) -> None:
            trainer.silent[quarter] = trainer.config.dead_after
            trainer.weights["b_enc"][quarter] = 0
            trainer.step(x)

        found = measured(f"sae step, AuxK on a quarter, {d_in}->{latents}", trainer, silent, x, rounds)
        plain, _ = _trainer(d_in, latents, batch, k, "topk")
        without, own = alternate(partial(plain.step, x), silent, rounds)
        del plain
        yield {**found, "over_plain_step": round(own / without, 3)}
        yield loader(d_in, batch, trainer, x, rounds)


def measured(case: str, trainer: Trainer, step: Callable[[], Any], x: torch.Tensor, rounds: int) -> dict[str, Any]:
    """Median seconds of `step` and of the encoder product, taken in turns."""
    weights, out = trainer.weights["W_enc"], x.new_empty(len(x), trainer.config.latents)
    bias = x.new_zeros(trainer.config.latents)
    product, own = alternate(lambda: torch.addmm(bias, x, weights.T, out=out), step, rounds)
    del out
    return record(case, own, product, len(x), peak_above(trainer, step))


def loader(
    d_in: int, batch: int, trainer: Trainer, x: torch.Tensor, rounds: int, rows: int = 100_000
) -> dict[str, Any]:
    """A shuffled batch from a memory-mapped file in the page cache; its ratio is to the whole step."""
    with tempfile.TemporaryDirectory() as folder:
        array = np.random.default_rng(0).standard_normal((rows, d_in), dtype=np.float32).astype(np.float16)
        np.save(Path(folder) / "tokens.npy", array)
        batches = Batches(np.load(Path(folder) / "tokens.npy", mmap_mode="r"), batch)
        steps = iter(range(10**6))
        step, own = alternate(lambda: trainer.step(x), lambda: batches.batch(next(steps)), rounds)
    return record(f"loader, {d_in}, against a step", own, step, batch, 0.0)


def alternate(theirs: Callable[[], Any], ours: Callable[[], Any], rounds: int) -> tuple[float, float]:
    """Median seconds of two pieces of work, run in turns so that a machine's moods meet both; one round warms up."""
    seconds: tuple[list[float], list[float]] = ([], [])
    for turn in range(rounds + 1):
        for work, found in zip((theirs, ours), seconds, strict=True):
            start = time.perf_counter()
            work()
            if turn:
                found.append(time.perf_counter() - start)
    return statistics.median(seconds[0]), statistics.median(seconds[1])


def record(case: str, own: float, product: float, tokens: int, peak_mb: float) -> dict[str, Any]:
    """One line of the bench."""
    return {
        "case": case,
        "tokens_per_s": round(tokens / own),
        "seconds": round(own, 5),
        "gemm_seconds": round(product, 5),
        "ratio": round(own / product, 3),
        "peak_mb": round(peak_mb, 1),
    }


def peak_above(trainer: Trainer, step: Callable[[], Any]) -> float:
    """Megabytes that a step takes at its peak beyond weights, gradients, optimiser and what else is there (Linux)."""
    trainer._pre = None  # the kept buffer of pre-activations counts as the step's
    reset, status = Path("/proc/self/clear_refs"), Path("/proc/self/status")
    if not status.exists():
        return 0.0
    reset.write_text("5")
    before = _status(status, "VmRSS")
    step()
    return (_status(status, "VmHWM") - before) / 1024


def _status(path: Path, field: str) -> int:
    return next(int(line.split()[1]) for line in path.read_text().splitlines() if line.startswith(field))


def _trainer(
    d_in: int, latents: int, batch: int, k: int, rule: str, screen: str = "auto"
) -> tuple[Trainer, torch.Tensor]:
    x = torch.randn(batch, d_in, generator=torch.Generator().manual_seed(0))
    trainer = Trainer(SAEConfig(d_in, latents, rule=rule, k=k, screen=screen))
    trainer.step(x)
    return trainer, x
