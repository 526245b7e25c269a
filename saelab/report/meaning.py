"""Units by meaning: the mean embedding of a unit's strongest images, and maps of units on two axes."""

import logging
from importlib.util import find_spec
from typing import Any

import numpy as np

from saelab import artifacts
from saelab.errors import UserError
from saelab.report.reading import ReadBasis, Run

log = logging.getLogger("saelab")

SIDE = 1000  # steps of a map's longer side
NEAR = 15  # neighbours of a unit that UMAP keeps beside it, its authors' default; fewer units are too few for it
KEPT = 50  # principal components that UMAP is given: neighbours in the rest are noise, and cost time


def of_bases(run: Run) -> list[np.ndarray | None]:
    """Per basis [units, d_text] float32 of length 1: the mean of the centred embeddings of the strongest images.

    The embeddings are those that labels were made with, less the mean of all mined images; an image counts by its
    activation, and a unit that fires on none is zero. None where the run no longer has its embeddings.
    """
    spaces: dict[str, np.ndarray | None] = {}
    found = []
    for basis in run.bases:
        key = basis.recipes["labels"].get("encoder")
        if key is not None and key not in spaces:
            spaces[key] = _embeddings(run, key)
        space = spaces.get(key) if key is not None else None
        found.append(None if space is None else _means(basis, space))
    return found


def method() -> str:
    """How maps are drawn here: "umap" where umap-learn is installed (the extra `map`), else "pca"."""
    return "pca" if find_spec("umap") is None else "umap"


def axes(rows: np.ndarray) -> tuple[np.ndarray, list[float]]:
    """[units, 2] int: the two principal components of `rows`, both in steps of a `SIDE`th of the longer one; and the
    share of the variance that each holds. Signs are set so that the largest loading is positive."""
    placed, shares = _components(rows, 2)
    return _steps(placed), shares


def neighbourhoods(rows: np.ndarray) -> np.ndarray:
    """[units, 2] int: UMAP (McInnes, Healy and Melville 2018) of `rows`, in steps of a `SIDE`th of the longer side.

    `rows`: [units, d] float of length 1, so that nearness is that of the cosine. It starts from principal components
    and a fixed seed, and is the same every time. Needs umap-learn, which compiles itself at its first use.
    """
    import warnings

    import umap

    components, _ = _components(rows, min(KEPT, *rows.shape))
    start = components[:, :2] * (10 / max(float(np.abs(components[:, :2]).max()), 1e-12))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that a seed takes one core, and of units that nobody is near
        found = umap.UMAP(n_neighbors=NEAR, init=start.astype(np.float32), random_state=0, n_jobs=1)
        return _steps(found.fit_transform(components.astype(np.float32)))


def _components(rows: np.ndarray, count: int) -> tuple[np.ndarray, list[float]]:
    """[units, count]: principal components, the largest loading of each positive; and the shares of the variance."""
    centred = rows - rows.mean(0)
    values, vectors = np.linalg.eigh((centred.T @ centred).astype(np.float64))
    first = vectors[:, ::-1][:, :count]
    first = first * np.sign(np.take_along_axis(first, np.abs(first).argmax(0)[None], 0))
    total = max(float(values.clip(0).sum()), 1e-12)
    return centred @ first, [float(v) / total for v in values[::-1][:count].clip(0)]


def _steps(placed: np.ndarray) -> np.ndarray:
    """[units, 2] int from 0: both axes in steps of a `SIDE`th of the longer one."""
    placed = placed - placed.min(0)
    return np.round(SIDE * placed / max(float(placed.max()), 1e-12)).astype(int)


def maps(run: Run, means: list[np.ndarray | None]) -> list[dict[str, Any]]:
    """The maps of each layer: `{"layer", "of", "bases": [number], "x": [[...]], "y": [[...]], "by", "shares"}`.

    `of` is "meaning" (all bases of the layer in one space) or "decoder" (directions of an SAE's features, by itself);
    `by` is "umap" or "pca" (`method`), `shares` what the two principal components hold (empty for UMAP).
    """
    found = []
    for layer in dict.fromkeys(basis.layer for basis in run.bases):
        pairs = zip(run.bases, means, strict=True)
        own = {i: rows for i, (basis, rows) in enumerate(pairs) if basis.layer == layer and rows is not None}
        if own and len({rows.shape[1] for rows in own.values()}) == 1:
            found.append(_map(layer, "meaning", list(own), list(own.values())))
        for i, basis in enumerate(run.bases):
            if basis.layer == layer and basis.decoder is not None and min(basis.decoder.shape) > 1:
                lengths = np.linalg.norm(basis.decoder, axis=1, keepdims=True)
                found.append(_map(layer, "decoder", [i], [basis.decoder / np.maximum(lengths, 1e-12)]))
    return found


def _map(layer: str, of: str, numbers: list[int], rows: list[Any]) -> dict[str, Any]:
    joined = np.concatenate(rows)
    by = method() if len(joined) > NEAR else "pca"
    if by == "umap":
        log.info("map    %s, %s: %d units by UMAP", layer, of, len(joined))
    placed, shares = (neighbourhoods(joined), []) if by == "umap" else axes(joined)
    parts = np.split(placed, np.cumsum([len(part) for part in rows])[:-1])
    x, y = ([part[:, side].tolist() for part in parts] for side in (0, 1))
    return {"layer": layer, "of": of, "by": by, "bases": numbers, "x": x, "y": y, "shares": shares}


def _means(basis: ReadBasis, space: np.ndarray) -> np.ndarray:
    ids, weights = basis.exemplars["positives"], np.maximum(basis.exemplars["activations"], 0)
    weights = np.where(ids >= 0, weights, 0).astype(np.float32)
    rows = np.zeros((len(ids), space.shape[1]), np.float32)
    for rank in range(ids.shape[1]):  # a block of one image a unit: [units, k, d_text] would be large
        rows += weights[:, rank, None] * space[np.maximum(ids[:, rank], 0)]
    return rows / np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), 1e-12)


def _embeddings(run: Run, digest: str) -> np.ndarray | None:
    """[images, d_text] float32, less the mean of the mined images; None where they are gone or of other images."""
    from safetensors.numpy import load_file

    folder = next((run.path.parent / "embeddings").glob(f"*-{digest[:10]}"), None)
    try:
        path = None if folder is None else artifacts.open_artifact(folder).path / "embeddings.safetensors"
    except UserError:
        return None
    rows = None if path is None or not path.is_file() else load_file(path).get("images")
    if rows is None or len(rows) != len(run.images):
        return None
    rows = rows.astype(np.float32)
    return rows - rows[run.images.ids("mine")].mean(0)
