"""Units among the random directions of their layer: how many of these do worse on the same held-out number?"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from jaxtyping import Float

from saelab.compare.inputs import ComparedBasis, Index, mean_of

FEWEST = 20  # random directions with a number, below which there is no sentence
ABOVE = 0.95  # of the random directions: what a twentieth of their like would reach


def among(values: Float[np.ndarray, "units"], drawn: Float[np.ndarray, "drawn"]) -> Float[np.ndarray, "units"]:
    """The share of `drawn` that is lower than each value, ties half; NaN where a value is, or too few were drawn."""
    known = np.sort(drawn[np.isfinite(drawn)])
    if len(known) < FEWEST:
        return np.full(len(values), np.nan)
    share = (np.searchsorted(known, values, "left") + np.searchsorted(known, values, "right")) / (2 * len(known))
    return np.where(np.isfinite(values), share, np.nan)


def random_percentiles(
    bases: Sequence[ComparedBasis], kept: Mapping[str, Index], metric: str | None
) -> dict[str, dict[str, Any] | None]:
    """Of each basis, every kept unit named: mean percentile, share above 95 % and n; None for what is itself random.

    `metric`: a correlation (above chance), or None where nothing decides. Random directions of all seeds count.
    """
    drawn = [basis for basis in bases if basis.kind == "random_rotation"]
    if metric is None or not drawn:
        return dict.fromkeys((basis.name for basis in bases), None)
    values = {basis.name: basis.faithfulness(metric, "named")[kept[basis.name]] for basis in bases}
    null = np.concatenate([values[basis.name] for basis in drawn])
    found: dict[str, dict[str, Any] | None] = {}
    for basis in bases:
        share = among(values[basis.name], null)
        known = share[np.isfinite(share)]
        said = {"mean": mean_of(share), "share_above_95": mean_of(known > ABOVE), "n": len(known)}
        found[basis.name] = None if basis in drawn or not len(known) else said
    return found
