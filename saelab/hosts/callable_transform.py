"""A transform that is any callable, such as torchvision's: known by what it does to a fixed picture."""

import hashlib
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from PIL import Image
from torch import Tensor

from saelab.errors import UserError
from saelab.hosts.transform import Transform


class CallableTransform(Transform):
    """`function(picture) -> [3, height, width]`. Recipes hold the digest of its output on a fixed picture.

    Raises UserError where the function gives anything else for an RGB picture, or no finite numbers, and where it is
    random.
    """

    def __init__(self, function: Callable[[Image.Image], Tensor]) -> None:
        picture = Image.fromarray(np.random.default_rng(0).integers(0, 256, (320, 256, 3), dtype=np.uint8))
        found, again = function(picture), function(picture)
        if not isinstance(found, Tensor) or found.ndim != 3 or found.shape[0] != 3:
            what = f"gives {tuple(found.shape) if isinstance(found, Tensor) else type(found).__name__}"
            raise UserError("transform", function, what, "it has to give a tensor [3, height, width]")
        if not bool(found.isfinite().all()):
            what = f"gives {'NaN' if bool(found.isnan().any()) else 'an infinity'} for a picture of random colours"
            raise UserError("transform", function, what, "it has to give finite numbers; look at what it divides by")
        if found.shape != again.shape or not torch.allclose(found, again, rtol=0, atol=0, equal_nan=True):
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

    def normalize(self, pixels: Float[Tensor, "*images 3 height width"]) -> Float[Tensor, "*images 3 height width"]:
        """As `Transform.normalize`: the affine map of colours that the function applies to pictures of one colour.

        Raises UserError for a function that treats colours in another way.
        """
        weight, bias = self._colours()
        turned = torch.einsum("oc,...chw->...ohw", weight.to(pixels), pixels)
        return turned + bias.to(pixels)[:, None, None]

    def stretch(self) -> Transform:
        """Raises UserError: what a function resizes and cuts off is its own."""
        raise UserError(
            "transform", "a callable", "resizes and cuts in its own way", "give fields of Transform for crops"
        )

    def _colours(self) -> tuple[Float[Tensor, "3 3"], Float[Tensor, "3"]]:
        def see(*colour: int) -> Tensor:
            found = self(Image.new("RGB", (self.size[1], self.size[0]), colour))
            return found[:, found.shape[1] // 2, found.shape[2] // 2].double()

        black = see(0, 0, 0)
        weight = torch.stack([see(*(255 * (c == i) for i in range(3))) - black for c in range(3)], dim=1) / 255
        for colour in ((128, 128, 128), (30, 200, 90)):
            expected = weight @ torch.tensor(colour, dtype=torch.float64) + black
            if not torch.allclose(see(*colour), expected, rtol=1e-3, atol=1e-3 * float(weight.abs().max()) * 255):
                raise UserError("transform", "a callable", "is no affine map of colours", "give fields of Transform")
        return weight, black

    @property
    def spec(self) -> dict[str, Any]:
        """What stands in recipes."""
        return dict(self._spec)  # type: ignore[attr-defined]
