"""A transform that is any callable, such as torchvision's: known by what it does to a fixed picture."""

import hashlib
from collections.abc import Callable
from typing import Any

import numpy as np
from jaxtyping import Float
from PIL import Image
from torch import Tensor

from saelab.errors import UserError
from saelab.hosts.transform import Transform


class CallableTransform(Transform):
    """`function(picture) -> [3, height, width]`. Recipes hold the digest of its output on a fixed picture.

    Raises UserError where the function gives anything else for an RGB picture, and where it is random.
    """

    def __init__(self, function: Callable[[Image.Image], Tensor]) -> None:
        picture = Image.fromarray(np.random.default_rng(0).integers(0, 256, (320, 256, 3), dtype=np.uint8))
        found, again = function(picture), function(picture)
        if not isinstance(found, Tensor) or found.ndim != 3 or found.shape[0] != 3:
            what = f"gives {tuple(found.shape) if isinstance(found, Tensor) else type(found).__name__}"
            raise UserError("transform", function, what, "it has to give a tensor [3, height, width]")
        if not bool((found == again).all()):
            raise UserError(
                "transform", function, "is random: one picture gives two results", "give the one for testing"
            )
        height, width = found.shape[1:]
        super().__init__(resize=(height, width))
        digest = hashlib.sha256(found.float().numpy().tobytes()).hexdigest()
        object.__setattr__(self, "_function", function)
        object.__setattr__(self, "_spec", {"callable": digest, "resize": [height, width], "crop": None})

    def __call__(self, image: Image.Image) -> Float[Tensor, "3 height width"]:
        function: Callable[[Image.Image], Tensor] = self._function  # type: ignore[attr-defined]
        return function(image.convert("RGB")).float()

    @property
    def spec(self) -> dict[str, Any]:
        """What stands in recipes."""
        return dict(self._spec)  # type: ignore[attr-defined]
