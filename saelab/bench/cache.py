"""Caching against the bare forward pass of the same model and loader; reading against a raw memory map.

`ratio` is our time over theirs. Promised: at most 1.05 for writing, at most 1.11 (90 % of the rate) for reading.
"""

import resource
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from saelab import cache, hosts, images
from saelab.cache import Batches

_REPEATS = 5  # alternating, the smallest time of each counts: the machine's other work only ever adds
KILOBYTES = 1024 if sys.platform != "darwin" else 1024**2  # ru_maxrss is in kilobytes, on a Mac in bytes


def cases() -> Iterator[dict[str, Any]]:
    """One record for each case."""
    yield from (writing("efficientnet_lite0", ["in:_avg_pooling"]), writing("timm:vit_tiny_patch16_224", ["blocks.10"]))
    yield from (reading(768, 4096), reading(768, 4096, shuffled=True))


def writing(name: str, layers: list[str], count: int = 64, batch_size: int = 16) -> dict[str, Any]:
    """`cache.write` of `count` pictures, from files to a finished artifact, against the bare forward pass."""
    host = hosts.load(name, weights="random")
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder)
        for i in range(count):
            noise = np.random.default_rng(i).integers(0, 256, (256, 256, 3), dtype=np.uint8)
            Image.fromarray(noise).save(place / f"{i:04d}.jpg")
        pictures = images.load("folder", root=folder)
        host.layers()  # the probing pass, once for a host

        def bare() -> None:
            with torch.inference_mode():
                for _, batch in pictures.batches(host.transform, batch_size):
                    host.model(batch.to(memory_format=host.memory_format))

        def ours() -> None:
            root = place / f"runs{len(tokens)}"
            tokens.append(cache.write(pictures, host, layers, root, batch_size=batch_size)[layers[0]].n_tokens)

        tokens: list[int] = []
        theirs, own = _alternate(bare, ours)
    return _record(f"cache write, {name} {','.join(layers)}", tokens[0], own, theirs)


def reading(
    d_in: int, batch_size: int, rows: int = 200_000, batches: int = 20, shuffled: bool = False
) -> dict[str, Any]:
    """Sorted random rows as float32 tensors from a cache, against those of a raw memory map.

    `shuffled`: through `Batches`, which also computes the order and checks every number.
    """
    with tempfile.TemporaryDirectory() as folder:
        array = np.random.default_rng(0).standard_normal((rows, d_in), dtype=np.float32).astype(np.float16)
        raw_file = Path(folder) / "raw.bin"
        array.tofile(raw_file)
        store = cache.adopt(array, folder)
        raw = np.memmap(raw_file, np.float16, "r", shape=array.shape)
        source = Batches(store.tokens, batch_size)
        chosen = [np.sort(np.random.default_rng(i).choice(rows, batch_size, replace=False)) for i in range(batches)]

        def bare() -> None:
            for part in chosen:
                torch.from_numpy(raw[part]).to(torch.float32)

        def ours() -> None:
            for step, part in enumerate(chosen):
                if shuffled:
                    source.batch(step)
                else:
                    torch.from_numpy(store.tokens[part]).to(torch.float32)

        theirs, own = _alternate(bare, ours)
    return _record(
        f"cache {'batches' if shuffled else 'read'}, {batch_size} x {d_in}", batches * batch_size, own, theirs
    )


def _alternate(bare: Callable[[], None], ours: Callable[[], None]) -> tuple[float, float]:
    """The smallest wall time of each over alternating runs."""
    times: dict[str, list[float]] = {"bare": [], "ours": []}
    for _ in range(_REPEATS):
        for key, action in (("bare", bare), ("ours", ours)):
            start = time.perf_counter()
            action()
            times[key].append(time.perf_counter() - start)
    return min(times["bare"]), min(times["ours"])


def _record(case: str, tokens: int, seconds: float, baseline: float) -> dict[str, Any]:
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / KILOBYTES
    return {
        "case": case,
        "tokens_per_s": round(tokens / seconds),
        "seconds": round(seconds, 4),
        "baseline_seconds": round(baseline, 4),
        "ratio": round(seconds / baseline, 3),
        "peak_mb": round(peak),
    }
