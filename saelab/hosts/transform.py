"""What is done to a picture before a host sees it: plain data, so that it can stand in a recipe and be overridden."""

import dataclasses
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from jaxtyping import Float
from PIL import Image
from torch import Tensor

from saelab.errors import UserError

_FILTERS = {
    "nearest": Image.Resampling.NEAREST,
    "bilinear": Image.Resampling.BILINEAR,
    "bicubic": Image.Resampling.BICUBIC,
    "lanczos": Image.Resampling.LANCZOS,
    "box": Image.Resampling.BOX,
    "hamming": Image.Resampling.HAMMING,
}
IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


@dataclass(frozen=True)
class Transform:
    """Resize, centre crop, scale, normalise: `(pixel * scale - mean) / std`, pixels in 0..255.

    A call takes an RGB picture and returns float32 [3, height, width]. Resizing is Pillow's (antialiased).
    """

    resize: int | tuple[int, int]  # the shorter side, or (height, width) without regard to the aspect
    crop: tuple[int, int] | None = None  # (height, width) of the centre crop, zero-padded where the picture is smaller
    interpolation: str = "bicubic"  # nearest, bilinear, bicubic, lanczos, box or hamming
    mean: tuple[float, ...] = IMAGENET_MEAN
    std: tuple[float, ...] = IMAGENET_STD
    scale: float = 1 / 255
    channels: Literal["RGB", "BGR"] = "RGB"  # the order that the model was trained on

    def __post_init__(self) -> None:
        for field in ("crop", "mean", "std") + (() if isinstance(self.resize, int) else ("resize",)):
            value = getattr(self, field)
            object.__setattr__(self, field, value if value is None else tuple(value))
        if self.interpolation not in _FILTERS:
            raise UserError("transform.interpolation", self.interpolation, "unknown", f"known: {', '.join(_FILTERS)}")
        if self.channels not in ("RGB", "BGR"):
            raise UserError("transform.channels", self.channels, "expected RGB or BGR")
        if len(self.mean) != 3 or len(self.std) != 3 or min(self.std) <= 0:
            raise UserError("transform.std", self.std, "mean and std take three numbers each, std above 0")

    def __call__(self, image: Image.Image) -> Float[Tensor, "3 height width"]:
        image = image.convert("RGB")
        image = image.resize(self._size(image), _FILTERS[self.interpolation])
        if self.crop is not None:
            image = image.crop(self._box(image))  # Pillow fills what lies outside with black, as torchvision does
        return self.normalize(torch.from_numpy(np.array(image)).permute(2, 0, 1).to(torch.float32))

    def normalize(self, pixels: Float[Tensor, "*images 3 height width"]) -> Float[Tensor, "*images 3 height width"]:
        """RGB pixels in 0..255, already of the host's size, as the host sees them; differentiable."""
        if self.channels == "BGR":
            pixels = pixels.flip(-3)
        mean, std = (pixels.new_tensor(v).view(3, 1, 1) for v in (self.mean, self.std))
        return (pixels * self.scale - mean) / std

    @property
    def size(self) -> tuple[int, int]:
        """(height, width) of what comes out; of a square picture, where the aspect decides."""
        if self.crop is not None:
            return self.crop
        return (self.resize, self.resize) if isinstance(self.resize, int) else self.resize

    def size_of(self, image: Image.Image) -> tuple[int, int]:
        """(height, width) of what comes out of this picture."""
        width, height = self._size(image)
        return self.crop or (height, width)

    @property
    def spec(self) -> dict[str, Any]:
        """The fields as JSON's types: what goes into recipes, and what `Transform.of` takes."""
        return {k: list(v) if isinstance(v, tuple) else v for k, v in dataclasses.asdict(self).items()}

    def override(self, spec: dict[str, Any]) -> "Transform":
        """This transform with the given fields replaced. Raises UserError for an unknown field."""
        names = [f.name for f in dataclasses.fields(self)]
        for key in spec:
            if key not in names:
                raise UserError(f"transform.{key}", spec[key], "unknown", f"known: {', '.join(names)}")
        return dataclasses.replace(self, **spec)

    def stretch(self) -> "Transform":
        """For crops: each is resized to this transform's size, whatever its aspect, and nothing is cut off."""
        return dataclasses.replace(self, resize=self.size, crop=None)

    def _size(self, image: Image.Image) -> tuple[int, int]:
        """(width, height) to resize to; the longer side is cut to a whole number, as torchvision does."""
        if not isinstance(self.resize, int):
            return self.resize[1], self.resize[0]
        short, long = sorted(image.size)
        longer = max(1, int(self.resize * long / short))
        return (self.resize, longer) if image.width <= image.height else (longer, self.resize)

    def _box(self, image: Image.Image) -> tuple[int, int, int, int]:
        assert self.crop is not None
        height, width = self.crop
        top, left = _start(image.height, height), _start(image.width, width)
        return left, top, left + width, top + height


def _start(have: int, want: int) -> int:
    """torchvision's rounding: half to even where it crops; where it pads, the smaller half comes first."""
    return round((have - want) / 2.0) if have >= want else -((want - have) // 2)
