"""The comparison of bases on one layer: every number that comparison.json holds (its schema is docs/comparison.md)."""

import dataclasses
import itertools
from collections.abc import Sequence
from typing import Any

from saelab.compare.answers import answers
from saelab.compare.cautions import cautions
from saelab.compare.checks import own_checks
from saelab.compare.describe import describe, histograms
from saelab.compare.glossary import METRICS
from saelab.compare.inputs import Basis, Settings, check, check_settings, rule, selected
from saelab.compare.pairs import MATCHINGS, compare_groups, compare_methods, correct, decide
from saelab.compare.words import conclusion, headline

SCHEMA = 1


def compare(bases: Sequence[Basis], settings: Settings = Settings()) -> dict[str, Any]:  # noqa: B008  (frozen)
    """Compare evaluated bases of one layer; the result is comparison.json as plain values.

    Raises UserError where they don't share their ground (`inputs.check`), and for settings that don't exist. What
    can't be compared (fewer than `settings.fewest` units a side) is said in the result, not raised.
    """
    check(bases)
    check_settings(settings, bases)
    bases = [dataclasses.replace(basis, scorer=settings.scorer) for basis in bases]
    kept = {basis.name: selected(basis, settings) for basis in bases}
    groups = _groups(bases)
    result = {
        "schema": SCHEMA,
        "setup": dataclasses.asdict(bases[0].setup),
        "settings": dataclasses.asdict(settings) | {"keep": list(settings.keep)},
        "selection": rule(settings),
        "metrics": {name: dataclasses.asdict(metric) for name, metric in METRICS.items()},
        "bases": [describe(basis, kept[basis.name]) for basis in bases],
        "groups": [_group(name, members) for name, members in groups.items()],
        "pairs": [
            compare_groups(groups[a], groups[b], kept, matching, settings)
            for a, b in _pairs(groups)
            for matching in MATCHINGS
        ],
        "methods": [row for members in groups.values() for row in compare_methods(members, kept, settings)],
        "distributions": {name: histograms(name, bases, kept) for name in METRICS},
        "validity": own_checks(groups, kept, settings),
    }
    return finish([result])[0]


def finish(results: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Correct p-values over metrics and over all the layers given together, then draw verdicts and words from them.

    Within one pair of groups, one matching and one counting; methods: within one group, over the pairs of methods too.
    """
    families: dict[tuple[str, ...], list[dict[str, Any]]] = {}
    for result in results:
        for pair in result["pairs"]:
            for row in pair["results"]:
                families.setdefault(("bases", pair["a"], pair["b"], pair["matching"], row["counting"]), []).append(row)
        for row in result["methods"]:
            families.setdefault(("methods", row["group"]), []).append(row)
    for rows in families.values():
        correct(rows)
    for result in results:
        for row in itertools.chain(*(pair["results"] for pair in result["pairs"]), result["methods"]):
            decide(row, result["settings"]["alpha"])
        result["answers"] = answers(result)
        result["cautions"] = cautions(result)
        result["headline"] = headline(result)
        result["conclusion"] = conclusion(result)
    return list(results)


def _groups(bases: Sequence[Basis]) -> dict[str, list[Basis]]:
    """Groups in the order in which differences read best: other bases, neurons, controls."""
    ordered = sorted(bases, key=lambda basis: (basis.control, basis.kind == "neuron"))
    return {name: [b for b in ordered if b.group == name] for name in dict.fromkeys(b.group for b in ordered)}


def _pairs(groups: dict[str, list[Basis]]) -> list[tuple[str, str]]:
    """Every two groups but two controls."""
    return [(a, b) for a, b in itertools.combinations(groups, 2) if not groups[a][0].control]


def _group(name: str, members: Sequence[Basis]) -> dict[str, Any]:
    seeds = [basis.seed for basis in members if basis.seed is not None]
    first = members[0]
    return {
        "name": name,
        "kind": first.kind,
        "control": first.control,
        "bases": [b.name for b in members],
        "seeds": seeds,
    }
