"""Small real image sets made on the spot, for tests of what comes after the pictures."""

from pathlib import Path

import numpy as np
from PIL import Image

from saelab import images
from saelab.images import ImageSet

COLOURS = {"red": (220, 30, 30), "green": (30, 200, 40), "blue": (30, 40, 220)}


def coloured(folder: Path, count: int, size: int = 32) -> ImageSet:
    """`count` noisy pictures in three classes by colour, each with a caption that names it."""
    folder.mkdir(parents=True, exist_ok=True)
    names = list(COLOURS)
    for i in range(count):
        name = names[i % 3]
        (folder / name).mkdir(exist_ok=True)
        noise = np.random.default_rng(i).integers(-90, 90, (size, size, 3))
        Image.fromarray(np.clip(np.array(COLOURS[name]) + noise, 0, 255).astype(np.uint8)).save(
            folder / name / f"{i}.png"
        )
        (folder / name / f"{i}.txt").write_text(f"a {name} square")
    return images.load("folder", root=str(folder))
