"""A tiny host and picture set for the cache tests, importable by the processes that they start."""

import sys
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import nn

from saelab import cache, images
from saelab.hosts import Host, Transform
from saelab.images import ImageSet

LAYERS = ["conv", "in:pool"]


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv, self.pool, self.head = nn.Conv2d(3, 5, 3, stride=2), nn.AdaptiveAvgPool2d(1), nn.Linear(5, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.pool(torch.relu(self.conv(x))).flatten(1))


def host() -> Host:
    """conv: 5 x 7 x 7."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return Host(Net(), Transform((15, 15)), "net")


def pictures(folder: Path, count: int) -> ImageSet:
    """Noise pictures, made if they are not there; splits by seed."""
    folder.mkdir(exist_ok=True)
    for i in range(count):
        if not (folder / f"{i:03d}.png").exists():
            noise = np.random.default_rng(i).integers(0, 256, (20, 20, 3), dtype=np.uint8)
            Image.fromarray(noise).save(folder / f"{i:03d}.png")
    return images.load("folder", root=str(folder))


def truth(store: cache.ActivationCache, made: Host, pictured: ImageSet) -> np.ndarray:
    """The layer's tokens [images, tokens, d_in] by a plain forward pass."""
    batch = made.load_images([pictured.load(i) for i in range(len(pictured))])
    with torch.no_grad():
        value = made.model.conv(batch)
    return (value if store.layer == "conv" else value.relu()).flatten(2).transpose(1, 2).numpy()


def main() -> None:
    """Write the caches of a folder of pictures, as one of the processes of torchrun if it started this."""
    import os

    import torch.distributed as dist

    torch.set_num_threads(1)
    if "RANK" in os.environ:
        dist.init_process_group("gloo")
    pictured = pictures(Path(sys.argv[1]), 0)
    cache.write(pictured, host(), LAYERS, sys.argv[2], batch_size=4)
    if "RANK" in os.environ:
        dist.destroy_process_group()


if __name__ == "__main__":
    main()
