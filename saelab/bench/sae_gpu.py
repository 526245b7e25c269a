"""A full optimiser step on a GPU, with torch's sparse products and with the Triton kernels, against a bfloat16 product.

The target is 5 million tokens a second at 768 -> 24576, k 32, batch 32768 on an H200. `waits` counts how often a step
makes the host wait for the device: it should be 0.
"""

import warnings
from collections.abc import Callable, Iterator
from typing import Any

import torch

from saelab.bench.sae import MB, alternate, record
from saelab.errors import UserError
from saelab.sae import SAEConfig, Trainer

WARM_UP = 3  # steps before anything is measured: Triton compiles, the allocator fills


def cases(shape: list[int], k: int, kernels: list[str], rounds: int, device: str) -> Iterator[dict[str, Any]]:
    """One record for each of `kernels`; a line that says why, where there is no GPU or a path can't run."""
    d_in, latents, batch = shape
    if device == "cuda" and not torch.cuda.is_available():
        yield {"case": f"sae step on cuda, {d_in}->{latents}, batch {batch}", "skipped": "no CUDA device"}
        return
    for name in kernels:
        case = f"sae step on {device}, kernels={name} {d_in}->{latents}, batch {batch}"
        try:
            yield measured(case, SAEConfig(d_in, latents, k=k, kernels=name), batch, device, rounds)
        except UserError as error:
            yield {"case": case, "skipped": str(error)}


def measured(case: str, config: SAEConfig, batch: int, device: str, rounds: int) -> dict[str, Any]:
    """Median seconds of a step and of the product, each until the device is done."""
    x = torch.randn(batch, config.d_in, device=device)
    trainer = Trainer(config, device)
    for _ in range(WARM_UP):
        trainer.step(x)
    waits = _waits(lambda: trainer.step(x))
    before = torch.cuda.memory_allocated() if device == "cuda" else 0
    left, right = x.bfloat16(), trainer.weights["W_enc"].bfloat16().T
    product, own = alternate(_wait_for(lambda: left @ right), _wait_for(lambda: trainer.step(x)), rounds)
    del left, right
    if device == "cuda":
        torch.cuda.reset_peak_memory_stats()
        trainer.step(x)
    peak = torch.cuda.max_memory_allocated() - before if device == "cuda" else 0
    return {**record(case, own, product, batch, peak / MB), "screened": trainer.screened, "waits": waits}


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
