"""What is done to a picture before a host sees it: plain data, so that it can stand in a recipe and be overridden."""

import dataclasses
import math
from collections.abc import Iterable, Mapping
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
        for field, take in (("resize", _side), ("crop", _pair), ("mean", _three), ("std", _three), ("scale", _number)):
            object.__setattr__(self, field, take(field, getattr(self, field)))
        if not isinstance(self.interpolation, str) or self.interpolation not in _FILTERS:
            raise UserError("transform.interpolation", self.interpolation, "unknown", f"known: {', '.join(_FILTERS)}")
        if self.channels not in ("RGB", "BGR"):
            raise UserError("transform.channels", self.channels, "expected RGB or BGR")
        if min(self.std) <= 0:
            raise UserError("transform.std", self.std, "mean and std take three numbers each, std above 0")
        if self.scale <= 0:
            raise UserError("transform.scale", self.scale, "must be above 0", "1/255 is usual")

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


def _side(field: str, value: Any) -> int | tuple[int, int]:
    """The shorter side, or (height, width)."""
    parts = _parts(value)
    sides = tuple(_whole(part) for part in parts)
    if not sides or None in sides or len(sides) > 2 or (len(sides) == 1 and not np.isscalar(value)):
        expected = "expected whole numbers above 0: the shorter side, or (height, width)"
        raise UserError(f"transform.{field}", value, expected)
    return sides[0] if len(sides) == 1 else sides  # type: ignore[return-value]


def _pair(field: str, value: Any) -> tuple[int, int] | None:
    """(height, width); a single number is both."""
    if value is None:
        return None
    try:
        side = _side(field, value)
    except UserError:
        expected = "expected whole numbers above 0: (height, width), or one for both"
        raise UserError(f"transform.{field}", value, expected) from None
    return (side, side) if isinstance(side, int) else side


def _three(field: str, value: Any) -> tuple[float, ...]:
    parts = () if np.isscalar(value) else _parts(value)
    try:
        found = tuple(_number(field, part) for part in parts)
    except UserError:
        found = ()
    if len(found) != 3:
        raise UserError(f"transform.{field}", value, "mean and std take three numbers each, std above 0")
    return found


def _number(field: str, value: Any) -> float:
    value = value.item() if isinstance(value, np.generic) else value
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        raise UserError(f"transform.{field}", value, "expected a finite number")
    return value


def _whole(value: Any) -> int | None:
    """The number as an int; None where it is none, or not above 0."""
    try:
        number = _number("", value)
    except UserError:
        return None
    return int(number) if number == int(number) and number >= 1 else None


def _parts(value: Any) -> tuple[Any, ...]:
    """The values of a list of any kind; of anything else, itself."""
    if isinstance(value, Mapping | str | bytes) or not isinstance(value, Iterable):
        return (value,)
    listed = value.tolist() if isinstance(value, np.ndarray | Tensor) else list(value)
    return tuple(listed) if isinstance(listed, list) else (listed,)


def _start(have: int, want: int) -> int:
    """torchvision's rounding: half to even where it crops; where it pads, the smaller half comes first."""
    return round((have - want) / 2.0) if have >= want else -((want - have) // 2)
