"""A difference between two bases, with an error that knows what their units share.

Units of a basis are no independent draws: several carry one label, seeds of a recipe find the same features, and all
are measured on the same images. Four parts of variance, each estimated by itself, add up (docs/comparison.md).
"""

from dataclasses import dataclass, field, replace
from typing import Literal

import numpy as np
from jaxtyping import Float, Int
from torch import Tensor

from saelab.compare.left_out import Measured, Parts, measure, seeds_of
from saelab.compare.sides import Side, check, check_groups, typical
from saelab.errors import UserError
from saelab.metrics.clusters import Pieces, Spread, spread, student, unvaried

METRICS = ("pearson", "auprc")
FEWEST_CLUSTERS = 20  # labels of a side below which no interval is given
FEWEST_GROUPS = 10  # groups of images, likewise
UNVARIED = "no value differs from any other, so nothing says how sure the mean is"


@dataclass(frozen=True)
class Difference:
    """Mean of a minus mean of b. Numbers that can't be given are None; `refused` then says why."""

    mean_a: float | None
    mean_b: float | None
    difference: float | None
    low: float | None  # 95 % interval (1 - alpha)
    high: float | None
    p: float | None  # two-sided, of the same t distribution as the interval
    df: float | None  # Satterthwaite's, over the parts of the variance
    variance: dict[str, float]  # units_a, units_b, seeds, images: they add up to the squared standard error
    raw_a: float | None = None  # means without chance taken off
    raw_b: float | None = None
    clusters: dict[str, float] = field(default_factory=dict)  # a, b: effective labels; images: groups of images
    left_out: dict[str, int] = field(default_factory=dict)  # a, b: units with NaN, not in the means
    refused: str | None = None  # why there is no interval
    p_a: float | None = None  # two-sided, that mean_a is 0, with the same variance; None where there is no interval
    p_b: float | None = None


def difference(
    a: Side,
    b: Side,
    groups: Int[Tensor, "images"] | None = None,
    metric: Literal["pearson", "auprc"] = "pearson",
    chance: Literal["reference", "none"] = "reference",
    resamples: int = 200,
    seed: int = 0,
    alpha: float = 0.05,
) -> Difference:
    """How much better labels of `a` agree with their units than labels of `b`, and how sure that is.

    A unit's value is the agreement of its activations with its label's target over the test images: Pearson's r, or
    average precision where the target is true or false. With `chance="reference"` it is counted above what a typical
    label of the two bases reaches on the unit, (r - <z_u, c>) / (1 - <z_t, c>), with c the average of both bases' mean
    target columns: one reference for both, so neither gains by the breadth of its topics (average precision: above the
    label's frequency). A constant column counts 0; a unit with NaN is left out and counted in `left_out`. A side's mean
    is the mean of its seeds' means.

    The variance is that over fresh units, fresh seeds and fresh images, V = units_a + units_b + seeds + images:

    * units: units of the same label are one cluster, over all seeds; the spread of clusters, less what of it is the
      noise of the images (which `images` holds for all of them together);
    * seeds: the spread of seed means beyond what different units explain; 0 with one seed, which speaks for itself;
    * images: groups of images (`groups`; each image its own where None) left out one at a time, both sides on the same
      images. More groups than `resamples` are bundled at random (`seed`) into so many parts.

    Interval and p are Student's t with Satterthwaite's (1946) degrees of freedom. Fewer than 20 labels on a side or 10
    groups of images: no interval, and `refused` says so. Sources: multi-way clustered variance, Cameron, Gelbach and
    Miller (2011); crossed random effects, Owen (2007); delete-a-group jackknife, Busing et al. (1999).

    Raises UserError for sides or groups that don't fit together, groups with missing values, and unknown names.
    Eight parameters: two sides, their images' groups, and the choices of the method, each with its default.
    """
    if metric not in METRICS or chance not in ("reference", "none"):
        known = f"metric {' or '.join(METRICS)}; chance reference or none"
        raise UserError("difference", f"metric={metric}, chance={chance}", "unknown", f"known: {known}")
    if resamples < FEWEST_GROUPS:
        raise UserError("resamples", resamples, f"expected at least {FEWEST_GROUPS}", "200 is plenty")
    check(a, "a", a.images if a.acts else 0)
    check(b, "b", a.images)
    parts = Parts.deal(check_groups(groups, a.images), resamples, seed)
    if metric == "auprc":
        _check_boolean(a, "a")
        _check_boolean(b, "b")
    reference = (typical(a) + typical(b)) / 2 if chance == "reference" else None
    return combine(measure(a, parts, metric, reference), measure(b, parts, metric, reference), parts, alpha)


