"""Mining, scoring and null percentiles at a size that users have, against one image-by-image cosine product."""

import time
from collections.abc import Callable, Iterator
from functools import partial
from statistics import median
from typing import Any

from saelab import planted
from saelab.bench.sae import record
from saelab.label import assign, mine
from saelab.label.nulls import null_percentiles

SCORERS = ("csp", "semanticlens", "soft_wpmi", "cos_cubed", "pearson", "invert")
NULLS = ("csp", "semanticlens", "pearson", "cos_cubed", "soft_wpmi")
ROUNDS = 5  # of mining, which has a limit to keep: the median counts


def cases(images: int = 10_000, units: int = 1000, null_images: int = 600, null_units: int = 3000) -> Iterator[dict]:
    """Top images and contrasts (median), and each scorer once, dense and CSR; 200 permutations with five scorers.

    `tokens_per_s` counts images, `gemm_seconds` is one product of all image embeddings with each other.
    """
    world = planted.make(planted.WorldSpec(images, units, parents=200, live=40, dim=512, sparse=0.5))
    size = f"{images}x{units}x{len(world.label_emb)}"
    gram = seconds(lambda: world.image_emb @ world.image_emb.T)
    for layout, acts in (("dense", world.acts), ("csr", world.acts.to_sparse_csr())):
        evidence = assign.Evidence.mined(acts, world.image_emb, world.label_emb, concepts=world.truth)
        work: dict[str, Callable[[], Any]] = {
            "top images": partial(mine.top_images, acts, 30),
            "contrasts": partial(mine.contrast_images, acts, world.image_emb, evidence.positive_ids),
        }
        for name, run in work.items():
            yield record(f"{name}, {layout} {size}", median(seconds(run) for _ in range(ROUNDS)), gram, images, 0.0)
        for name in SCORERS:
            own = seconds(partial(assign.rankings, [name], evidence))
            yield record(f"{name}, {layout} {size}", own, gram, images, 0.0)
    world = planted.make(planted.WorldSpec(null_images, null_units, parents=200, live=40, dim=384, sparse=0.5))
    evidence = assign.Evidence.mined(world.acts, world.image_emb, world.label_emb)
    size = f"{null_images}x{null_units}x{len(world.label_emb)}"
    own = seconds(lambda: null_percentiles(NULLS, evidence))
    yield record(f"200 permutations, {len(NULLS)} scorers, {size}", own, gram, null_images, 0.0)


def seconds(work: Callable[[], Any]) -> float:
    """Wall seconds of one run."""
    start = time.perf_counter()
    work()
    return time.perf_counter() - start
