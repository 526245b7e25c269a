"""Where on its strongest images a unit fires: its token maps, from the activation cache that the units came from."""

import base64
import logging
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch

from saelab import artifacts, bars, cache, hosts
from saelab.errors import UserError
from saelab.images import ImageSet
from saelab.report.reading import ReadBasis, Run
from saelab.units import Projection

log = logging.getLogger("saelab")
AT_ONCE = 2048  # tokens that are projected together, fewer for a wide SAE

Stores = dict[str, cache.ActivationCache | None]  # by layer: what a run with `stream` computes, made once for all bases


def of_basis(
    run: Run, basis: ReadBasis, positives: list[list[int]], unstored: Stores
) -> Iterator[dict[str, Any] | None]:
    """Per unit `{"grid": [height, width], "cells": base64 of uint8 [shown, height, width], "boxes": [[w, h], ...]}`.

    255 is the unit's highest token among its shown `positives`. A box is what the host saw of a picture, centred, as a
    share of the picture's centre square. None where there is no map: no cache, tokens without a place, other bases.
    """
    store, project = _cache(run, basis, unstored), _projection(basis)
    images = sorted({i for own in positives for i in own})
    grids = set() if store is None or project is None else {store.grid(i) for i in images}
    grid = grids.pop() if len(grids) == 1 else None
    if store is None or project is None or grid is None:
        yield from [None] * len(positives)
        return
    height, width = grid
    found = np.zeros((len(positives), max(map(len, positives)), height * width), np.float16)
    where: dict[int, list[tuple[int, int]]] = {}
    for u, own in enumerate(positives):
        for rank, image in enumerate(own):
            where.setdefault(image, []).append((u, rank))
    _fill(found, store, project, where)
    transform = store.recipe["host"]["transform"]
    for u, own in enumerate(positives):
        yield _packed(found[u, : len(own)], height, width, own, run.images, transform)


def _fill(found: np.ndarray, store: Any, project: Projection, where: dict[int, Any]) -> None:
    """Enter the cells of every (unit, rank) that an image stands for; some images are projected together."""
    cells, images = found.shape[2], sorted(where)
    tokens_at_once = AT_ONCE if project.sae is None else min(AT_ONCE, project.sae.tokens_at_once)
    step = max(1, tokens_at_once // cells)
    with torch.inference_mode(), bars.show(total=len(images), what="heat maps", unit="img") as bar:
        for first in range(0, len(images), step):
            some = images[first : first + step]
            tokens = torch.cat([torch.from_numpy(store.image_tokens(image))[-cells:] for image in some])
            grid = project(tokens).unflatten(0, (len(some), cells)).numpy()
            for own, image in zip(grid, some, strict=True):
                which, ranks = np.array(where[image]).T
                found[which, ranks] = own[:, which].T
            bar.update(len(some))


def _packed(
    cells: np.ndarray, height: int, width: int, positives: list[int], images: ImageSet, transform: dict[str, Any]
) -> dict[str, Any] | None:
    if not len(cells) or cells.max() <= 0:
        return None
    levels = np.round(255 * cells.astype(np.float32) / cells.astype(np.float32).max()).astype(np.uint8)
    boxes = [box(images.sizes[i], images.square, transform) for i in positives]
    return {"grid": [height, width], "cells": base64.b64encode(levels.tobytes()).decode(), "boxes": boxes}


def box(size: tuple[int, int], square: bool, transform: dict[str, Any]) -> list[float]:
    """(width, height) of what the host saw, as shares of the shorter side of a picture of (width, height) `size`.

    `square`: the picture is padded to a square before. `transform`: the fields of `hosts.Transform`.
    """
    width, height = (max(size), max(size)) if square else size
    resize, crop = transform["resize"], transform["crop"]
    short = min(width, height)
    if isinstance(resize, int):
        scaled = (width * resize / short, height * resize / short)
    else:
        scaled = (float(resize[1]), float(resize[0]))
    seen = scaled if crop is None else (float(crop[1]), float(crop[0]))
    return [seen[0] / scaled[0] * width / short, seen[1] / scaled[1] * height / short]


def _cache(run: Run, basis: ReadBasis, unstored: Stores) -> cache.ActivationCache | None:
    """The cache that the basis was pooled from, if the run still has it or never stored it."""
    wanted = basis.recipes["units"].get("cache")
    for recipe in sorted((run.path.parent / "activations").glob("*/recipe.json")):
        try:
            if wanted is not None and artifacts.digest(artifacts.read_json(recipe)) == wanted:
                return cache.open(recipe.parent)
        except UserError as error:
            log.warning("no heat maps for %s: %s", basis.name, error)
    if not run.facts["config"].get("stream"):
        return None
    if basis.layer not in unstored:
        unstored[basis.layer] = _unstored(run, basis)
    store = unstored[basis.layer]
    return store if store is not None and store.digest == wanted else None


def _unstored(run: Run, basis: ReadBasis) -> cache.ActivationCache | None:
    """What a run with `stream` computes of a basis' layer, where its host can be loaded by name."""
    own = run.facts["config"]
    host = {name: own["host"][name] for name in ("name", "weights", "dtype", "seed", "transform")}
    tokens = {name: own[name] for name in ("policy", "dtype", "batch_size", "workers", "tokens_per_image")}
    try:
        return cache.recompute(run.images, hosts.load(**host), [basis.layer], run.path.parent, **tokens)[basis.layer]
    except UserError as error:
        log.warning("no heat maps for %s: %s", basis.name, error)
        return None


def _projection(basis: ReadBasis) -> Projection | None:
    """From tokens to the units' activations before pooling."""
    try:
        return Projection.load(basis.units, basis.sae)
    except UserError as error:
        log.warning("no heat maps for %s: %s", basis.name, error)
        return None
