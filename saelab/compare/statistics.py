"""The statistics: differences between bases (other units) and methods (the same units), and their correction."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float

SEEDS = 3  # seeds a group needs for an interval over seeds


@dataclass(frozen=True)
class Difference:
    """Mean of a minus mean of b."""

    mean_a: float
    mean_b: float
    low: float  # 1 - alpha interval of the difference
    high: float
    p: float  # two-sided, of the same method as the interval
    cliffs_delta: float  # P(a > b) - P(a < b)
    p_mannwhitney: float  # units of all seeds taken as independent

    @property
    def difference(self) -> float:
        return self.mean_a - self.mean_b


def interval_kind(seeds_a: int, seeds_b: int) -> str:
    """Which interval `between_bases` gives for so many bases a side."""
    if seeds_a >= SEEDS and seeds_b >= SEEDS:
        return "t on seed means"
    if max(seeds_a, seeds_b) >= SEEDS:
        return "t on seed means and units"
    return "bootstrap over units"


def between_bases(
    a: Sequence[Float[np.ndarray, "units"]],
    b: Sequence[Float[np.ndarray, "units"]],
    alpha: float,
    resamples: int,
    seed: int,
) -> Difference:
    """Compare two groups of bases, each an array a seed, without NaN.

    With three seeds or more on a side, that side's squared error is the variance of its seed means over their number;
    a side with fewer has the error of its units. Both go into Welch's t interval with Satterthwaite's degrees of
    freedom. Where neither side has three seeds: percentile bootstrap over units within each basis, and p from the
    share of resampled differences on the far side of 0. Mann-Whitney and Cliff's delta (2U/nm - 1) pool the seeds.
    """
    from scipy.stats import mannwhitneyu, t

    mean_a, mean_b = (float(np.mean([x.mean() for x in group])) for group in (a, b))
    if max(len(a), len(b)) >= SEEDS:
        (error_a, freedom_a), (error_b, freedom_b) = _error(a), _error(b)
        error = error_a + error_b
        # Identical constants on both sides leave no error at all: then only an exact tie is no difference.
        freedom = error**2 / (error_a**2 / freedom_a + error_b**2 / freedom_b) if error > 0 else 1.0
        scale = np.sqrt(error)
        half = float(t.ppf(1 - alpha / 2, freedom) * scale)
        low, high = mean_a - mean_b - half, mean_a - mean_b + half
        p = float(2 * t.sf(abs(mean_a - mean_b) / scale, freedom)) if error > 0 else float(mean_a == mean_b)
    else:
        drawn = _resampled(a, resamples, seed) - _resampled(b, resamples, seed + 1)
        low, high, p = _percentile(drawn, alpha)
    pooled_a, pooled_b = np.concatenate(a), np.concatenate(b)
    test = mannwhitneyu(pooled_a, pooled_b, alternative="two-sided", method="asymptotic")
    delta = 2 * float(test.statistic) / (len(pooled_a) * len(pooled_b)) - 1
    p_ranks = float(test.pvalue) if np.isfinite(test.pvalue) else 1.0
    return Difference(mean_a, mean_b, float(low), float(high), p, delta, p_ranks)


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


def differs_from_zero(values: Float[np.ndarray, "units"]) -> float:
    """Two-sided p of Student's t test that the mean is 0; 1 where all values are 0."""
    from scipy.stats import ttest_1samp

    if not np.ptp(values):
        return float(not values.any())
    return float(ttest_1samp(values, 0.0).pvalue)


def holm(p: Sequence[float]) -> list[float]:
    """Holm's (1979) corrected p-values in the order given: the i-th smallest of m times m - i + 1, made monotone.

    statsmodels' `multipletests` gives the same, but collects all of Python's garbage at every call (0.4 s each here).
    """
    values = np.asarray(p, dtype=np.float64)
    order = np.argsort(values, kind="stable")
    corrected = np.maximum.accumulate(values[order] * np.arange(len(values), 0, -1)) if len(values) else values
    result = np.empty_like(values)
    result[order] = np.minimum(corrected, 1.0)
    return result.tolist()


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


def _error(group: Sequence[np.ndarray]) -> tuple[float, float]:
    """Squared standard error of the mean of a group's basis means, and its degrees of freedom."""
    if len(group) >= SEEDS:
        means = [x.mean() for x in group]
        return float(np.var(means, ddof=1)) / len(group), len(group) - 1
    error = sum(float(np.var(x, ddof=1)) / len(x) for x in group) / len(group) ** 2
    return error, sum(len(x) - 1 for x in group)


def _resampled(group: Sequence[np.ndarray], resamples: int, seed: int) -> Float[np.ndarray, "resamples"]:
    """Bootstrap means of a group: units resampled within each basis."""
    # a stream of its own for every basis
    means = [
        resampled_means(x[:, None], np.ones((len(x), 1), dtype=bool), resamples, seed + 1000 * i)[:, 0]
        for i, x in enumerate(group)
    ]
    return np.mean(means, axis=0)


def _percentile(drawn: Float[np.ndarray, "resamples"], alpha: float) -> tuple[float, float, float]:
    low, high = np.quantile(drawn, [alpha / 2, 1 - alpha / 2])
    beyond = min(int((drawn <= 0).sum()), int((drawn >= 0).sum()))
    return float(low), float(high), min(1.0, 2 * (beyond + 1) / (len(drawn) + 1))
