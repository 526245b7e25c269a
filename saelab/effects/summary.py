"""A basis' effects: means over its units, the four-field table, and differences between bases."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Float, Int

from saelab.metrics.clusters import spread, student, unvaried

NUMBERS = (
    *("causal_pct", "causal_chance", "causal", "causal_control", "causal_net", "permuted_pct", "top1", "top10"),
    *("drop", "drop_log_p", "necessity", "moved", "push", "size", "dose", "output_score"),
)
ABOVE_CHANCE = ("causal", "causal_net")  # of which a unit without a number counts as 0 among all units
USES = 0.05  # causal_p below which the network is taken to use a unit for its label; so are 5 % by chance
WHY = ("too_few", "unlabelled", "no_target")


@dataclass(frozen=True)
class Mean:
    """A mean over units; units of one label are one cluster of its error."""

    mean: float
    se: float | None  # None: fewer than two clusters
    units: int
    clusters: int
    df: float  # effective clusters less one: fewer where they are of uneven size

    def interval(self, alpha: float = 0.05) -> tuple[float, float] | None:
        """Student's interval; None for fewer than two clusters, or where no value differs from any other."""
        pieces = [] if self.se is None else [(self.se**2, self.df)]
        return None if unvaried(pieces) else student(self.mean, pieces, alpha)[:2]


@dataclass(frozen=True)
class Difference:
    """Two bases in one number: mean a - mean b with its interval and p (Welch, effective clusters as units)."""

    difference: float
    low: float
    high: float
    p: float
    df: float


def column(rows: Sequence[dict[str, Any]], name: str, units: int | None = None) -> Float[np.ndarray, "units"]:
    """A number of every row, NaN where there is none; with `units`, in the place of each unit's own number."""
    values = np.array([np.nan if row.get(name) is None else float(row[name]) for row in rows], dtype=np.float64)
    if units is None:
        return values
    whole = np.full(units, np.nan)
    whole[[row["unit"] for row in rows]] = values
    return whole


def causal_columns(rows: Sequence[dict[str, Any]], units: int) -> dict[str, Float[np.ndarray, "units"]]:
    """For a comparison: `causal`, `causal_net` and `causal_p` of every unit of a basis, NaN where not measured."""
    return {name: column(rows, name, units) for name in ("causal", "causal_net", "causal_p")}


def mean_of(values: Float[np.ndarray, "units"], labels: Sequence[str | None]) -> Mean | None:
    """Mean and error over the units that have a number; None where none has."""
    kept = np.flatnonzero(np.isfinite(values))
    if not len(kept):
        return None
    cluster = _clusters(labels, kept)
    found, clusters = spread(values[kept], cluster), int(cluster.max()) + 1
    se = float(np.sqrt(found.variance)) if clusters > 1 else None
    return Mean(float(values[kept].mean()), se, len(kept), clusters, found.df)


def difference(
    a: Sequence[dict[str, Any]], b: Sequence[dict[str, Any]], name: str = "causal_net", alpha: float = 0.05
) -> Difference | None:
    """How much higher a number is in rows `a` than in rows `b`.

    None where a side has fewer than two labels, or no value differs from any other on either.
    """
    one, other = (mean_of(column(rows, name), [row["label"] for row in rows]) for rows in (a, b))
    if one is None or other is None or one.se is None or other.se is None:
        return None
    gap, pieces = one.mean - other.mean, [(one.se**2, one.df), (other.se**2, other.df)]
    return None if unvaried(pieces) else Difference(gap, *student(gap, pieces, alpha))


