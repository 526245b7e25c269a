"""Training on the fly against its two halves: the host alone, and the SAE alone on tokens that are there already.

On one device both share it, so `floor_seconds` is the sum of the halves; `ratio` is our time over it (promised: at most
1.11, 90 % of what is possible). Times are the processor's where `device` is the CPU, so that other work doesn't count.
"""

import resource
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from saelab import cache, hosts, images
from saelab.bench.cache import KILOBYTES
from saelab.cache.decks import HELD
from saelab.cache.stream import together
from saelab.sae import SAEConfig, Trainer


def cases(
    name: str, layer: str, pictures: int, superblocks: int, latents: int, k: int, batch: int, device: str
) -> Iterator[dict[str, Any]]:
    """One record: a pass of `pictures` noise pictures in so many superblocks (more than 8, else one holds all).

    Eight parameters: the fields of conf/bench.yaml's `stream`.
    """
    host = hosts.load(name, weights="random", device=device)
    with tempfile.TemporaryDirectory() as folder:
        for i in range(pictures):
            noise = np.random.default_rng(i).integers(0, 256, (256, 256, 3), dtype=np.uint8)
            Image.fromarray(noise).save(Path(folder) / f"{i:05d}.jpg")
        photos = images.load("folder", root=folder)
        each = -(-len(photos.ids("mine")) // superblocks)
        stores = cache.recompute(photos, host, [layer], Path(folder) / "runs", batch_size=each)
        made = cache.stream(stores, batch, 0, HELD // 2 * each)[layer]
        trainer = Trainer(SAEConfig(made.d_in, latents, k=k), device)
        steps = made.steps_per_epoch
        x = made.batch(steps - 1)  # leaves the last deck in memory, so that each pass makes all superblocks
        trainer.step(x)

        def host_alone() -> None:
            for _ in made.blocks.run(0, made.blocks.count):
                pass

        def sae_alone() -> None:
            for _ in range(steps):
                trainer.step(x)

        def both() -> None:
            for _, _, x in together({layer: made}, {layer: (0, steps)}):
                trainer.step(x)

        halves, own = [_seconds(action, device) for action in (host_alone, sae_alone)], _seconds(both, device)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / KILOBYTES
    yield {
        "case": f"stream, {name} {layer}, {made.d_in}->{latents}, batch {made.batch_size}, {superblocks} superblocks",
        "tokens_per_s": round(steps * made.batch_size / own),
        "seconds": round(own, 3),
        "host_seconds": round(halves[0], 3),
        "sae_seconds": round(halves[1], 3),
        "floor_seconds": round(sum(halves), 3),
        "ratio": round(own / sum(halves), 3),
        "peak_mb": round(peak),
    }


def _seconds(action: Callable[[], None], device: str) -> float:
    """Seconds until the device is done: of the processor on the CPU, else of the clock."""
    clock = time.process_time if device == "cpu" else time.perf_counter
    start = clock()
    action()
    if device.startswith("cuda"):
        torch.cuda.synchronize()
    return clock() - start
