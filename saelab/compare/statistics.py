"""Differences between methods on the same units, and the correction of p-values. Between bases: `shared`."""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float


@dataclass(frozen=True)
class Paired:
    """Mean of a minus mean of b on the same units."""

    n: int
    mean_a: float
    mean_b: float
    low: float
    high: float
    p_wilcoxon: float


def on_same_units(
    a: Float[np.ndarray, "units pairs"],
    b: Float[np.ndarray, "units pairs"],
    alpha: float,
    resamples: int,
    seed: int,
) -> list[Paired | None]:
    """Paired percentile bootstrap over units and Wilcoxon's signed ranks (scipy), column by column.

    A unit counts in a column where both are there. None for a column with fewer than two such units. All columns share
    their resamples, which makes this two matrix products instead of a loop.
    """
    from scipy.stats import wilcoxon

    both = np.isfinite(a) & np.isfinite(b)
    gap = np.where(both, a - b, 0.0)
    drawn = resampled_means(gap, both, resamples, seed)
    results: list[Paired | None] = []
    for j in range(a.shape[1]):
        keep = both[:, j]
        if keep.sum() < 2:
            results.append(None)
            continue
        low, high = np.nanquantile(drawn[:, j], [alpha / 2, 1 - alpha / 2])
        differences = gap[keep, j]
        p = float(wilcoxon(differences, method="approx").pvalue) if np.any(differences) else 1.0
        means = float(a[keep, j].mean()), float(b[keep, j].mean())
        results.append(Paired(int(keep.sum()), *means, float(low), float(high), p))
    return results


def resampled_means(
    values: Float[np.ndarray, "units m"], there: Bool[np.ndarray, "units m"], resamples: int, seed: int
) -> Float[np.ndarray, "resamples m"]:
    """Means of bootstrap resamples of the units, column by column, over the entries that are `there` (others hold 0).

    One draw of units serves all columns: its counts times the values is a matrix product, some resamples at a time.
    """
    rng, n = np.random.default_rng(seed), len(values)
    step = max(1, (1 << 22) // max(n, 1))
    parts = []
    for first in range(0, resamples, step):
        size = min(step, resamples - first)
        draws = rng.integers(0, n, size=(size, n)) + np.arange(size)[:, None] * n
        counts = np.bincount(draws.ravel(), minlength=size * n).reshape(size, n).astype(np.float64)
        with np.errstate(invalid="ignore", divide="ignore"):
            parts.append((counts @ values) / (counts @ there.astype(np.float64)))
    return np.concatenate(parts)
