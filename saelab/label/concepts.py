"""What people marked, laid out for the scorers that need it: classes for INVERT, label images for NetDissect.

Column j belongs to label j of the vocabulary; a label that nobody marked has an empty column, and so no score.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from PIL import Image
from torch import Tensor

from saelab.cache import ActivationCache
from saelab.errors import UserError
from saelab.hosts.transform import Transform
from saelab.images import ImageSet
from saelab.label.scorers.netdissect import netdissect_stream, top_threshold
from saelab.label.vocabulary import key
from saelab.units import Projection

LARGEST_NUMBER = (1 << 24) - 1  # that three bytes hold, and float32 exactly
LARGEST = 1 << 31  # bytes of maps or masks that are held at once


@dataclass(frozen=True)
class Tokens:
    """Where a basis' token activations come from."""

    cache: ActivationCache  # of the layer
    project: Projection  # tokens -> units


def classes(labels: Sequence[str], images: ImageSet, ids: np.ndarray) -> Bool[Tensor, "images labels"]:
    """Which of the images `ids` has which label as a class, names compared as `vocabulary.key` does.

    Raises UserError where no label is a class of any image.
    """
    names, member = images.truth()
    table = torch.from_numpy(member[ids])
    place = _places(labels, names)
    if not place:
        raise UserError("scorer", "invert", "no label of the vocabulary is a class", "use label.vocabulary=[classes]")
    found = torch.zeros(len(ids), len(labels), dtype=torch.bool)
    for label, columns in place.items():
        found[:, label] = table[:, columns].any(1)
    return found


def pixels(labels: Sequence[str], images: ImageSet, ids: np.ndarray, cache: ActivationCache) -> Bool[Tensor, "..."]:
    """The label images of `ids` as [images, labels, height, width], of what the host saw: resized and cropped alike.

    Raises UserError for images without label images, and where the result would take more than 2 GiB.
    """
    if not images.masks:
        raise UserError("scorer", "netdissect", "the pictures have no label images", "give images.masks=FOLDER")
    plain = {"interpolation": "nearest", "mean": [0] * 3, "std": [1] * 3, "scale": 1, "channels": "RGB"}
    see = Transform(**(cache.recipe["host"]["transform"] | plain))
    _affordable("label images", len(ids) * len(labels) * see.size[0] * see.size[1])
    place = _places(labels, images.mask_names)
    found = []
    for i in ids.tolist():
        seen = _numbers(see(_picture(images.mask(i))))
        of_image = torch.zeros(len(labels), *seen.shape, dtype=torch.bool)
        for label, values in place.items():
            of_image[label] = torch.isin(seen, torch.tensor(values, dtype=seen.dtype))
        found.append(of_image)
    return torch.stack(found)


def _picture(numbers: Int[np.ndarray, "height width"]) -> Image.Image:
    """Class numbers from -1 on as a picture that a Transform takes: one more than each, a byte a channel."""
    shifted = (numbers.astype(np.int64) + 1).clip(0, LARGEST_NUMBER)
    return Image.fromarray(np.stack([shifted >> 8 * byte & 255 for byte in range(3)], axis=2).astype(np.uint8))


def _numbers(seen: Float[Tensor, "3 height width"]) -> Float[Tensor, "height width"]:
    """The class numbers of such a picture, resized and cropped; -1 where the crop reaches beyond it (black)."""
    return seen[0] + 256 * seen[1] + 65536 * seen[2] - 1


def maps(tokens: Tokens, ids: np.ndarray) -> Float[Tensor, "images units height width"]:
    """Token activations of the images `ids` in the layer's grid. UserError without one grid for all, or above 2 GiB."""
    grids = {tokens.cache.grid(i) for i in ids.tolist()}
    grid = next(iter(grids))
    if len(grids) > 1 or grid is None:
        raise UserError("scorer", "netdissect", "the layer's tokens have no common grid", "use a conv or patch layer")
    found: Tensor | None = None
    with torch.inference_mode():
        for row, i in enumerate(ids.tolist()):
            raw = torch.from_numpy(np.array(tokens.cache.image_tokens(i), dtype=np.float32))
            units = tokens.project(raw[-grid[0] * grid[1] :]).T.reshape(-1, *grid)
            if found is None:
                _affordable("token maps", 4 * len(ids) * units.numel())
                found = torch.empty(len(ids), *units.shape)
            found[row] = units
    assert found is not None
    return found


def held_out_iou(
    chosen: Sequence[str | None], tokens: Tokens, images: ImageSet, mine: np.ndarray, test: np.ndarray
) -> Float[Tensor, "units"]:
    """NetDissect's IoU of each unit with its label's pixels on `test`, where nothing was chosen.

    Thresholds and labels (`chosen`) come from the images `mine`. NaN for units without a label, and for labels without
    a pixel on `test`. Raises UserError as `pixels` and `maps` do.
    """
    names = sorted({label for label in chosen if label is not None})
    threshold = top_threshold(maps(tokens, mine))
    out = torch.full((len(chosen),), torch.nan)
    if names:
        masks, on = pixels(names, images, test, tokens.cache), maps(tokens, test)
        iou = netdissect_stream(((on[i : i + 1], masks[i : i + 1]) for i in range(len(on))), threshold)
        for unit, label in enumerate(chosen):
            if label is not None:
                out[unit] = iou[unit, names.index(label)]
    return out


def _places(labels: Sequence[str], names: Sequence[str]) -> dict[int, list[int]]:
    """Label -> the names that are its own."""
    by_key: dict[str, list[int]] = {}
    for i, name in enumerate(names):
        by_key.setdefault(key(name), []).append(i)
    return {i: by_key[key(label)] for i, label in enumerate(labels) if key(label) in by_key}


def _affordable(what: str, size: int) -> None:
    if size > LARGEST:
        remedy = "use fewer images (images.limit) or labels"
        raise UserError("scorer", "netdissect", f"{what} would take {size / 2**30:.1f} GiB, at most 2 are", remedy)