def combine(a: Measured, b: Measured, parts: Parts | None, alpha: float = 0.05) -> Difference:
    """The difference of two measured sides (the same parts), its variance and interval.

    Without parts nothing is known of single images: they are then taken as they are.
    """
    sides = {"a": a, "b": b}
    lost = {name: side.dropped for name, side in sides.items()}
    empty = [name for name, side in sides.items() if min(side.kept, default=0) == 0]
    if empty:
        why = f"no unit with a number in a seed on side {empty[0]}"
        return Difference(None, None, None, None, None, None, None, {}, left_out=lost, refused=why)
    weights = {name: _weights(side) for name, side in sides.items()}
    means = {name: float(weights[name] @ side.values) for name, side in sides.items()}
    raw = {name: float(weights[name] @ side.raw) for name, side in sides.items()}
    gap = means["a"] - means["b"]
    units = {name: _units(side, weights[name], parts) for name, side in sides.items()}
    own = {name: [(units[name].variance, units[name].df), _seeds(side)] for name, side in sides.items()}
    moved = {name: np.zeros(0) if parts is None else side.left_out @ weights[name] for name, side in sides.items()}
    pieces = [*own["a"], *own["b"], _jackknife(moved["a"] - moved["b"], parts)]
    variance = {"units_a": pieces[0][0], "units_b": pieces[2][0]}
    variance |= {"seeds": pieces[1][0] + pieces[3][0], "images": pieces[4][0]}
    counts = {name: units[name].effective for name in sides}
    counts |= {} if parts is None else {"images": float(parts.groups)}
    given = Difference(means["a"], means["b"], gap, None, None, None, None, variance, raw["a"], raw["b"], counts, lost)
    refused = _refusal(sides, parts) or _unvaried(pieces)
    if refused is not None:
        return replace(given, refused=refused)
    low, high, p, df = student(gap, pieces, alpha)
    level = {name: _level(means[name], [*own[name], _jackknife(moved[name], parts)]) for name in sides}
    return replace(given, low=low, high=high, p=p, df=df, p_a=level["a"], p_b=level["b"])


def _level(mean: float, pieces: Pieces) -> float | None:
    return None if unvaried(pieces) else student(mean, pieces)[2]


def against_zero(side: Measured, parts: Parts | None, alpha: float = 0.05) -> float | None:
    """Two-sided p that a side's mean is 0, of the same variance; None with too few labels or groups of images."""
    return of_one(side, parts, alpha).p


def of_one(side: Measured, parts: Parts | None, alpha: float = 0.05) -> Difference:
    """The mean of one measured side (for paired units: of their differences) against 0, in the fields of `a`."""
    lost = {"a": side.dropped}
    if min(side.kept, default=0) == 0:
        why = "no unit with a number in a seed"
        return Difference(None, None, None, None, None, None, None, {}, left_out=lost, refused=why)
    weights = _weights(side)
    mean, units = float(weights @ side.values), _units(side, weights, parts)
    moved = np.zeros(0) if parts is None else side.left_out @ weights
    pieces = [(units.variance, units.df), _seeds(side), _jackknife(moved, parts)]
    variance = dict(zip(("units_a", "seeds", "images"), (v for v, _ in pieces))) | {"units_b": 0.0}
    counts = {"a": units.effective} | ({} if parts is None else {"images": float(parts.groups)})
    raw = float(weights @ side.raw)
    given = Difference(mean, 0.0, mean, None, None, None, None, variance, raw, 0.0, counts, lost)
    why_not = _refusal({"a": side}, parts) or _unvaried(pieces)
    if why_not is not None:
        return replace(given, refused=why_not)
    low, high, p, df = student(mean, pieces, alpha)
    return replace(given, low=low, high=high, p=p, df=df)


