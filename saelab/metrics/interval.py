"""How sure is a mean over units? Bootstrap intervals."""

from typing import NamedTuple

import numpy as np
from jaxtyping import Float
from torch import Tensor


class Interval(NamedTuple):
    """A mean over units with its interval."""

    mean: float  # over the units that have a number
    low: float
    high: float
    units: int  # how many have one


def bootstrap_interval(
    values: Float[Tensor, "units"], level: float = 0.95, resamples: int = 2000, seed: int = 0
) -> Interval:
    """Mean over units and its bias-corrected, accelerated bootstrap interval (scipy); units are resampled.

    NaN is left out (and counted by `units`). With fewer than two numbers, or where all are equal, the interval is
    (NaN, NaN) or the value itself.
    """
    from scipy.stats import bootstrap

    known = values[~values.isnan()].double().cpu().numpy()
    if len(known) < 2:
        return Interval(float(known.mean()) if len(known) else float("nan"), float("nan"), float("nan"), len(known))
    if (known == known[0]).all():
        return Interval(float(known[0]), float(known[0]), float(known[0]), len(known))
    found = bootstrap(
        (known,), np.mean, confidence_level=level, n_resamples=resamples, rng=np.random.default_rng(seed), batch=200
    ).confidence_interval
    return Interval(float(known.mean()), float(found.low), float(found.high), len(known))
