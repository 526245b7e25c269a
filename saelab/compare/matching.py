"""Matching: equally many units of every basis from each bin of a number (firing rate, strength of activation)."""

from collections.abc import Sequence

import numpy as np
from jaxtyping import Float, Int


def match(
    a: Sequence[Float[np.ndarray, "units"]], b: Sequence[Float[np.ndarray, "units"]], bins: int, seed: int
) -> tuple[list[Int[np.ndarray, "matched"]], list[Int[np.ndarray, "matched"]]]:
    """Indices into each array of `a` and `b` (the bases of two groups) such that all have the same histogram.

    Bins are quantiles, both groups weighing alike, of the range in which all bases have units; from each bin every
    basis gives as many units as the smallest basis has there, drawn without replacement. Units without a finite number
    are never drawn. Empty index arrays where the ranges don't overlap.
    """
    everyone = [*a, *b]
    finite = [np.flatnonzero(np.isfinite(values)) for values in everyone]
    nothing = [np.empty(0, dtype=np.int64) for _ in everyone]
    if any(len(index) == 0 for index in finite):
        return nothing[: len(a)], nothing[len(a) :]
    low = max(values[index].min() for values, index in zip(everyone, finite))
    high = min(values[index].max() for values, index in zip(everyone, finite))
    if low > high:
        return nothing[: len(a)], nothing[len(a) :]
    edges = _edges(a, b, low, high, bins)
    rng = np.random.default_rng(seed)
    places = [_binned(values, edges, low, high) for values in everyone]
    chosen: list[list[np.ndarray]] = [[] for _ in everyone]
    for bin_ in range(len(edges) + 1):
        members = [np.flatnonzero(place == bin_) for place in places]
        take = min(len(index) for index in members)
        for index, kept in zip(members, chosen):
            kept.append(rng.choice(index, size=take, replace=False))
    drawn = [np.sort(np.concatenate(kept)).astype(np.int64) for kept in chosen]
    return drawn[: len(a)], drawn[len(a) :]


def _edges(
    a: Sequence[np.ndarray], b: Sequence[np.ndarray], low: float, high: float, bins: int
) -> Float[np.ndarray, "inner"]:
    """Inner edges of the bins; fewer than bins - 1 where many units share one number."""
    grid = np.linspace(0, 1, 1001)
    sides = []
    for group in (a, b):
        values = np.concatenate(group)
        inside = values[(values >= low) & (values <= high)]
        if len(inside):
            sides.append(np.quantile(inside, grid))
    return np.unique(np.quantile(np.concatenate(sides), np.linspace(0, 1, bins + 1)[1:-1])) if sides else np.empty(0)


def _binned(values: np.ndarray, edges: np.ndarray, low: float, high: float) -> Int[np.ndarray, "units"]:
    inside = (values >= low) & (values <= high)
    return np.where(inside, np.searchsorted(edges, values, side="right"), -1)