def _weights(side: Measured) -> Float[np.ndarray, "units"]:
    """What each unit weighs in the mean of seed means."""
    return 1 / (len(side.kept) * np.array(side.kept, dtype=float)[side.seed])


def _units(side: Measured, weights: np.ndarray, parts: Parts | None) -> Spread:
    """Variance of a side's mean over fresh clusters of units; the noise of their images taken out."""
    share = np.bincount(side.cluster, weights)
    found, noise = spread(side.values, side.cluster, weights), 0.0
    if parts is not None and len(share) > 1:
        sums = _by_cluster(side, weights)
        sums -= sums.sum(1, keepdims=True) * share  # what moves all clusters alike is in no spread
        moved = sums - sums.mean(0)
        noise = float(((1 - parts.sizes.numpy() / parts.sizes.sum().item())[:, None] * moved**2).sum())
    return replace(found, variance=max(found.variance - noise, 0.0))


def _by_cluster(side: Measured, weights: np.ndarray) -> Float[np.ndarray, "parts clusters"]:
    from scipy.sparse import csr_array

    n = len(side.cluster)
    table = csr_array((weights, (np.arange(n), side.cluster)), shape=(n, int(side.cluster.max()) + 1))
    return np.asarray((table.T @ side.left_out.T).T)


def _seeds(side: Measured) -> tuple[float, float]:
    """Variance from fresh seeds beyond that of their units, and its degrees of freedom."""
    count = len(side.kept)
    if count == 1:
        return 0.0, 1.0
    means = np.array([side.values[index].mean() for index in seeds_of(side)])
    within = 0.0
    for index in seeds_of(side):
        _, cluster = np.unique(side.cluster[index], return_inverse=True)
        within += spread(side.values[index], cluster).variance
    return max(float(np.var(means, ddof=1)) / count - within / count**2, 0.0), count - 1.0


def _jackknife(moved: Float[np.ndarray, "parts"], parts: Parts | None) -> tuple[float, float]:
    """Variance over fresh groups of images, and its degrees of freedom."""
    if parts is None:
        return 0.0, 1.0
    sizes = parts.sizes.numpy()
    share = sizes / sizes.sum()
    terms = (1 - share) * (moved - moved.mean()) ** 2
    total = float(terms.sum())
    if total <= 0:
        return 0.0, 1.0
    effective = 1 / float((share**2).sum())
    return total, max(effective - 1, 1.0)


def _refusal(sides: dict[str, Measured], parts: Parts | None) -> str | None:
    if any(side.unscaled for side in sides.values()):
        return "all units of both sides have one label, so nothing can be above chance"
    for name, side in sides.items():
        found = len(np.unique(side.cluster))
        if found < FEWEST_CLUSTERS:
            return f"only {found} different labels on side {name}; an interval needs {FEWEST_CLUSTERS}"
    if parts is not None and parts.groups < FEWEST_GROUPS:
        return f"only {parts.groups} groups of images; an interval needs {FEWEST_GROUPS}"
    return None


def _unvaried(pieces: Pieces) -> str | None:
    """Why values that are all alike have no interval: nothing in them says how sure their mean is."""
    return UNVARIED if unvaried(pieces) else None


def _check_boolean(side: Side, name: str) -> None:
    for seed, target in enumerate(side.target):
        if not callable(target):
            known = target[target.isfinite()] if target.is_floating_point() else target
            if not bool(((known == 0) | (known == 1)).all()):
                what = f"target of seed {seed} has numbers other than 0 and 1"
                raise UserError("metric", "auprc", f"side {name}: {what}", "give truth, or use metric=pearson")
