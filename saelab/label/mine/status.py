"""What can be said of a unit before any image is looked at: means, counts, status."""

import torch
from jaxtyping import Float, Int
from torch import Tensor

from saelab.acts import FIRES, Acts, Columns, blocks, columns, firing_threshold, shape


def column_means(acts: Acts) -> Float[Tensor, "units"]:
    """Mean activation of each unit over all images, zeros included, in float64.

    Float64 sums of float32 numbers keep the mean of a constant unit equal to its value, so that none of its images
    counts as below the mean. NaN where an activation is NaN.
    """
    acts = columns(acts)
    if isinstance(acts, Columns):
        return acts.total(acts.values) / acts.images
    total = torch.zeros(acts.shape[1], dtype=torch.float64, device=acts.device)
    for rows in acts.split(max(1, (1 << 18) // max(acts.shape[1], 1))):
        total += rows.sum(dim=0, dtype=torch.float64)
    return total / acts.shape[0]


def fires_on(acts: Acts, threshold: float | None = None) -> Int[Tensor, "units"]:
    """On how many images each unit's activation is above `threshold`; None: `saelab.acts.firing_threshold`."""
    acts = columns(acts)
    least = firing_threshold(extremes(acts)[1]) if threshold is None else torch.full((shape(acts)[1],), threshold)
    if isinstance(acts, Columns):
        return acts.total(acts.values > least.to(acts.device)[acts.unit_of_entry]).long()
    return (acts > least.to(acts.device)).sum(dim=0)


def statuses(acts: Acts, rare_below: int = 10, dense_from: float = 0.8, threshold: float | None = None) -> list[str]:
    """Status of each unit, dense or CSR alike; the first that holds of

    `invalid` (a NaN or infinite activation), `dead` (fires on no image: see `fires_on`), `constant` (the same
    activation everywhere), `rare` (fires on fewer than `rare_below` images; the CSP authors ask for 100), `dense`
    (fires on the share `dense_from` of the images or more), `ok`. Labelling may add `no_contrast` to an `ok` unit.
    """
    acts = columns(acts)
    images, units = shape(acts)
    fires = fires_on(acts, threshold)
    if isinstance(acts, Columns):
        invalid = acts.total(~acts.values.isfinite()) > 0
    else:
        invalid = torch.cat([~block.isfinite().all(dim=0) for _, block in blocks(acts)]) if units else fires > 0
    low, high = extremes(acts)
    fires = fires.masked_fill((low == high) & (high <= FIRES), 0)  # the same tiny number everywhere says nothing
    names = []
    for bad, n, constant in zip(invalid.tolist(), fires.tolist(), (low == high).tolist(), strict=True):
        if bad:
            names.append("invalid")
        elif n == 0:
            names.append("dead")
        elif constant:
            names.append("constant")
        elif n < rare_below:
            names.append("rare")
        else:
            names.append("dense" if n >= dense_from * images else "ok")
    return names


def extremes(acts: Acts) -> tuple[Float[Tensor, "units"], Float[Tensor, "units"]]:
    """Smallest and largest activation of each unit, implicit zeros included."""
    acts = columns(acts)
    if not isinstance(acts, Columns):
        return acts.amin(dim=0), acts.amax(dim=0)
    start = torch.where(acts.counts < acts.images, 0.0, torch.inf).to(acts.values.dtype)
    low = start.scatter_reduce(0, acts.unit_of_entry, acts.values, "amin")
    none = torch.where(acts.counts < acts.images, 0.0, -torch.inf).to(acts.values.dtype)
    return low, none.scatter_reduce(0, acts.unit_of_entry, acts.values, "amax")
