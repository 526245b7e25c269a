"""From a file to an RGB picture: every mode and oddity of the formats that are read, bounded in memory, or why not.

Pictures come from anywhere, so only a list of decoders is allowed (Pillow would hand an EPS to Ghostscript whatever its
name is), only regular files are opened, and the number of pixels is looked at before any of them is decoded.
"""

import io
import os
import stat
import threading
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from jaxtyping import Int
from PIL import Image, UnidentifiedImageError

FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "PPM", "JPEG2000", "AVIF")  # Pillow's decoders that are used
SUFFIXES = {".jpg", ".jpeg", ".jfif", ".jpe", ".png", ".webp", ".gif", ".bmp", ".tif", ".tiff"}
SUFFIXES |= {".ppm", ".pgm", ".pbm", ".pnm", ".jp2", ".avif"}
MAX_SIDE = 2048  # no model looks at more; bounds what a 100-megapixel picture takes once it is decoded
MAX_PIXELS = 178_956_970  # Pillow's own limit
MAX_BYTES = 1 << 30  # of a file
AT_ONCE = 256 << 20  # bytes that all threads of a process together decode at a time; a larger picture is decoded alone

_ORIENTATION, _TURNED = 0x0112, (5, 6, 7, 8)  # EXIF tag; its values that swap width and height
_UPRIGHT = {i: Image.Transpose(v) for i, v in zip(range(2, 9), (0, 3, 1, 5, 4, 6, 2))}
_BAND = 1 << 20  # pixels that are converted at once
# Bytes a pixel while decoding: what Pillow keeps in a mode, and what a decoder needs beside it.
_KEPT = {"1": 1, "L": 1, "P": 1, "I;16": 2, "I;16B": 2, "I;16L": 2, "CMYK": 4}
_BESIDE = {"WEBP": 4, "AVIF": 8, "JPEG2000": 12}
_PROGRESSIVE = 6  # a progressive JPEG's coefficients are kept whole


class Unreadable(Exception):
    """A file that is no picture that we can decode; its text is the reason, in a few words."""


class _Room:
    """Bytes that threads share; who needs more than all of them waits until it is alone."""

    def __init__(self, total: int) -> None:
        self.total = self.left = total
        self.free = threading.Condition()

    @contextmanager
    def take(self, wanted: int) -> Iterator[None]:
        """Hold `wanted` bytes during the block."""
        own = min(wanted, self.total)
        with self.free:
            self.free.wait_for(lambda: self.left >= own)
            self.left -= own
        try:
            yield
        finally:
            with self.free:
                self.left += own
                self.free.notify_all()


class _Shared:
    """What the threads of one process share; a forked process starts with its own, whatever was held."""

    def __init__(self) -> None:
        self.renew()
        os.register_at_fork(after_in_child=self.renew)

    def renew(self) -> None:
        """As in a new process."""
        self.opening, self.room = threading.Lock(), _Room(AT_ONCE)


_shared = _Shared()


def regular(path: Path) -> io.BufferedReader:
    """Open a regular file. Raises Unreadable for pipes, devices and the like (which may never end), OSError else."""
    handle = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)  # without waiting for a pipe's other end
    state = os.fstat(handle)
    if not stat.S_ISREG(state.st_mode) or state.st_size > MAX_BYTES:
        os.close(handle)
        large = stat.S_ISREG(state.st_mode)
        raise Unreadable(f"more than {MAX_BYTES >> 30} GB" if large else "not a regular file")
    return os.fdopen(handle, "rb")


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
            coefficients = size[0] * size[1] * _PROGRESSIVE if image.info.get("progressive") else 0
            drafted = image.format == "JPEG" and max(size) > max_side
            if drafted:
                image.draft(None, (max_side, max_side))  # never below the asked size
            with _shared.room.take(coefficients + image.width * image.height * _bytes_per_pixel(image)):
                shown = to_8_bit(_whole(image))
                orientation = image.getexif().get(_ORIENTATION)  # a TIFF has none any more: it was loaded upright
                if shown is not image:
                    image.close()  # frees its pixels
                if orientation in _UPRIGHT:
                    shown = shown.transpose(_UPRIGHT[orientation])
                turned = orientation in _TURNED
                size = (size[::-1] if turned else size) if drafted else shown.size
                if max(shown.size) > max_side:
                    shown.thumbnail((max_side, max_side), Image.Resampling.BICUBIC)
                rgb = shown.convert("RGB")
    except Unreadable:
        raise
    except MemoryError:
        raise Unreadable("too large for this machine's memory") from None
    except Exception as error:  # Pillow's plugins raise anything from SyntaxError to struct.error on broken files
        raise Unreadable(f"can't be decoded ({_short(error)})") from None
    return rgb, size


def to_rgb(image: Image.Image) -> Image.Image:
    """8-bit RGB of an image in any of Pillow's modes; transparent parts become white."""
    return to_8_bit(image).convert("RGB")


