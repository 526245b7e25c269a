"""Does training on a stream cost quality? Held-out FVU after equal steps: a full shuffle against M = N/8 pictures.

`python scripts/studies/stream_study.py CACHE` with the cache of the packaged photos that `saelab quickstart` left; the
quickstart's SAE, six seeds of weights and order. A stream's tokens are a cache's to the bit (tests/test_stream.py),
so its batches are read from the cache, in the stream's order.
"""

import sys

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from saelab import cache, hosts, images
from saelab.cache import ActivationStream, Batches
from saelab.run.presets import preset
from saelab.run.stages.sae import sae_configs
from saelab.sae import fit

SEEDS = (0, 1, 2, 3, 4, 5)
PARTS = (1, 8)  # M is the pictures over this; at 1 all are in memory, a full shuffle


class Replay(Batches):
    """A stream's batches, from the cache that it stands for."""

    def __init__(self, stored: cache.ActivationCache, stream: ActivationStream) -> None:
        super().__init__(stored.tokens, stream.batch_size, stream.seed, rows=stored.rows("mine"))
        self.stream = stream

    def batch(self, step: int, rank: int = 0, world: int = 1) -> Float[Tensor, "batch d_in"]:
        """The rows of a step."""
        return self.read(self.stream.rows_of(step))

    @property
    def steps_per_epoch(self) -> int:
        """Those of the stream."""
        return self.stream.steps_per_epoch


def main(path: str) -> None:
    """Print, for each M, the held-out FVU of every seed, their mean and their spread."""
    torch.set_num_threads(1)
    stored, photos = cache.open(path), images.load("packaged")
    live = cache.recompute(photos, hosts.load("efficientnet_lite0"), [stored.layer], "unused")
    if live[stored.layer].digest != stored.digest:
        sys.exit(f"{path} is no cache of the packaged photos by EfficientNet-Lite0")
    mine, tokens = photos.ids("mine"), live[stored.layer].plan.stored
    print("superblocks  pictures  same-picture pairs  held-out FVU by seed, mean, spread (sd)")
    for parts in PARTS:
        found = []
        for seed in SEEDS:
            (config,), train = sae_configs(preset("sae", "quickstart"), stored.layer, stored.d_in, [seed])
            made = cache.stream(live, train.batch_size, seed, -(-len(mine) // parts))[stored.layer]
            ids = np.concatenate([made.blocks.ids_of(number) for number in range(made.blocks.sampled)])
            rows = (ids[:, None] * tokens + np.arange(tokens)).ravel()
            mean, variance = Batches(stored.tokens, 1024, rows=rows).moments()
            held = Batches(stored.tokens, 4096, rows=stored.rows("test"))
            made_of = (Replay(stored, made), config, train)
            fitted = fit(*made_of, mean=mean, variance=variance, held_out=held, progress=False)
            found.append(fitted.quality["held_out"]["fvu"])
        each = " ".join(f"{fvu:.4f}" for fvu in found)
        row = f"{made.blocks.count:11d}  {made.blocks.pictures:8d}  {made.same_picture_pairs:18.4f}"
        print(f"{row}  {each}, {np.mean(found):.4f}, {np.std(found, ddof=1):.4f}", flush=True)


if __name__ == "__main__":
    main(sys.argv[1])
