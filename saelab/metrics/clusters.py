"""How sure is a mean over units of which several carry one label? A cluster-robust error, and Student's interval.

Few or uneven clusters make the plain error too small: each cluster's residual is corrected for its leverage (CR2), and
degrees of freedom are effective clusters less one. The comparison of bases and the effects of units both use it.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Int

ROUNDING = 1e-24  # a variance that float64 alone makes of values around 1
Pieces = Sequence[tuple[float, float]]  # a part of the variance and its degrees of freedom


@dataclass(frozen=True)
class Spread:
    """The variance of a weighted mean over fresh clusters."""

    variance: float
    effective: float  # clusters: fewer than there are where they weigh unevenly

    @property
    def df(self) -> float:
        """Effective clusters less one, 1 at least."""
        return max(self.effective - 1, 1.0)


def spread(
    values: Float[np.ndarray, "units"],
    cluster: Int[np.ndarray, "units"],
    weights: Float[np.ndarray, "units"] | None = None,
) -> Spread:
    """The variance of the mean (weights sum to 1; None: all alike). With a single cluster it is unknown, and 0."""
    own = np.full(len(values), 1 / len(values)) if weights is None else weights
    share = np.bincount(cluster, own)
    effective = 1 / float((share**2).sum())
    if len(share) < 2:
        return Spread(0.0, effective)
    gaps = np.bincount(cluster, own * (values - float(own @ values)))
    return Spread(float((gaps**2 / np.maximum(1 - share, 1e-9)).sum()), effective)


def unvaried(pieces: Pieces) -> bool:
    """Whether no value differs from any other, so that nothing says how sure their mean is."""
    return sum(variance for variance, _ in pieces) <= ROUNDING


def student(gap: float, pieces: Pieces, alpha: float = 0.05) -> tuple[float, float, float, float]:
    """Interval, two-sided p and Satterthwaite's degrees of freedom from (variance, degrees of freedom) of each part."""
    from scipy.stats import t

    total = sum(v for v, _ in pieces)
    if total <= 0:
        return gap, gap, float(gap == 0), float("inf")
    df = total**2 / sum(v * v / max(d, 1.0) for v, d in pieces if v > 0)
    error = float(np.sqrt(total))
    half = float(t.ppf(1 - alpha / 2, df)) * error
    return gap - half, gap + half, float(2 * t.sf(abs(gap) / error, df)), float(df)
