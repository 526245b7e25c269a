"""The pictures that a vision-language model is shown of a unit: tiles (raw, heat-mapped or cropped) and 3×3 sheets."""

import io
import math
from collections.abc import Sequence

import numpy as np
from jaxtyping import Float
from PIL import Image

from saelab.errors import UserError
from saelab.label.crops import find_boxes

TILES = ("raw", "heatmap", "crop", "otsu")
SMALLEST = 448  # pixels a side; below, a 3×3 sheet's tiles are too small to be recognised
PAPER = (255, 255, 255)
GAP = 6  # pixels of paper between two tiles
CROP_LEVEL = 0.5  # a crop holds every point whose heat reaches this share of the image's largest
CROP_FLOOR = 0.35  # smallest side of a crop as a share of the image's shorter side: context to recognise it by


def tile(
    image: Image.Image, side: int, style: str = "raw", heat: Float[np.ndarray, "height width"] | None = None
) -> Image.Image:
    """`image` whole within a square of `side` pixels, its proportions kept, the rest paper.

    style: `raw`; `heatmap` lays the heat over it in red to yellow; `crop` cuts out where the heat is; `otsu` the
    largest box of `crops.find_boxes`. heat: 0..1, any resolution, covering the whole image; without it every style is
    raw. Raises UserError for an unknown style.
    """
    if style not in TILES:
        raise UserError("proposer.tiles", style, f"must be one of {', '.join(TILES)}")
    image = image.convert("RGB")
    if heat is not None and style == "heatmap":
        image = overlay(image, heat)
    if heat is not None and style == "crop":
        image = image.crop(hot_box(heat, image.size))
    if heat is not None and style == "otsu":
        image = image.crop(next(iter(find_boxes(heat, image.size)), (0, 0, *image.size)))
    scale = side / max(image.size)
    size = max(1, round(image.width * scale)), max(1, round(image.height * scale))
    square = Image.new("RGB", (side, side), PAPER)
    square.paste(image.resize(size, Image.Resampling.LANCZOS), ((side - size[0]) // 2, (side - size[1]) // 2))
    return square


def overlay(image: Image.Image, heat: Float[np.ndarray, "height width"]) -> Image.Image:
    """The image with its heat laid over: the picture itself where the heat is 0, 60 % red to yellow where it is 1."""
    smooth = _resize(heat, image.size)[..., None]
    colour = np.concatenate([np.full_like(smooth, 255), 255 * smooth**2, np.zeros_like(smooth)], axis=2)
    opacity = 0.6 * smooth
    mixed = np.asarray(image, dtype=np.float32) * (1 - opacity) + colour * opacity
    return Image.fromarray(mixed.round().astype(np.uint8))


def hot_box(heat: Float[np.ndarray, "height width"], size: tuple[int, int]) -> tuple[int, int, int, int]:
    """(left, top, right, bottom) in pixels of an image of `size`: the smallest box around the hot points.

    Hot: heat >= CROP_LEVEL of the largest. No side is shorter than CROP_FLOOR of the image's shorter side. A map
    without heat gives the whole image.
    """
    width, height = size
    if not heat.max() > 0:
        return 0, 0, width, height
    rows, columns = np.nonzero(heat >= CROP_LEVEL * heat.max())
    floor = CROP_FLOOR * min(size)
    left, right = _span(columns.min() / heat.shape[1], (columns.max() + 1) / heat.shape[1], width, floor)
    top, bottom = _span(rows.min() / heat.shape[0], (rows.max() + 1) / heat.shape[0], height, floor)
    return left, top, right, bottom


def sheet(tiles: Sequence[Image.Image | None], side: int, columns: int = 3) -> Image.Image:
    """Tiles in reading order on a square sheet of `side` pixels; None leaves its place blank.

    The sheet is `columns` wide and at least as many rows high. Raises UserError below SMALLEST pixels.
    """
    if side < SMALLEST:
        raise UserError("proposer.sheet_px", side, f"must be at least {SMALLEST}", "smaller tiles can't be recognised")
    rows = max(columns, math.ceil(len(tiles) / columns))
    cell = side // rows
    paper = Image.new("RGB", (side, side), PAPER)
    for place, picture in enumerate(tiles):
        if picture is not None:
            row, column = divmod(place, columns)
            inner = picture.resize((cell - GAP, cell - GAP), Image.Resampling.LANCZOS)
            paper.paste(inner, (column * cell + GAP // 2, row * cell + GAP // 2))
    return paper


def tile_side(side: int, columns: int = 3) -> int:
    """Pixels a side of each tile of a sheet with `columns` columns and as many rows."""
    return side // columns - GAP


def jpeg(image: Image.Image) -> bytes:
    """The picture as JPEG (quality 92): what is sent, and what is kept on disk, byte for byte."""
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=92)
    return buffer.getvalue()


def _resize(heat: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    map_image = Image.fromarray(np.clip(heat, 0, 1).astype(np.float32))
    return np.clip(np.asarray(map_image.resize(size, Image.Resampling.BICUBIC)), 0, 1)


def _span(start: float, end: float, length: int, floor: float) -> tuple[int, int]:
    """A stretch given as shares of `length`, in pixels, widened around its middle to `floor` and kept inside."""
    low, high = start * length, end * length
    missing = max(0.0, floor - (high - low))
    low, high = low - missing / 2, high + missing / 2
    shift = max(0.0, -low) - max(0.0, high - length)
    return max(0, round(low + shift)), min(length, round(high + shift))
