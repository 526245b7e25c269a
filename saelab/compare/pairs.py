"""Two groups of bases against each other, and the methods of one group against each other, before any correction."""

import dataclasses
import itertools
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from saelab.compare import statistics
from saelab.compare.glossary import FAITHFUL, METRICS
from saelab.compare.inputs import Basis, Counting, Index, Settings, mean_of, scorers_of, values_of
from saelab.compare.matching import match

MATCHINGS = {"all": None, "rate": "firing_rate", "strength": "strength"}
COUNTINGS: tuple[Counting, ...] = ("all", "labelled")
COLUMNS = tuple(
    (name, counting)
    for name, metric in METRICS.items()
    for counting in (COUNTINGS if metric.family == "faithfulness" else COUNTINGS[:1])
)


def compare_groups(
    a: Sequence[Basis],
    b: Sequence[Basis],
    kept: Mapping[str, Index],
    matching: str,
    settings: Settings,
    columns: Sequence[tuple[str, Counting]] = COLUMNS,
) -> dict[str, Any]:
    """Group a against group b in the given metrics and countings, on all selected units or on matched ones."""
    units_a, units_b = [kept[basis.name] for basis in a], [kept[basis.name] for basis in b]
    balance, by = None, MATCHINGS[matching]
    if by is not None:
        before = _side_means(a, units_a, by), _side_means(b, units_b, by)
        values_a = [basis.column(by)[units] for basis, units in zip(a, units_a)]
        values_b = [basis.column(by)[units] for basis, units in zip(b, units_b)]
        index_a, index_b = match(values_a, values_b, settings.bins, settings.seed)
        units_a = [units[index] for units, index in zip(units_a, index_a)]
        units_b = [units[index] for units, index in zip(units_b, index_b)]
        balance = {"before": list(before), "after": [_side_means(a, units_a, by), _side_means(b, units_b, by)]}
    fewest = min(map(len, [*units_a, *units_b]))
    refused = None
    if fewest < settings.fewest:
        after = "" if by is None else f" after matching on {by.replace('_', ' ')}"
        refused = f"only {fewest} units on one side{after}; at least {settings.fewest} are needed"
    results = []
    if refused is None:
        for metric, counting in columns:
            sides = [values_of(group, units, metric, counting) for group, units in ((a, units_a), (b, units_b))]
            if min(map(len, [*sides[0], *sides[1]])) >= settings.fewest:
                results.append(_result(metric, counting, sides, a, b, (units_a, units_b), settings))
    return {
        "a": a[0].group,
        "b": b[0].group,
        "role": "control" if a[0].control or b[0].control else "main",
        "matching": matching,
        "refused": refused,
        "units_a": [len(units) for units in units_a],
        "units_b": [len(units) for units in units_b],
        "balance": balance,
        "interval": statistics.interval_kind(len(a), len(b)),
        "results": results,
    }


def compare_methods(group: Sequence[Basis], kept: Mapping[str, Index], settings: Settings) -> list[dict[str, Any]]:
    """Every two scorers on the same units of a group, and the given label against its shuffled control.

    Counting `all`: a unit that one of them leaves without a label counts 0 for it.
    """
    if sum(len(kept[basis.name]) for basis in group) < settings.fewest:
        return []
    names = [(a, b) for a, b in itertools.combinations(scorers_of(group), 2)] + [("final", "shuffled")]
    columns = [(a, b, metric) for a, b in names for metric in FAITHFUL]
    values = {
        (scorer, metric): [basis.faithfulness(metric, "all", scorer)[kept[basis.name]] for basis in group]
        for scorer in {*itertools.chain(*names)}
        for metric in FAITHFUL
    }
    left, right = (
        np.stack([np.concatenate(values[column[side], column[2]]) for column in columns], axis=1) for side in (0, 1)
    )
    rows = []
    for (a, b, metric), found in zip(
        columns, statistics.on_same_units(left, right, settings.alpha, settings.resamples, settings.seed)
    ):
        if found is None or found.n < settings.fewest:
            continue
        by_seed = [mean_of(x - y) for x, y in zip(values[a, metric], values[b, metric])]
        row = {"group": group[0].group, "a": a, "b": b, "metric": metric, "n": found.n}
        row |= {"mean_a": found.mean_a, "mean_b": found.mean_b, "difference": found.mean_a - found.mean_b}
        rows.append(row | {"low": found.low, "high": found.high, "p_wilcoxon": found.p_wilcoxon, "by_seed": by_seed})
    return rows


def _result(
    metric: str,
    counting: Counting,
    sides: list[list[np.ndarray]],
    a: Sequence[Basis],
    b: Sequence[Basis],
    units: tuple[list[Index], list[Index]],
    settings: Settings,
) -> dict[str, Any]:
    found = statistics.between_bases(sides[0], sides[1], settings.alpha, settings.resamples, settings.seed)
    null = None
    if METRICS[metric].family == "faithfulness":
        null_a, null_b = (
            mean_of(np.array([x.mean() for x in values_of(group, kept, metric, counting, "shuffled") if len(x)]))
            for group, kept in zip((a, b), units)
        )
        null = None if null_a is None or null_b is None else null_a - null_b
    row = {"metric": metric, "counting": counting, "n_a": sum(map(len, sides[0])), "n_b": sum(map(len, sides[1]))}
    row |= dataclasses.asdict(found)
    return row | {"difference": found.difference, "null_difference": null}


def _side_means(group: Sequence[Basis], units: Sequence[Index], by: str) -> float | None:
    return mean_of(np.array([mean_of(basis.column(by)[index]) for basis, index in zip(group, units)], dtype=float))


def correct(rows: Sequence[dict[str, Any]]) -> None:
    """Give the rows of one family their Holm-corrected p-values, in place."""
    corrected = {"p": "p_holm", "p_wilcoxon": "p_holm", "p_mannwhitney": "p_mannwhitney_holm"}
    for name in corrected.keys() & set(rows[0] if rows else ()):
        for row, p in zip(rows, statistics.holm([row[name] for row in rows])):
            row[corrected[name]] = p


def decide(row: dict[str, Any], alpha: float) -> None:
    """Set `verdict`: the side that is better, "a" or "b", or "none" where no difference is shown."""
    row["verdict"] = "none"
    if row["p_holm"] < alpha and not row["low"] <= 0 <= row["high"]:
        row["verdict"] = "a" if (row["difference"] > 0) == METRICS[row["metric"]].higher_is_better else "b"
