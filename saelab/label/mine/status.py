"""What can be said of a unit before any image is looked at: means, counts, status."""

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from saelab.acts import FIRES, Acts, Columns, columns, shape


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


def firing_threshold(acts: Acts, threshold: float = FIRES) -> Float[Tensor, "units"]:
    """The activation above which an image fires the unit, in the activations' own dtype.

    A unit is its positive side: negative activations and zeros are silent, and so is what is no more than rounding
    beside the unit's largest activation. That is `threshold`, or for a unit that never reaches 1 the share `threshold`
    of its largest, so that activations in small units of measurement count as they would in large ones. A constant unit
    has nothing to compare with: `threshold` as it is. NaN where an activation is NaN (nothing fires such a unit).
    """
    low, high = extremes(acts)
    scale = torch.where(low == high, 1.0, high.double().clamp(max=1))
    # A unit that is nowhere above 0 is silent everywhere: no image is above 0 either.
    return (threshold * scale.clamp(min=0)).to(high.dtype).masked_fill(low.isnan(), torch.nan)


def fires_on(acts: Acts, threshold: float = FIRES) -> Int[Tensor, "units"]:
    """On how many images each unit fires (`firing_threshold`); none for a unit with a NaN."""
    acts = columns(acts)
    least = firing_threshold(acts, threshold)
    if isinstance(acts, Columns):
        return acts.total(acts.values > least[acts.unit_of_entry]).long()
    return (acts > least).sum(dim=0)


def finite_units(acts: Acts) -> Bool[Tensor, "units"]:
    """Which units have neither a NaN nor an infinity."""
    acts = columns(acts)
    low, high = extremes(acts)
    return low.isfinite() & high.isfinite()


def statuses(acts: Acts, rare_below: int = 10, dense_from: float = 0.8, threshold: float = FIRES) -> list[str]:
    """Status of each unit, dense or CSR alike; the first that holds of

    `invalid` (a NaN or infinite activation), `dead` (fires on no image, see `firing_threshold`), `constant` (the same
    activation everywhere), `rare` (fires on fewer than `rare_below` images; the CSP authors ask for 100), `dense`
    (fires on the share `dense_from` of the images or more), `ok`. Labelling may add `no_contrast` to an `ok` unit.
    """
    acts = columns(acts)
    images, _ = shape(acts)
    fires = fires_on(acts, threshold)
    invalid = ~finite_units(acts)
    low, high = extremes(acts)
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
