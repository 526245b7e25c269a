"""Near-duplicates: the same picture again, re-encoded, resized or mirrored, by file hash and perceptual hash.

Two pictures belong together when their 64-bit perceptual hashes (signs of the low DCT frequencies of the grey
picture; Zauner, "Implementation and benchmarking of perceptual image hash functions", 2010) differ in few bits, for
the picture as it is or mirrored, *and* their small colour copies agree. The hash alone would merge pictures of one
layout; the small copy alone would need all pairs of pixels.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Int, UInt8
from PIL import Image

from saelab.errors import UserError

MAX_BITS = 14  # of 63; thresholds measured, see docs/images.md
MAX_DIFFERENCE = 12.0  # root mean square over the small copy, grey levels of 255

SMALL = 16  # pixels a side of the small copy
AT_ONCE = 4096  # small copies compared at a time
_GREY, _BLOCK = 32, 8
_WEIGHTS = np.uint64(1) << np.arange(64, dtype=np.uint64)


@dataclass(frozen=True)
class Appearance:
    """What a picture looks like, in little."""

    bits: int  # 64-bit perceptual hash
    mirrored: int  # the hash of its left-right mirror image
    small: UInt8[np.ndarray, "16 16 3"]  # small RGB copy


def look(image: Image.Image) -> Appearance:
    """Perceptual hashes and small copy of an RGB picture."""
    from scipy import fft

    grey = np.asarray(image.convert("L").resize((_GREY, _GREY), Image.Resampling.BOX, reducing_gap=None), np.float64)
    coefficients = fft.dctn(grey, norm="ortho")[:_BLOCK, :_BLOCK]
    mirror = coefficients * np.where(np.arange(_BLOCK) % 2, -1.0, 1.0)  # a mirror image negates odd frequencies
    small = np.asarray(image.resize((SMALL, SMALL), Image.Resampling.BOX), np.uint8)
    return Appearance(_bits(coefficients), _bits(mirror), small)


def group(
    hashes: list[str], looks: list[Appearance], max_bits: int = MAX_BITS, max_difference: float = MAX_DIFFERENCE
) -> Int[np.ndarray, "images"]:
    """Near-duplicate group of each image, int64; a group's number is the lowest row number in it.

    hashes: content hashes (equal ones are one picture); looks: from `look`. Groups are connected components.
    """
    first: dict[str, int] = {}
    groups = np.array([first.setdefault(h, i) for i, h in enumerate(hashes)], dtype=np.int64)
    if len(looks) > 1:
        _join_alike(groups, looks, max_bits, max_difference)
    return groups


def _bits(coefficients: Float[np.ndarray, "8 8"]) -> int:
    values = np.where(np.abs(coefficients) < 1e-6 * _GREY, 0.0, coefficients).reshape(-1)
    signs = values > np.median(values[1:])
    signs[0] = False  # the mean brightness says nothing about the content
    return int(_WEIGHTS[signs].sum())


def _join_alike(
    groups: Int[np.ndarray, "images"], looks: list[Appearance], max_bits: int, max_difference: float
) -> None:
    """Join, in `groups`, images whose hashes and small copies agree, as they are or one of them mirrored.

    Only images of other groups are compared with each one, AT_ONCE at a time: a thousand blank pages are a thousand
    comparisons, not a million pairs that are kept.
    """
    bits = np.array([x.bits for x in looks], dtype=np.uint64)
    mirrored = np.array([x.mirrored for x in looks], dtype=np.uint64)
    small = np.stack([x.small for x in looks])
    for i in range(len(looks) - 1):
        for others, own in ((bits[i + 1 :], small[i]), (mirrored[i + 1 :], small[i][:, ::-1])):
            near = np.flatnonzero(np.bitwise_count(others ^ bits[i]) <= max_bits) + i + 1
            for start in range(0, len(near), AT_ONCE):
                part = near[start : start + AT_ONCE]
                part = part[groups[part] != groups[i]]
                difference = small[part].astype(np.float32) - own
                close = groups[part[np.sqrt((difference**2).mean((1, 2, 3))) <= max_difference]]
                if len(close):
                    joined = np.isin(groups, np.append(close, groups[i]))
                    groups[joined] = groups[joined].min()


def join(groups: Int[np.ndarray, "images"], series: Sequence[str | None]) -> Int[np.ndarray, "images"]:
    """Near-duplicate groups, joined where images belong to one series as well. Without series: as they are.

    Raises UserError where some images have a series and others none.
    """
    missing = [i for i, name in enumerate(series) if name is None]
    if len(missing) == len(series):
        return groups
    if missing:
        what = f"{len(missing)} of {len(series)} pictures have no value"
        raise UserError(
            "images.group", what, "every picture needs one", "give those that stand alone a value of their own"
        )
    from scipy.sparse import coo_array
    from scipy.sparse.csgraph import connected_components

    _, own = np.unique(groups, return_inverse=True)
    _, other = np.unique(np.asarray(series), return_inverse=True)
    size = int(own.max()) + int(other.max()) + 2
    graph = coo_array((np.ones(len(own)), (own, other + int(own.max()) + 1)), shape=(size, size))
    return np.asarray(connected_components(graph, directed=False)[1][own], dtype=np.int64)
