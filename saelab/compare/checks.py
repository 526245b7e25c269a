"""Checks that every comparison makes on its own bases; what they find is in the result."""

import dataclasses
import itertools
from collections.abc import Mapping, Sequence
from typing import Any

from saelab.compare import statistics
from saelab.compare.glossary import METRICS
from saelab.compare.inputs import Basis, Counting, Index, Settings, values_of
from saelab.compare.pairs import compare_groups, correct, decide
from saelab.evaluate.faithfulness import CHANCE


def own_checks(
    groups: Mapping[str, Sequence[Basis]], kept: Mapping[str, Index], settings: Settings
) -> list[dict[str, Any]]:
    """Each real group against itself must show no difference; shuffled labels must come out at the null, in each group
    and between groups.

    Shuffled labels are judged by correlations above chance, whose null is 0 however common a label is. Each of these
    is a test at `settings.alpha`: it fails by luck in at most about that share of runs. `passed` is None where there
    are too few units to test.
    """
    real = [members for members in groups.values() if not members[0].control]
    reports = [
        _report(f"{members[0].group} against itself", _calls(members, members, kept, settings)) for members in real
    ]
    for members in real:
        found = off_null(members, kept, settings)
        reports.append(_report(f"shuffled labels of {members[0].group} against 0", found))
    for a, b in itertools.combinations(real, 2):
        found = shuffled_calls(a, b, kept, settings)
        reports.append(_report(f"shuffled labels of {a[0].group} against {b[0].group}", found))
    return reports


def off_null(members: Sequence[Basis], kept: Mapping[str, Index], settings: Settings) -> list[str] | None:
    """Correlations above chance whose mean over a basis's shuffled labels isn't 0 (t tests over units, Holm).

    None where none has enough units.
    """
    tested = [
        (metric, statistics.differs_from_zero(values))
        for metric in CHANCE
        for values in values_of(members, [kept[basis.name] for basis in members], metric, "labelled", "shuffled")
        if len(values) >= settings.fewest
    ]
    if not tested:
        return None
    corrected = statistics.holm([p for _, p in tested])
    return sorted({metric for (metric, _), p in zip(tested, corrected) if p < settings.alpha})


def shuffled_calls(
    a: Sequence[Basis], b: Sequence[Basis], kept: Mapping[str, Index], settings: Settings
) -> list[str] | None:
    """Correlations in which two groups are said to differ when the labels of both have been dealt out anew."""
    dealt = [[dataclasses.replace(basis, scorer="shuffled") for basis in side] for side in (a, b)]
    return _calls(dealt[0], dealt[1], kept, settings, tuple(CHANCE))


def _calls(
    a: Sequence[Basis],
    b: Sequence[Basis],
    kept: Mapping[str, Index],
    settings: Settings,
    metrics: Sequence[str] = tuple(METRICS),
) -> list[str] | None:
    """Metrics in which the two groups are said to differ, counting all; None where none can be compared."""
    rows = decided(a, b, kept, settings, metrics)["results"]
    return [row["metric"] for row in rows if row["verdict"] != "none"] if rows else None


def decided(
    a: Sequence[Basis],
    b: Sequence[Basis],
    kept: Mapping[str, Index],
    settings: Settings,
    metrics: Sequence[str] = tuple(METRICS),
) -> dict[str, Any]:
    """Two groups on all selected units, counting all, corrected and decided: the part of a comparison that answers."""
    columns: list[tuple[str, Counting]] = [(name, "all") for name in metrics]
    pair = compare_groups(a, b, kept, "all", settings, columns)
    correct(pair["results"])
    for row in pair["results"]:
        decide(row, settings.alpha)
    return pair


def _report(check: str, calls: Sequence[str] | None) -> dict[str, Any]:
    if calls is None:
        return {"check": check, "passed": None, "detail": "too few units to test"}
    return {
        "check": check,
        "passed": not calls,
        "detail": f"differs in {', '.join(calls)}" if calls else "no difference",
    }
