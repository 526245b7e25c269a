"""What ratings say: each basis' mean, how far bases differ, whether raters agree, who did not look."""

from collections.abc import Sequence
from itertools import combinations
from typing import Any

import numpy as np

from saelab import tables
from saelab.report.live.rating import Answer, Study

FITS = 4  # from this rating on, a label counts as fitting
FAILED = 0.5  # a rater who fails more than this share of the attention checks counts in no number
RESAMPLES = 10_000


def analyse(study: Study, answers: Sequence[Answer]) -> dict[str, Any]:
    """`{"study", "raters", "bases", "pairs", "alpha"}`: undefined numbers are None.

    `raters`: `{"rater", "answered", "cant_say", "checks", "failed", "kept"}`. `bases`: `{"basis", "units", "ratings",
    "cant_say", "mean", "low", "high"}`: the mean over units of a unit's mean rating, 1 to 5, by the raters kept, and
    its 95 % bootstrap interval over units (expanded percentile; not over raters: they are few). `pairs`:
    difference of means `a` - `b` with its interval. `alpha`: Krippendorff's alpha, ordinal, of the raters kept, over
    all items but the checks (Krippendorff, Content Analysis, 2004, chapter 11): 1 is agreement, 0 is chance.
    """
    items = {item.code: item for item in study.items}
    raters = [_rater(name, [a for a in answers if a.rater == name], items) for name in _names(answers)]
    kept = [r["rater"] for r in raters if r["kept"]]
    real = [a for a in answers if a.rater in kept and not items[a.code].check]
    bases = list(dict.fromkeys(item.basis for item in study.items))
    means = {basis: _means([a for a in real if items[a.code].basis == basis]) for basis in bases}
    rng = np.random.default_rng(study.settings.seed)
    rows = []
    for basis in bases:
        own = [a for a in real if items[a.code].basis == basis]
        row = {"basis": basis, "units": len(means[basis]), "ratings": sum(a.rating is not None for a in own)}
        row |= {"cant_say": sum(a.rating is None for a in own)}
        rows.append(row | _interval("mean", [means[basis]], rng))
    pairs = [{"a": a, "b": b} | _interval("difference", [means[a], means[b]], rng) for a, b in combinations(bases, 2)]
    return {"study": study.name, "raters": raters, "bases": rows, "pairs": pairs, "alpha": _alpha(real, kept)}


def _names(answers: Sequence[Answer]) -> list[str]:
    return sorted({answer.rater for answer in answers})


def _rater(name: str, own: list[Answer], items: dict[str, Any]) -> dict[str, Any]:
    checks = [a for a in own if items[a.code].check]
    failed = sum(a.rating is not None and a.rating >= FITS for a in checks)
    row = {"rater": name, "answered": len(own), "cant_say": sum(a.rating is None for a in own)}
    return row | {"checks": len(checks), "failed": failed, "kept": failed <= FAILED * len(checks)}


def _means(answers: list[Answer]) -> np.ndarray:
    """The mean rating of each unit that any rater could judge."""
    by_code: dict[str, list[int]] = {}
    for answer in answers:
        if answer.rating is not None:
            by_code.setdefault(answer.code, []).append(answer.rating)
    return np.array([np.mean(ratings) for _, ratings in sorted(by_code.items())])


def _interval(name: str, samples: Sequence[np.ndarray], rng: np.random.Generator) -> dict[str, float | None]:
    """The mean of one sample, or the difference of two, with its bootstrap interval (None below two units)."""
    from scipy.stats import bootstrap

    if any(len(sample) == 0 for sample in samples):
        return {name: None, "low": None, "high": None}
    value = _difference(*samples)
    if any(len(sample) < 2 for sample in samples):
        return {name: float(value), "low": None, "high": None}
    level = _expanded(min(len(sample) for sample in samples))
    made = bootstrap(
        samples, _difference, n_resamples=RESAMPLES, batch=1000, confidence_level=level, method="percentile", rng=rng
    )
    low, high = made.confidence_interval
    return {name: float(value), "low": float(low), "high": float(high)}


def _expanded(n: int, level: float = 0.95) -> float:
    """The level at which a percentile interval of `n` values covers with `level`: of few values it is too narrow.

    Hesterberg, What Teachers Should Know About the Bootstrap (2015), section 5.3 (expanded percentile interval).
    """
    from scipy.stats import norm, t

    wide = np.sqrt(n / (n - 1)) * t.ppf(0.5 + level / 2, n - 1)
    return float(1 - 2 * norm.sf(wide))


def _difference(*samples: np.ndarray, axis: int = -1) -> Any:
    """The mean of the first, minus that of the second if given."""
    first, *second = (sample.mean(axis) for sample in samples)
    return first - second[0] if second else first


def _alpha(answers: list[Answer], raters: list[str]) -> float | None:
    """None if fewer than two raters share an item, or all ratings are equal."""
    import krippendorff

    codes = sorted({answer.code for answer in answers})
    table = np.full((len(raters), len(codes)), np.nan)
    for a in answers:
        if a.rating is not None:
            table[raters.index(a.rater), codes.index(a.code)] = a.rating
    shared = table[:, (~np.isnan(table)).sum(0) > 1]
    if len(np.unique(shared[~np.isnan(shared)])) < 2:
        return None
    return float(krippendorff.alpha(table, level_of_measurement="ordinal"))


def table(found: dict[str, Any]) -> str:
    """The analysis as a table for a terminal."""
    head = ("basis", "units", "ratings", "can’t say", "mean", "95 % interval over units")
    rows = []
    for row in found["bases"]:
        counts = (str(row[name]) for name in ("units", "ratings", "cant_say"))
        rows.append([row["basis"], *counts, tables.number(row["mean"], ".2f"), _range(row)])
    lines = [tables.draw(head, rows)]
    lines += [
        f"{p['a']} − {p['b']}: {tables.number(p['difference'], '+.2f')} {_range(p, '+.2f')}" for p in found["pairs"]
    ]
    lines.append(
        f"raters agree: Krippendorff's alpha {tables.number(found['alpha'], '.2f')} (1: fully, 0: as by chance)"
    )
    for row in found["raters"]:
        left = "" if row["kept"] else "; left out"
        lines.append(
            f"{row['rater']}: {row['answered']} answers, {row['failed']} of {row['checks']} checks failed{left}"
        )
    return "\n".join(lines)


def _range(row: dict[str, Any], form: str = ".2f") -> str:
    return "" if row["low"] is None else f"[{row['low']:{form}}, {row['high']:{form}}]"
