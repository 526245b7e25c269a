"""Checks that every comparison makes on its own bases; what they find is in the result."""

import itertools
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from saelab import metrics
from saelab.compare.evidence import CORRELATIONS, Ground
from saelab.compare.inputs import ComparedBasis, Settings
from saelab.compare.left_out import Measured
from saelab.compare.shared import against_zero, combine


def own_checks(
    groups: Mapping[str, Sequence[ComparedBasis]], ground: Ground, settings: Settings
) -> list[dict[str, Any]]:
    """Each real group's labels dealt in two halves must show no difference; shuffled labels must be worth nothing, in
    each group and between groups.

    All judge by correlations above chance, with the errors of the comparison, corrected over metrics (Holm). Each is a
    test at `settings.alpha`: it fails by luck in at most about that share of runs. `passed` is None where there are too
    few units or labels to test.
    """
    real = [members for members in groups.values() if not members[0].control]
    reports = [_report(f"{m[0].group} against itself", _halves(m, ground, settings)) for m in real]
    for members in real:
        found = off_null(members, ground, settings)
        reports.append(_report(f"shuffled labels of {members[0].group} against 0", found))
    for a, b in itertools.combinations(real, 2):
        found = shuffled_calls(a, b, ground, settings)
        reports.append(_report(f"shuffled labels of {a[0].group} against {b[0].group}", found))
    return reports


def _halves(group: Sequence[ComparedBasis], ground: Ground, settings: Settings) -> list[str] | None:
    """Metrics in which units of one half of a group's labels differ from those of the other half."""
    tested = []
    for metric in CORRELATIONS:
        side, _, parts = ground.sides(group, group, metric)
        half = np.random.default_rng(settings.seed).permutation(int(side.cluster.max(initial=0)) + 1) % 2
        a, b = (side.only(half[side.cluster] == i) for i in (0, 1))
        if enough(a, settings) and enough(b, settings):
            tested.append((metric, combine(a, b, parts, settings.alpha).p))
    return _called(tested, settings)


def off_null(group: Sequence[ComparedBasis], ground: Ground, settings: Settings) -> list[str] | None:
    """Correlations whose mean over a group's shuffled labels isn't 0 above chance; None where none can be tested."""
    tested = []
    for metric in CORRELATIONS:
        side, _, parts = ground.sides(group, group, metric, "shuffled")
        if enough(side, settings):
            tested.append((metric, against_zero(side, parts, settings.alpha)))
    return _called(tested, settings)


def shuffled_calls(
    a: Sequence[ComparedBasis], b: Sequence[ComparedBasis], ground: Ground, settings: Settings
) -> list[str] | None:
    """Correlations in which two groups are found to differ when the labels of both have been dealt out anew."""
    tested = []
    for metric in CORRELATIONS:
        side_a, side_b, parts = ground.sides(a, b, metric, "shuffled")
        if enough(side_a, settings) and enough(side_b, settings):
            tested.append((metric, combine(side_a, side_b, parts, settings.alpha).p))
    return _called(tested, settings)


def enough(side: Measured, settings: Settings) -> bool:
    """Whether each seed has units enough to be compared."""
    return min(side.kept, default=0) >= settings.fewest


def _called(tested: Sequence[tuple[str, float | None]], settings: Settings) -> list[str] | None:
    known = [(metric, p) for metric, p in tested if p is not None]
    if not known:
        return None
    corrected = metrics.holm([p for _, p in known])
    return sorted({metric for (metric, _), p in zip(known, corrected) if p < settings.alpha})


def _report(check: str, calls: Sequence[str] | None) -> dict[str, Any]:
    if calls is None:
        return {"check": check, "passed": None, "detail": "too few units or labels to test"}
    return {
        "check": check,
        "passed": not calls,
        "detail": f"differs in {', '.join(calls)}" if calls else "no difference",
    }
