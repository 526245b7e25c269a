"""Two groups of bases against each other, and the methods of one group against each other, before any correction."""

import dataclasses
import itertools
import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from jaxtyping import Int

from saelab.compare import statistics
from saelab.compare.evidence import Ground, cliffs_delta, counted, restricted
from saelab.compare.glossary import FAITHFUL, METRICS
from saelab.compare.inputs import COUNTINGS, ComparedBasis, Counting, Index, Settings, mean_of, scorers_of
from saelab.compare.left_out import Measured, Parts
from saelab.compare.matching import match
from saelab.compare.phrases import WITH_IMAGES, WITHOUT_IMAGES
from saelab.compare.shared import combine

MATCHINGS = {"all": None, "rate": "firing_rate", "strength": "strength"}
Places = tuple[list[Int[np.ndarray, "some"]], list[Int[np.ndarray, "some"]]]  # of a matching: in each basis's units


def compare_groups(
    a: Sequence[ComparedBasis],
    b: Sequence[ComparedBasis],
    ground: Ground,
    settings: Settings,
    metrics: Sequence[str] = tuple(METRICS),
) -> list[dict[str, Any]]:
    """Group a against group b on all selected units and on matched ones, in the given metrics and every counting."""
    places = {matching: _places(a, b, ground.kept, by, settings) for matching, by in MATCHINGS.items()}
    pairs = {matching: _frame(a, b, ground.kept, matching, found, settings) for matching, found in places.items()}
    for metric in metrics:
        for counting, *sides, parts in _counted(a, b, ground, metric, settings.scorer):
            null = _null(a, b, ground, metric, counting)
            for matching, pair in pairs.items():
                pair["interval"] = interval_kind(pair["interval"], parts)
                if pair["refused"] is not None:
                    continue
                chosen = [restricted(side, at) for side, at in zip(sides, places[matching])]
                if min(map(min, (side.kept for side in chosen))) >= settings.fewest:
                    pair["results"].append(_result(metric, counting, chosen[0], chosen[1], parts, null, settings))
    return list(pairs.values())


def interval_kind(known: str | None, parts: Parts | None) -> str:
    """What an interval takes into account, in words: the most that any metric of a pair does."""
    return WITH_IMAGES if parts is not None or known == WITH_IMAGES else WITHOUT_IMAGES


def _counted(
    a: Sequence[ComparedBasis], b: Sequence[ComparedBasis], ground: Ground, metric: str, scorer: str
) -> list[tuple[Counting, Measured, Measured, Parts | None]]:
    """Both groups in a metric, for every counting that it has."""
    if METRICS[metric].family == "coherence":
        return [("named", ground.of_rows(a, metric, "named"), ground.of_rows(b, metric, "named"), None)]
    side_a, side_b, parts = ground.sides(a, b, metric)
    if parts is None:  # what units that abstain count as is in the rows
        each = [(c, ground.of_rows(a, metric, c), ground.of_rows(b, metric, c)) for c in COUNTINGS]
        return [(counting, x, y, None) for counting, x, y in each]
    made: list[tuple[Counting, Measured, Measured, Parts | None]] = []
    for counting in COUNTINGS:
        both = [counted(side, group, ground.kept, counting, scorer) for side, group in ((side_a, a), (side_b, b))]
        made.append((counting, both[0], both[1], parts))
    return made


def _places(
    a: Sequence[ComparedBasis],
    b: Sequence[ComparedBasis],
    kept: Mapping[str, Index],
    by: str | None,
    settings: Settings,
) -> Places:
    if by is None:
        whole = [[np.arange(len(kept[basis.name])) for basis in side] for side in (a, b)]
        return whole[0], whole[1]
    values = [[basis.column(by)[kept[basis.name]] for basis in side] for side in (a, b)]
    return match(values[0], values[1], settings.bins, settings.seed)


