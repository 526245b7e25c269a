"""Where in a picture a unit fires, as boxes: Otsu's threshold on its map, then the parts that hold together.

Describe-and-Dissect (Bai et al., TMLR 2025, section 3.1) shows a model such crops beside whole pictures.
"""

import numpy as np
from jaxtyping import Float, Int
from PIL import Image

BINS = 256
MOST = 4  # boxes a picture
ALIKE, WHOLE = (
    0.5,
    0.8,
)  # intersection over union: above with a kept box, or from here on with the picture, none is kept

Box = tuple[int, int, int, int]  # left, top, right, bottom, in pixels


def otsu(counts: Int[np.ndarray, "bins"]) -> int:
    """The bin up to which (with it) values count as background: between-class variance is largest (Otsu 1979).

    Ties to the first; 0 where all values are in one bin.
    """
    counts = np.asarray(counts, dtype=np.float64)
    below, values = np.cumsum(counts), np.arange(len(counts)) * counts
    above, total = below[-1] - below, values.sum()
    first = np.cumsum(values)
    with np.errstate(divide="ignore", invalid="ignore"):
        apart = (first / below - (total - first) / above) ** 2
    between = np.where((below > 0) & (above > 0), below * above * apart, 0)
    return int(between.argmax())


def find_boxes(heat: Float[np.ndarray, "height width"], size: tuple[int, int], most: int = MOST) -> list[Box]:
    """Boxes around where the heat is, largest first, in pixels of a picture of `size` (width, height).

    The map, 0 where it is negative, is scaled to 8 bits and to the picture; Otsu's threshold cuts it; each connected
    part (also over corners) gives a box. Kept are up to `most` boxes of which no two have an IoU above ALIKE, and none
    of WHOLE or more with the picture. A map without differences gives none.
    """
    from scipy.ndimage import find_objects, label

    heat = np.clip(np.asarray(heat, dtype=np.float32), 0, None)
    if not heat.max() > heat.min():
        return []
    grey = Image.fromarray((255 * heat / heat.max()).astype(np.uint8)).resize(size, Image.Resampling.BICUBIC)
    pixels = np.asarray(grey)
    hot = pixels > otsu(np.bincount(pixels.ravel(), minlength=BINS))
    parts, _ = label(hot, structure=np.ones((3, 3)))
    found = [(own[1].start, own[0].start, own[1].stop, own[0].stop) for own in find_objects(parts)]
    kept: list[Box] = []
    for box in sorted(found, key=lambda b: (-_area(b), b)):
        if len(kept) < most and iou(box, (0, 0, *size)) < WHOLE and all(iou(box, other) <= ALIKE for other in kept):
            kept.append(box)
    return kept


def iou(a: Box, b: Box) -> float:
    """Intersection over union of two boxes."""
    width, height = (min(a[i + 2], b[i + 2]) - max(a[i], b[i]) for i in (0, 1))
    shared = max(0, width) * max(0, height)
    return shared / (_area(a) + _area(b) - shared)


def _area(box: Box) -> int:
    return (box[2] - box[0]) * (box[3] - box[1])
