"""Units by meaning: the mean embedding of a unit's strongest images, and maps of units on two axes."""

from typing import Any

import numpy as np

from saelab import artifacts
from saelab.errors import UserError
from saelab.report.reading import ReadBasis, Run

SIDE = 1000  # steps of a map's longer side


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


def axes(rows: np.ndarray) -> tuple[np.ndarray, list[float]]:
    """[units, 2] int: the two principal components of `rows`, both in steps of a `SIDE`th of the longer one; and the
    share of the variance that each holds. Signs are set so that the largest loading is positive."""
    centred = rows - rows.mean(0)
    values, vectors = np.linalg.eigh((centred.T @ centred).astype(np.float64))
    two = vectors[:, ::-1][:, :2]
    two = two * np.sign(np.take_along_axis(two, np.abs(two).argmax(0)[None], 0))
    placed = centred @ two
    placed = placed - placed.min(0)
    total = max(float(values.clip(0).sum()), 1e-12)
    steps = np.round(SIDE * placed / max(float(placed.max()), 1e-12)).astype(int)
    return steps, [float(v) / total for v in values[::-1][:2].clip(0)]


def maps(run: Run, means: list[np.ndarray | None]) -> list[dict[str, Any]]:
    """The maps of each layer: `{"layer", "of", "bases": [number], "x": [[...]], "y": [[...]], "shares"}`.

    `of` is "meaning" (all bases of the layer in one space) or "decoder" (directions of an SAE's features, by itself).
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
    placed, shares = axes(np.concatenate(rows))
    parts = np.split(placed, np.cumsum([len(part) for part in rows])[:-1])
    x, y = ([part[:, side].tolist() for part in parts] for side in (0, 1))
    return {"layer": layer, "of": of, "bases": numbers, "x": x, "y": y, "shares": shares}


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
