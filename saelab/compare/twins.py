"""Twins: the same directions behind another gate. Is it sparsity that makes features easier to name?

Bases differ in how often their units fire, and in what directions they are. A dense twin of an SAE feature (its
pre-activation) or a sparse twin of a neuron (cut to the SAE's firing rate) changes the gate alone; twins are compared
unit by unit, so what the directions are worth cancels.
"""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from saelab.acts import Acts, columns, dense
from saelab.compare.left_out import Measured, Parts, measure
from saelab.compare.shared import UNVARIED, Difference, combine, of_one
from saelab.compare.sides import Side, check, check_groups, typical
from saelab.errors import UserError


def cut_to_rate(
    acts: Acts, mine: Int[Tensor, "some"], rate: float | Float[Tensor, "units"]
) -> Float[Tensor, "images units"]:
    """Each unit made to fire (above 0) on a share `rate` of the images `mine`: smaller activations become 0.

    The threshold is a value of `mine` alone, and never below 0, so a unit that fires less often stays as it is. With
    ties at the threshold fewer images fire. Activations that stay keep their value, as behind a TopK gate. Raises
    UserError unless 0 < rate < 1 and there are images.
    """
    full = dense(columns(acts))
    rates = torch.as_tensor(rate, dtype=torch.float64).expand(full.shape[1])
    if len(mine) == 0:
        raise UserError("mine", "no image", "expected the images that thresholds are taken from")
    if not bool(((rates > 0) & (rates < 1)).all()):
        raise UserError("rate", rate, "expected shares between 0 and 1", "give the median firing rate of the SAE")
    ordered = full[mine].sort(dim=0, descending=True).values
    place = (rates * len(mine)).floor().long().clamp(max=len(mine) - 1)
    threshold = ordered.gather(0, place[None]).clamp(min=0)
    return torch.where(full > threshold, full, 0.0)


def paired_difference(
    a: Side,
    b: Side,
    groups: Int[Tensor, "images"] | Sequence[object] | None = None,
    metric: str = "pearson",
    resamples: int = 200,
    seed: int = 0,
    alpha: float = 0.05,
) -> Difference:
    """How much better labels agree with units of `a` than with their twins in `b`, unit by unit.

    Unit u of a seed in `a` is the twin of unit u of that seed in `b`. Values are those of `shared.difference`, above
    one reference; a pair in which either has NaN is left out. The mean is that of the pairs' differences, its variance
    that over fresh pairs (clustered by the label in `a`), seeds and images: `units_a`, `seeds`, `images`. Raises
    UserError unless both sides have the same number of units in every seed.
    """
    check(a, "a", a.images if a.acts else 0)
    check(b, "b", a.images)
    sizes = [[len(labels) for labels in side.labels] for side in (a, b)]
    if sizes[0] != sizes[1]:
        raise UserError("twins", f"{sizes[0]} and {sizes[1]} units", "expected a twin for every unit")
    parts = Parts.deal(check_groups(groups, a.images), resamples, seed)
    reference = (typical(a) + typical(b)) / 2
    one, other = (measure(side, parts, metric, reference) for side in (a, b))
    paired, twin = _both(one, other)
    gaps = _gaps(paired, twin)
    found = of_one(gaps, parts, alpha)
    if found.refused == UNVARIED and not gaps.values.any():  # twins that are the units themselves: known, not estimated
        found = replace(found, low=0.0, high=0.0, p=1.0, df=np.inf, refused=None)
    if found.difference is None:
        return found
    return replace(found, mean_a=_mean(paired), mean_b=_mean(twin))


def paired_differences(a: tuple[Side, Side], b: tuple[Side, Side], parts: Parts, alpha: float = 0.05) -> Difference:
    """How much the difference a - b changes where twins stand in for both sides; each of `a`, `b`: units, their twins.

    Values are those of `shared.difference`, above one reference for all four; `mean_a` is the difference between the
    twins, `mean_b` that between the units. The variance is that of `shared.combine` for the pairs' own differences, so
    what the images do to both sides alike cancels.
    """
    reference = torch.stack([typical(side) for side in (*a, *b)]).mean(0)

    def measured(units: Side, twins: Side) -> tuple[Measured, Measured]:
        return _both(measure(twins, parts, "pearson", reference), measure(units, parts, "pearson", reference))

    one, other = measured(*a), measured(*b)
    found = combine(_gaps(*one), _gaps(*other), parts, alpha)
    if found.difference is None:
        return found
    return replace(found, mean_a=_mean(one[0]) - _mean(other[0]), mean_b=_mean(one[1]) - _mean(other[1]))


def _mean(side: Measured) -> float:
    """The mean of seed means."""
    return float(np.mean([side.values[side.seed == s].mean() for s in range(side.seeds)]))


def _both(a: Measured, b: Measured) -> tuple[Measured, Measured]:
    """The pairs of which both have numbers, in the same order."""
    names = [list(zip(x.seed.tolist(), x.unit.tolist())) for x in (a, b)]
    common = set(names[0]) & set(names[1])
    kept = [x.only(np.array([name in common for name in own], dtype=bool)) for x, own in zip((a, b), names)]
    return kept[0], kept[1]


def _gaps(a: Measured, b: Measured) -> Measured:
    left_out = a.left_out - b.left_out
    return replace(a, values=a.values - b.values, raw=a.raw - b.raw, left_out=left_out, dropped=a.dropped + b.dropped)
