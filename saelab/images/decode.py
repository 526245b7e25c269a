"""From a file to an RGB picture: every mode and oddity that Pillow reads, bounded in memory, or a reason why not."""

import io
import threading
import warnings
from pathlib import Path

import numpy as np
from jaxtyping import Int
from PIL import Image, ImageOps, UnidentifiedImageError

SUFFIXES = {".jpg", ".jpeg", ".jfif", ".jpe", ".png", ".webp", ".gif", ".bmp", ".tif", ".tiff"}
SUFFIXES |= {".ppm", ".pgm", ".pbm", ".pnm", ".jp2", ".avif"}
MAX_SIDE = 2048  # no model looks at more; bounds what a 100-megapixel picture takes once it is decoded

_ORIENTATION, _TURNED = 0x0112, (5, 6, 7, 8)  # EXIF tag; its values that swap width and height
_opening = threading.Lock()


class Unreadable(Exception):
    """A file that is no picture that we can decode; its text is the reason, in a few words."""


def decode(source: Path | bytes, square: bool = False) -> Image.Image:
    """The picture in `source` as 8-bit RGB, upright, its longer side at most 2048 pixels.

    EXIF rotation is applied, transparency is laid over white, 16-bit and float greys are scaled to 8 bit, of an
    animation the first frame is taken. `square` pads with white to a centred square. Raises Unreadable.
    """
    rgb, _ = glance(source, MAX_SIDE)
    return pad_square(rgb) if square else rgb


def glance(source: Path | bytes, max_side: int) -> tuple[Image.Image, tuple[int, int]]:
    """As `decode`, but bounded by `max_side`, and with the file's own (width, height), upright.

    Every byte is decoded, so that a cut-off file is found out; large JPEGs at 1/2, 1/4 or 1/8 of their size.
    """
    try:
        with _open(source) as image:
            size = image.size
            drafted = image.format == "JPEG" and max(size) > max_side
            if drafted:
                image.draft(None, (max_side, max_side))  # never below the asked size
            turned = image.getexif().get(_ORIENTATION) in _TURNED
            upright = ImageOps.exif_transpose(_whole(image))
            size = (size[::-1] if turned else size) if drafted else upright.size
            rgb = to_rgb(upright)
    except Unreadable:
        raise
    except MemoryError:
        raise Unreadable("too large for this machine's memory") from None
    except Exception as error:  # Pillow's plugins raise anything from SyntaxError to struct.error on broken files
        raise Unreadable(f"can't be decoded ({_short(error)})") from None
    if max(rgb.size) > max_side:
        rgb.thumbnail((max_side, max_side), Image.Resampling.BICUBIC)
    return rgb, size


def to_rgb(image: Image.Image) -> Image.Image:
    """8-bit RGB of an image in any of Pillow's modes; transparent parts become white."""
    if image.mode in ("I", "F") or image.mode.startswith("I;16"):
        return Image.fromarray(_to_8_bit(np.asarray(image)), "L").convert("RGB")
    if image.mode in ("RGBA", "LA", "PA", "RGBa", "La") or "transparency" in image.info:
        layer = image.convert("RGBA")
        white = Image.new("RGBA", layer.size, "white")
        return Image.alpha_composite(white, layer).convert("RGB")
    return image.convert("RGB")


def pad_square(image: Image.Image) -> Image.Image:
    """The image in the middle of a white square of its longer side."""
    side = max(image.size)
    if image.size == (side, side):
        return image
    canvas = Image.new("RGB", (side, side), "white")
    canvas.paste(image, ((side - image.width) // 2, (side - image.height) // 2))
    return canvas


def decode_labels(path: Path) -> Int[np.ndarray, "height width"]:
    """A label image (one channel: grey values or palette indices) as int64 class numbers. Raises Unreadable."""
    try:
        with _open(path) as image:
            if image.mode not in ("1", "L", "P", "I", "I;16", "I;16B", "I;16L"):
                raise Unreadable(f"mode {image.mode}, but label images hold one class number a pixel (grey or palette)")
            return np.asarray(_whole(image)).astype(np.int64)
    except Unreadable:
        raise
    except Exception as error:
        raise Unreadable(f"can't be decoded ({_short(error)})") from None


def _open(source: Path | bytes) -> Image.Image:
    if isinstance(source, bytes) and not source:
        raise Unreadable("zero bytes")
    file = io.BytesIO(source) if isinstance(source, bytes) else source
    try:
        # Pillow warns from 89 megapixels on, which we handle; the lock, because warning filters belong to all threads.
        with _opening, warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return Image.open(file)
    except Image.DecompressionBombError:
        raise Unreadable(f"more than {2 * (Image.MAX_IMAGE_PIXELS or 0) // 10**6} megapixels") from None
    except UnidentifiedImageError:
        raise Unreadable("not a picture in a format that Pillow reads") from None


def _whole(image: Image.Image) -> Image.Image:
    image.load()
    if 0 in image.size:
        raise Unreadable("has no pixels")
    return image


def _to_8_bit(values: np.ndarray) -> np.ndarray:
    """Greys of more than 8 bit to 0..255: by 65535 if they are whole and need it, else by their own range."""
    values = np.nan_to_num(values.astype(np.float64))
    low, high = float(values.min()), float(values.max())
    if low >= 0 and high <= 255 and np.array_equal(values, np.rint(values)):
        return values.astype(np.uint8)
    if low >= 0 and 255 < high <= 65535:
        return np.rint(values / 257).astype(np.uint8)
    return np.rint((values - low) / max(high - low, 1e-12) * 255).astype(np.uint8)


def _short(error: Exception) -> str:
    text = " ".join(str(error).split()) or type(error).__name__
    return text if len(text) <= 100 else text[:97] + "..."
