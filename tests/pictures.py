"""Pictures made on the spot and exemplars over them, for tests that need to look but not to recognise."""

import numpy as np
import torch
from PIL import Image

from saelab.label.proposal import ShownExemplars


class Pictures:
    """An ImageSet's `load` and `fingerprint`: picture i is a texture of its own."""

    fingerprint = "pictures"

    def __init__(self, count: int = 200, size: tuple[int, int] = (96, 64)) -> None:
        self.count, self.size = count, size

    def load(self, i: int) -> Image.Image:
        if not 0 <= i < self.count:
            raise IndexError(i)
        width, height = self.size
        noise = np.random.default_rng(i).integers(0, 256, (4, 6, 3), dtype=np.uint8)
        return Image.fromarray(noise).resize((width, height), Image.Resampling.NEAREST)


def mined(positives: torch.Tensor, contrasts: torch.Tensor, activations: torch.Tensor | None = None) -> ShownExemplars:
    """Exemplars that fire on all their positives unless `activations` says otherwise."""
    return ShownExemplars(positives, contrasts, torch.ones(positives.shape) if activations is None else activations)


def exemplars(units: int = 6, k: int = 4) -> ShownExemplars:
    """Unit u has the positives u k .. u k + k - 1; the contrast of positive i is i + units k."""
    ids = torch.arange(units * k).reshape(units, k)
    return mined(ids, ids + units * k)
