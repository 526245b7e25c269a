"""How strongly units usually fire: means and high percentiles over `mine` tokens, which ablation and steering set."""

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from saelab.cache import ActivationCache
from saelab.units.bases import Projection

TOKENS = 8192  # of the `mine` split, drawn by seed: enough for a mean and a 95th percentile
HIGH = 0.95  # of positive activations: a usual strong one
AT_ONCE = 1 << 24  # activations held at once


def usual_amounts(
    store: ActivationCache, project: Projection, units: list[int], n_units: int, seed: int = 0
) -> tuple[Float[Tensor, "n_units"], Float[Tensor, "n_units"]]:
    """Mean activation, and 95th percentile of the positive ones, of the given units; NaN for all others.

    Over up to TOKENS tokens of `mine`. The percentile of a unit that is silent on all of them is NaN.
    """
    rows = store.rows("mine")
    if len(rows) > TOKENS:
        rows = np.sort(np.random.default_rng(seed).choice(rows, TOKENS, replace=False))
    chosen = torch.tensor(units, dtype=torch.long)
    size = max(1, AT_ONCE // n_units)
    parts = []
    for start in range(0, len(rows), size):
        tokens = torch.from_numpy(np.asarray(store.tokens[rows[start : start + size]], dtype=np.float32))
        parts.append(project(tokens)[:, chosen])
    acts = torch.cat(parts)
    means, usual = torch.full((n_units,), torch.nan), torch.full((n_units,), torch.nan)
    means[chosen] = acts.mean(0)
    for unit, own in zip(units, acts.T):
        if (own > 0).any():
            usual[unit] = torch.quantile(own[own > 0], HIGH)
    return means, usual
