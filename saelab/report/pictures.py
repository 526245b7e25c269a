"""Small copies of the pictures that a report shows, each once, sized so that the folder stays light."""

import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
from jaxtyping import Int
from PIL import Image

from saelab import bars
from saelab.errors import UserError
from saelab.images import ImageSet

BUDGET = 80 * 2**20  # bytes that all small pictures may take together
SIDES = {256: 9_000, 192: 5_600, 144: 3_500, 112: 2_400, 88: 1_700}  # longer side -> bytes of an ImageNet photo as WebP
QUALITY = 78


def side_for(count: int, budget: int = BUDGET) -> int:
    """The largest side at which `count` pictures fit the budget; the smallest side where none does."""
    return next((side for side, size in SIDES.items() if count * size <= budget), min(SIDES))


def few_of_each(groups: Int[np.ndarray, "images"], count: int) -> Int[np.ndarray, "some"]:
    """Places of the images that a strip for `count` shows, given the groups of all, the strongest first.

    Of near-duplicates, or a series, the first alone; of each as few as fill half of the strip where that leaves less,
    as with the frames of two videos.
    """
    half = (min(count, len(groups)) + 1) // 2
    _, own = np.unique(groups, return_inverse=True)
    order = np.argsort(own, kind="stable")
    starts = np.searchsorted(own[order], own[order])
    before = np.empty(len(groups), dtype=np.int64)  # how many of its group come before each
    before[order] = np.arange(len(groups)) - starts
    most = int(np.searchsorted(np.bincount(before).cumsum(), half)) if len(groups) else 0
    return np.flatnonzero(before <= most)[:count]


def place(image_id: int) -> str:
    """Path of a small picture inside the report's folder."""
    return f"thumbs/{image_id // 1000}/{image_id}.webp"


def write(ids: list[int], images: ImageSet, out: Path, side: int) -> dict[int, str]:
    """Write the small pictures that do not exist yet. Returns the ids that could not be read, with the reason."""
    for folder in {(out / place(i)).parent for i in ids}:
        folder.mkdir(parents=True, exist_ok=True)

    def one(i: int) -> tuple[int, str] | None:
        try:
            if not (out / place(i)).exists():
                _shrink(images.load(i), out / place(i), side)
        except UserError as error:
            return i, str(error)
        return None

    with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:
        results = bars.show(pool.map(one, ids), total=len(ids), what="small pictures", unit="img")
        return dict(failed for failed in results if failed)


def _shrink(picture: Image.Image, target: Path, side: int) -> None:
    picture.thumbnail((side, side), Image.Resampling.LANCZOS)
    temporary = target.with_suffix(".tmp")
    picture.save(temporary, "WEBP", quality=QUALITY, method=4)
    temporary.replace(target)
