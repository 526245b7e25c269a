"""Checks that every comparison makes on its own bases; what they find is in the result."""

import dataclasses
import itertools
from collections.abc import Mapping, Sequence
from typing import Any

from saelab.compare.glossary import METRICS
from saelab.compare.inputs import Basis, Counting, Index, Settings
from saelab.compare.pairs import compare_groups, correct, decide

CORRELATIONS = ("caption_r", "truth_r", "scs")  # with shuffled labels these don't depend on how common a label is


def own_checks(
    groups: Mapping[str, Sequence[Basis]], kept: Mapping[str, Index], settings: Settings
) -> list[dict[str, Any]]:
    """Each real group against itself must show no difference, and neither must shuffled labels between real groups.

    The second looks at correlations only and is a test at `settings.alpha`: it fails by luck in that share of runs.
    A check fails by metrics that count in answers; SCS by the encoder that chose the labels is named, but has no say.
    """
    real = [members for members in groups.values() if not members[0].control]
    setup = real[0][0].setup if real else None
    mute = ("scs",) if setup is not None and setup.judge == setup.encoder else ()
    reports = [
        _report(f"{members[0].group} against itself", _calls(members, members, kept, settings), mute)
        for members in real
    ]
    for a, b in itertools.combinations(real, 2):
        found = shuffled_calls(a, b, kept, settings)
        reports.append(_report(f"shuffled labels of {a[0].group} against {b[0].group}", found, mute))
    return reports


def shuffled_calls(a: Sequence[Basis], b: Sequence[Basis], kept: Mapping[str, Index], settings: Settings) -> list[str]:
    """Correlations in which two groups are said to differ when the labels of both have been dealt out anew."""
    dealt = [[dataclasses.replace(basis, scorer="shuffled") for basis in side] for side in (a, b)]
    return _calls(dealt[0], dealt[1], kept, settings, CORRELATIONS)


def _calls(
    a: Sequence[Basis],
    b: Sequence[Basis],
    kept: Mapping[str, Index],
    settings: Settings,
    metrics: Sequence[str] = tuple(METRICS),
) -> list[str]:
    """Metrics in which the two groups are said to differ, counting all."""
    rows = decided(a, b, kept, settings, metrics)["results"]
    return [row["metric"] for row in rows if row["verdict"] != "none"]


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


def _report(check: str, calls: Sequence[str], mute: Sequence[str]) -> dict[str, Any]:
    heard = [metric for metric in calls if metric not in mute]
    aside = [metric for metric in calls if metric in mute]
    detail = f"differs in {', '.join(heard)}" if heard else "no difference"
    return {
        "check": check,
        "passed": not heard,
        "detail": detail + (f"; {', '.join(aside)} differs, but counts in no answer" if aside else ""),
    }
