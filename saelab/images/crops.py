"""A crop of each picture in each epoch, which a stream shows its host instead of whole pictures.

The rule is torchvision's RandomResizedCrop with its defaults, and half of the crops are mirrored: what most
self-supervised models were trained on. What is drawn depends on seed, epoch and picture alone.
"""

import math
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from jaxtyping import Int
from PIL import Image

from saelab.errors import UserError

KINDS = ("random",)
AREA = (0.08, 1.0)  # of the picture, uniform
ASPECT = (3 / 4, 4 / 3)  # width / height, log-uniform; a draw that doesn't fit into the picture is drawn again
DRAWS = 10  # then the largest crop in the middle is taken whose aspect is allowed
MIRRORED = 0.5  # probability
OF_CROPS = 0xC507  # sets crops apart from what else the seed decides


class Crop(NamedTuple):
    """What is seen of a picture: pixels left..right-1 and top..bottom-1, perhaps mirrored left to right."""

    left: int
    top: int
    right: int
    bottom: int
    mirrored: bool

    def cut(self, image: Image.Image) -> Image.Image:
        """The crop of a picture, in its own pixels."""
        own = image.crop(self[:4])
        return own.transpose(Image.Transpose.FLIP_LEFT_RIGHT) if self.mirrored else own


def draw(width: int, height: int, seed: int, epoch: int, picture: int) -> Crop:
    """The crop of a picture of `width` x `height` pixels in an epoch: a pure function. Lies within the picture."""
    generator = np.random.Generator(np.random.PCG64([seed & 0xFFFFFFFF, OF_CROPS, epoch, picture]))
    mirrored = bool(generator.random() < MIRRORED)
    for _ in range(DRAWS):
        area = width * height * generator.uniform(*AREA)
        aspect = math.exp(generator.uniform(math.log(ASPECT[0]), math.log(ASPECT[1])))
        w, h = round(math.sqrt(area * aspect)), round(math.sqrt(area / aspect))
        if 0 < w <= width and 0 < h <= height:
            left, top = (int(generator.integers(whole - own + 1)) for whole, own in ((width, w), (height, h)))
            return Crop(left, top, left + w, top + h, mirrored)
    w = min(width, round(height * ASPECT[1]))
    h = min(height, round(width / ASPECT[0]))
    left, top = (width - w) // 2, (height - h) // 2
    return Crop(left, top, left + w, top + h, mirrored)


@dataclass(frozen=True)
class Crops:
    """What a pass sees of its pictures, one after the other: their ids, and the epochs that they are seen in."""

    seed: int
    ids: Int[np.ndarray, "pictures"]
    epochs: Int[np.ndarray, "pictures"]

    def cut(self, image: Image.Image, place: int) -> Image.Image:
        """The crop of the picture at a place of the pass."""
        return draw(*image.size, self.seed, int(self.epochs[place]), int(self.ids[place])).cut(image)


def describe_crops(kind: str | None) -> dict[str, str]:
    """What recipes say of a stream's crops; nothing of whole pictures. Raises UserError for an unknown kind."""
    if kind is None:
        return {}
    if kind not in KINDS:
        raise UserError("stream.crop", kind, "unknown", f"known: {', '.join(KINDS)}; leave it out for whole pictures")
    return {"crop": f"{kind}: {AREA[0]:.0%} to {AREA[1]:.0%} of the area, aspect 3:4 to 4:3, {MIRRORED:.0%} mirrored"}
