"""MILAN's exemplars (Hernandez et al., ICLR 2022): a unit's strongest pictures, and masks of where it fires in them.

A folder as the authors' tools read it: `images.npy` uint8 [units, k, 3, side, side], `masks.npy` uint8 (0 or 1)
[units, k, 1, side, side], `units.npy` int64 [units], `ids.csv` and `activations.csv` (a line a unit).
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from jaxtyping import Float, UInt8
from PIL import Image
from torch import Tensor
from torch.nn.functional import interpolate

from saelab import bars
from saelab.artifacts import atomic, clear_temporary
from saelab.cache import ActivationCache
from saelab.errors import UserError
from saelab.hosts.transform import Transform
from saelab.units import HeatMaps

if TYPE_CHECKING:
    from saelab.images import ImageSet

SHARE = 0.01  # of all places lie above a unit's level (the paper's .99 quantile)
SIDE = 224  # of pictures and masks
KEPT = 1024  # pictures in memory as they are written, 150 kB each: many units share theirs


@dataclass(frozen=True)
class Strongest:
    """A unit with the pictures that fire it most."""

    unit: int
    images: tuple[int, ...]  # image ids, strongest first
    activations: tuple[float, ...]  # pooled, one a picture


def write_exemplars(
    folder: Path, chosen: Sequence[Strongest], images: "ImageSet", maps: HeatMaps, progress: bool = True
) -> Path:
    """Write the exemplars of these units into `folder` and return it.

    Pictures are what the host saw (resized and cropped alike, colours as they are). A mask is 1 where the unit's map,
    upsampled bilinearly, is above the level that 1 % of its places in all `mine` pictures exceed. Units with fewer
    pictures than the others are filled up with black ones, masked out, of id -1. Raises UserError for maps without
    places, for tokens that come from no host, and for no unit.
    """
    if not chosen:
        raise UserError("units", "none", "expected at least one unit with exemplars")
    see = look_like_the_host(maps.cache)
    levels = maps.levels([own.unit for own in chosen], SHARE)
    folder.mkdir(parents=True, exist_ok=True)
    clear_temporary(folder)
    k = max(len(own.images) for own in chosen)
    show = lru_cache(KEPT)(lambda image: _show(images.load(image), see))
    with atomic(folder / "images.npy") as shown, atomic(folder / "masks.npy") as masked:  # none of a killed call
        pictures, masks = (
            np.lib.format.open_memmap(file, mode="w+", dtype=np.uint8, shape=(len(chosen), k, depth, SIDE, SIDE))
            for file, depth in ((shown, 3), (masked, 1))
        )
        for row, own in enumerate(bars.show(chosen, what="exemplars", unit="unit", leave=True, hidden=not progress)):
            for place, image in enumerate(own.images):
                pictures[row, place] = show(image)
                masks[row, place, 0] = mask(maps, own.unit, image, float(levels[row]))
        pictures.flush()
        masks.flush()
        np.save(folder / "units.npy", np.array([own.unit for own in chosen], dtype=np.int64))
        _save_csv(folder / "ids.csv", (own.images for own in chosen), k, -1, "%i")
        _save_csv(folder / "activations.csv", (own.activations for own in chosen), k, 0.0, "%.5e")
    return folder


def mask(maps: HeatMaps, unit: int, image: int, level: float, side: int = SIDE) -> UInt8[np.ndarray, "side side"]:
    """1 where the unit's upsampled map is above `level`, else 0. Raises UserError for a layer without places."""
    found = maps.activations(unit, image)
    if found is None:
        why, remedy = "its tokens have no place in the picture", "use a conv or patch layer, with all its tokens"
        raise UserError("layers", maps.cache.layer, why, remedy)
    up = interpolate(found[None, None].float(), size=(side, side), mode="bilinear", align_corners=False)[0, 0]
    return (up > level).numpy().astype(np.uint8)


def look_like_the_host(cache: ActivationCache) -> Transform:
    """The cut of the pictures that the cache's host saw, without its normalisation. UserError for adopted tokens."""
    spec = cache.recipe.get("host", {}).get("transform") if isinstance(cache.recipe.get("host"), dict) else None
    if not isinstance(spec, dict) or "resize" not in spec:
        why = "its tokens come from no host whose cut of the pictures is known"
        raise UserError("run", cache.path, why, "give a host instead of arrays")
    return Transform(**spec | {"mean": [0] * 3, "std": [1] * 3, "scale": 1, "channels": "RGB"})


def _show(picture: Image.Image, see: Transform) -> UInt8[np.ndarray, "3 side side"]:
    seen = see(picture).clamp(0, 255).round().to(torch.uint8).permute(1, 2, 0).numpy()
    return np.asarray(Image.fromarray(seen).resize((SIDE, SIDE), Image.Resampling.BILINEAR)).transpose(2, 0, 1)


def _save_csv(path: Path, rows: Iterable[Sequence[float]], k: int, fill: float, form: str) -> None:
    table = np.array([[*row, *[fill] * (k - len(row))] for row in rows])
    np.savetxt(path, table, fmt=form, delimiter=",")


def strongest(
    acts: Float[Tensor, "images units"], ids: np.ndarray, units: Sequence[int], k: int = 15
) -> list[Strongest]:
    """The `k` pictures of strongest activation of each of `units`, ties to the lower row.

    `acts`: of the images `ids`, dense or sparse.
    """
    from saelab.acts import columns
    from saelab.label.mine import top_images

    places, values = top_images(columns(acts), min(k, len(ids)))
    return [
        Strongest(u, tuple(int(ids[i]) for i in places[u].tolist()), tuple(float(v) for v in values[u].nan_to_num()))
        for u in units
    ]