def summarise(rows: Sequence[dict[str, Any]], detects: Sequence[bool | None], units: int) -> dict[str, Any]:
    """Everything that is shown of a basis: plain values.

    `rows`: as `add_corrected` gives them. `detects`: for each row, does its label beat its null (it does not abstain);
    None without a label. `units`: of the whole basis. Means are over units that have the number; `all` counts the
    others as 0, `labelled` leaves out units whose label abstains.
    """
    labels = [row["label"] for row in rows]
    found: dict[str, Any] = {"units": units, "chosen": len(rows), "measured": sum(row["why"] is None for row in rows)}
    found["why"] = {why: sum(row["why"] == why for row in rows) for why in WHY}
    found["how"] = {
        how: labels_found
        for how in ("exact", "hypernym", "text", "none")
        if (labels_found := sum(row["how"] == how for row in rows))
    }
    found["without_companions"] = sum(row["why"] is None and row["causal_control"] is None for row in rows)
    found["mean"] = {name: _plain(mean_of(column(rows, name), labels)) for name in NUMBERS}
    for name in ("steer_pct", "kl"):
        doses = dict.fromkeys(dose for row in rows for dose in row.get(name) or {})
        inner = {dose: [(row.get(name) or {}).get(dose) for row in rows] for dose in doses}
        found[name] = {d: _plain(mean_of(np.array(v, dtype=np.float64), labels)) for d, v in inner.items()}
    zeros = {name: np.nan_to_num(column(rows, name)) for name in ABOVE_CHANCE}
    found["all"] = {name: _plain(mean_of(values, labels)) for name, values in zeros.items()}
    kept = [place for place, beats in enumerate(detects) if beats]
    given = {name: column([rows[i] for i in kept], name) for name in ABOVE_CHANCE}
    found["labelled"] = {name: _plain(mean_of(v, [labels[i] for i in kept])) for name, v in given.items()}
    found["inverted"] = sum(bool(row.get("inverted")) for row in rows)
    p = column(rows, "causal_p")
    found["uses"] = share_below(p)
    found["uses_corrected"] = share_corrected(rows)
    found["four_field"] = four_field(p, detects)
    return found | screen(rows)


def correct(p: Float[np.ndarray, "units"]) -> Float[np.ndarray, "units"]:
    """p-values corrected for the number of units, by false discovery rate (Benjamini & Hochberg 1995); NaN stays.

    Of the units below 0.05, 5 % are expected to be there by chance, however many were tried.
    """
    from scipy.stats import false_discovery_control

    found, known = np.full(len(p), np.nan), np.isfinite(p)
    if known.any():
        found[known] = false_discovery_control(p[known])
    return found


def add_corrected(rows: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """The rows with `causal_q`: `causal_p` corrected for all of them (`correct`); None without a p.

    `rows` are all that were measured of a basis. Whoever shows some of them chooses afterwards, so that a unit has one
    q wherever it stands.
    """
    q = correct(column(rows, "causal_p"))
    return [row | {"causal_q": float(x) if np.isfinite(x) else None} for row, x in zip(rows, q)]


def share_corrected(rows: Sequence[Mapping[str, Any]]) -> float:
    """The share of these units with a p whose `causal_q` is below USES. `rows`: as `add_corrected` gives them."""
    return share_below(np.array([row["causal_q"] for row in rows], dtype=np.float64))  # without: a KeyError, not 0


def share_below(p: Float[np.ndarray, "units"], alpha: float = USES) -> float:
    """The share of the units with a p whose p is below alpha; 0 where none has one."""
    return float((p < alpha).sum() / max(1, np.isfinite(p).sum()))


def four_field(p: Float[np.ndarray, "units"], detects: Sequence[bool | None]) -> dict[str, float]:
    """Shares of all units: does the label say when it fires (`detects`), does the network use it so (`uses`)?"""
    uses, count = p < USES, max(1, len(p))  # NaN: not shown to be used
    beats = np.array([bool(value) for value in detects], dtype=bool)
    cells = {"both": beats & uses, "detects": beats & ~uses, "uses": ~beats & uses, "neither": ~beats & ~uses}
    return {name: float(cell.sum() / count) for name, cell in cells.items()}


def screen(rows: Sequence[dict[str, Any]]) -> dict[str, float | None]:
    """Gradient x part against exact ablation over all (unit, picture) pairs: Pearson r and slope (exact on screen)."""
    exact = np.array([value for row in rows if row.get("screen") for value in row["own"]])
    quick = np.array([value for row in rows if row.get("screen") for value in row["screen"]])
    if len(exact) < 3 or not exact.std() or not quick.std():
        return {"screen_r": None, "screen_slope": None}
    r = float(np.corrcoef(quick, exact)[0, 1])
    return {"screen_r": r, "screen_slope": float(r * exact.std() / quick.std())}


def _clusters(labels: Sequence[str | None], kept: Int[np.ndarray, "some"]) -> Int[np.ndarray, "some"]:
    """A number for each kept unit's label; a unit without one is alone."""
    place: dict[object, int] = {}
    return np.array([place.setdefault(labels[i] if labels[i] is not None else (i,), len(place)) for i in kept], int)


def _plain(mean: Mean | None) -> dict[str, Any] | None:
    return None if mean is None else {"mean": mean.mean, "se": mean.se, "units": mean.units}