def to_8_bit(image: Image.Image) -> Image.Image:
    """An image in any of Pillow's modes as 8-bit grey where it is grey, else RGB; transparent parts become white.

    Converted in bands of rows, so that no more than the result is held beside the picture.
    """
    see_through = image.mode in ("RGBA", "LA", "PA", "RGBa", "La") or "transparency" in image.info
    if image.mode in ("I", "F") or image.mode.startswith("I;16"):
        return _grey(image)
    if image.mode in ("RGB", "L") and not see_through:
        return image
    made = Image.new("RGB", image.size)
    for box in _bands(image.size):
        band = image.crop(box)
        made.paste(_over_white(band) if see_through else band.convert("RGB"), box)
    return made


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
    return _labels(path).astype(np.int64)


def present_labels(path: Path) -> tuple[int, ...]:
    """The class numbers in a label image, ascending. Raises Unreadable."""
    return tuple(np.unique(_labels(path)).astype(np.int64).tolist())


def _labels(path: Path) -> Int[np.ndarray, "height width"]:
    try:
        with _open(path) as image:
            if image.mode not in ("1", "L", "P", "I", "I;16", "I;16B", "I;16L"):
                raise Unreadable(f"mode {image.mode}, but label images hold one class number a pixel (grey or palette)")
            with _shared.room.take(image.width * image.height * (8 + _bytes_per_pixel(image))):
                return np.asarray(_whole(image))
    except Unreadable:
        raise
    except Exception as error:
        raise Unreadable(f"can't be decoded ({_short(error)})") from None


@contextmanager
def _open(source: Path | bytes) -> Iterator[Image.Image]:
    if isinstance(source, bytes) and not source:
        raise Unreadable("zero bytes")
    with io.BytesIO(source) if isinstance(source, bytes) else regular(source) as file:
        try:
            # Pillow warns from 89 megapixels on, which we handle; the lock, because warning filters belong to all.
            with _shared.opening, warnings.catch_warnings():
                warnings.simplefilter("ignore")
                image = Image.open(file, formats=FORMATS)
        except Image.DecompressionBombError:
            raise Unreadable(f"more than {MAX_PIXELS // 10**6} megapixels") from None
        except UnidentifiedImageError:
            raise Unreadable(f"not a picture in a format that is read ({', '.join(FORMATS)})") from None
        if image.width * image.height > MAX_PIXELS:  # whatever Pillow's own limit is set to
            raise Unreadable(f"more than {MAX_PIXELS // 10**6} megapixels")
        with image:
            yield image


def _whole(image: Image.Image) -> Image.Image:
    image.load()
    if 0 in image.size:
        raise Unreadable("has no pixels")
    return image


def _bytes_per_pixel(image: Image.Image) -> int:
    """What decoding takes: the picture in its own mode, its 8-bit copy, a turned copy, the decoder's own memory."""
    kept = _KEPT.get(image.mode, 4)
    copy = 0 if image.mode in ("RGB", "L") else 1 if image.mode in ("I", "F") or image.mode.startswith("I;16") else 4
    turned = (copy or kept) if image.getexif().get(_ORIENTATION, 1) != 1 else 0
    return kept + copy + turned + _BESIDE.get(image.format or "", 0)


def _bands(size: tuple[int, int]) -> Iterator[tuple[int, int, int, int]]:
    width, height = size
    rows = max(1, _BAND // max(width, 1))
    for top in range(0, height, rows):
        yield 0, top, width, min(top + rows, height)


def _over_white(image: Image.Image) -> Image.Image:
    layer = image.convert("RGBA")
    white = Image.new("RGBA", layer.size, "white")
    return Image.alpha_composite(white, layer).convert("RGB")


def _grey(image: Image.Image) -> Image.Image:
    """Greys of more than 8 bit to 0..255: by 65535 if they are whole and need it, else by their own range."""
    low, high, whole = np.inf, -np.inf, True
    for box in _bands(image.size):
        values = _values(image, box)
        low, high = min(low, float(values.min())), max(high, float(values.max()))
        whole = whole and np.array_equal(values, np.rint(values))
    made = Image.new("L", image.size)
    for box in _bands(image.size):
        values = _values(image, box)
        if low >= 0 and high <= 255 and whole:
            scaled = values
        elif low >= 0 and 255 < high <= 65535:
            scaled = np.rint(values / 257)
        else:
            scaled = np.rint((values - low) / max(high - low, 1e-12) * 255)
        made.paste(Image.fromarray(scaled.astype(np.uint8), "L"), box)
    return made


def _values(image: Image.Image, box: tuple[int, int, int, int]) -> np.ndarray:
    return np.nan_to_num(np.asarray(image.crop(box)).astype(np.float64))


def _short(error: Exception) -> str:
    text = " ".join(str(error).split()) or type(error).__name__
    return text if len(text) <= 100 else text[:97] + "..."