def _frame(
    a: Sequence[ComparedBasis],
    b: Sequence[ComparedBasis],
    kept: Mapping[str, Index],
    matching: str,
    places: Places,
    settings: Settings,
) -> dict[str, Any]:
    """A pair of groups without its results."""
    by = MATCHINGS[matching]
    units = [[kept[basis.name][at] for basis, at in zip(side, found)] for side, found in zip((a, b), places)]
    fewest = min(map(len, [*units[0], *units[1]]))
    refused = None
    if fewest < settings.fewest:
        after = "" if by is None else f" after matching on {by.replace('_', ' ')}"
        refused = f"only {fewest} units on one side{after}; at least {settings.fewest} are needed"
    balance = None
    if by is not None:
        before = [_side_means(side, [kept[basis.name] for basis in side], by) for side in (a, b)]
        balance = {"before": before, "after": [_side_means(side, at, by) for side, at in zip((a, b), units)]}
    return {
        "a": a[0].group,
        "b": b[0].group,
        "role": "control" if a[0].control or b[0].control else "main",
        "matching": matching,
        "refused": refused,
        "units_a": [len(index) for index in units[0]],
        "units_b": [len(index) for index in units[1]],
        "balance": balance,
        "interval": None,
        "results": [],
    }


def _result(
    metric: str, counting: Counting, a: Measured, b: Measured, parts: Parts | None, null: float | None, s: Settings
) -> dict[str, Any]:
    found = dataclasses.asdict(combine(a, b, parts, s.alpha))
    found |= {"df": None if found["df"] is None or math.isinf(found["df"]) else found["df"]}
    head = {"metric": metric, "counting": counting, "n_a": len(a.values), "n_b": len(b.values)}
    return head | found | {"cliffs_delta": cliffs_delta(a.values, b.values), "null_difference": null}


def _null(
    a: Sequence[ComparedBasis], b: Sequence[ComparedBasis], ground: Ground, metric: str, counting: Counting
) -> float | None:
    """The difference that shuffled labels show."""
    if METRICS[metric].family == "coherence":
        return None
    means = []
    for group in (a, b):
        values = [basis.faithfulness(metric, counting, "shuffled")[ground.kept[basis.name]] for basis in group]
        means.append(mean_of(np.array([x for x in map(mean_of, values) if x is not None], dtype=float)))
    return None if means[0] is None or means[1] is None else means[0] - means[1]


def compare_methods(
    group: Sequence[ComparedBasis], kept: Mapping[str, Index], settings: Settings
) -> list[dict[str, Any]]:
    """Every two scorers on the same units of a group, and the given label against its shuffled control.

    Every unit counts: one that a scorer leaves without a label is 0 for it, and where truth is complete so is a label
    that is true of no image. `confirmed_a`, `confirmed_b`: units whose label is true of some test image.
    """
    if sum(len(kept[basis.name]) for basis in group) < settings.fewest:
        return []
    names = [(a, b) for a, b in itertools.combinations(scorers_of(group), 2)] + [("final", "shuffled")]
    columns = [(a, b, metric) for a, b in names for metric in FAITHFUL]
    scorers = {*itertools.chain(*names)}
    values = {
        (scorer, metric): [basis.faithfulness(metric, "all", scorer)[kept[basis.name]] for basis in group]
        for scorer in scorers
        for metric in FAITHFUL
    }
    confirmed = {scorer: sum(_confirmed(basis, scorer, kept[basis.name]) for basis in group) for scorer in scorers}
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
        row |= {"confirmed_a": confirmed[a], "confirmed_b": confirmed[b]}
        row |= {"mean_a": found.mean_a, "mean_b": found.mean_b, "difference": found.mean_a - found.mean_b}
        rows.append(row | {"low": found.low, "high": found.high, "p_wilcoxon": found.p_wilcoxon, "by_seed": by_seed})
    return rows


def _confirmed(basis: ComparedBasis, scorer: str, kept: Index) -> int:
    entries = basis.entries(scorer)
    return sum((entries[u].get("truth_images") or 0) > 0 for u in kept)


def _side_means(group: Sequence[ComparedBasis], units: Sequence[Index], by: str) -> float | None:
    return mean_of(np.array([mean_of(basis.column(by)[index]) for basis, index in zip(group, units)], dtype=float))
