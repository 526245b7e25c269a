"""The comparison of bases on one layer: every number that comparison.json holds (its schema is docs/comparison.md)."""

import dataclasses
import itertools
from collections.abc import Sequence
from typing import Any

from saelab.compare.answers import answers
from saelab.compare.cautions import cautions
from saelab.compare.checks import own_checks
from saelab.compare.describe import describe, histograms
from saelab.compare.disagreements import disagreements
from saelab.compare.evidence import Ground, TestImages
from saelab.compare.glossary import METRICS
from saelab.compare.inputs import ComparedBasis, Settings, check, check_settings, rule, selected
from saelab.compare.other_views import Views, look_again
from saelab.compare.pairs import compare_groups, compare_methods
from saelab.compare.random_directions import random_percentiles
from saelab.compare.verdicts import correct_all, decide_all
from saelab.compare.words import conclusion, headline

SCHEMA = 1


def compare(
    bases: Sequence[ComparedBasis],
    settings: Settings = Settings(),  # noqa: B008  (frozen)
    images: TestImages | None = None,
    views: Views = Views(),  # noqa: B008  (frozen)
) -> dict[str, Any]:
    """Compare evaluated bases of one layer; the result is comparison.json as plain values.

    `images`: the test images and what judges labels on them. With them, and activations in every basis, intervals know
    which images all units share; without, test images are taken as they are, and a caution says so.

    `views`: the same units pooled otherwise or behind another gate; what they say is in `poolings` and `twins`.

    Raises UserError where bases don't share their ground (`inputs.check`), and for settings that don't exist. What
    can't be compared (fewer than `settings.fewest` units a side, fewer than 20 labels) is in the result, not raised.
    """
    check(bases)
    check_settings(settings, bases)
    bases = [dataclasses.replace(basis, scorer=settings.scorer) for basis in bases]
    kept = {basis.name: selected(basis, settings) for basis in bases}
    ground = Ground(images, kept, settings.parts, settings.seed)
    groups = _groups(bases)
    primary = primary_metric(bases, images)
    among = random_percentiles(bases, kept, primary)
    pairs = [pair for a, b in _pairs(groups) for pair in compare_groups(groups[a], groups[b], ground, settings)]
    result = {
        "schema": SCHEMA,
        "setup": dataclasses.asdict(bases[0].setup),
        "settings": dataclasses.asdict(settings) | {"keep": list(settings.keep)},
        "selection": rule(settings),
        "primary": primary,
        "images": None if images is None else _images(images, ground, bases),
        "metrics": {name: dataclasses.asdict(metric) for name, metric in METRICS.items()},
        "bases": [describe(basis, kept[basis.name]) | {"random_percentile": among[basis.name]} for basis in bases],
        "groups": [_group(name, members) for name, members in groups.items()],
        "pairs": pairs,
        "methods": [row for members in groups.values() for row in compare_methods(members, kept, settings)],
        "distributions": {name: histograms(name, bases, kept) for name in METRICS},
        "validity": own_checks(groups, ground, settings),
    }
    result |= look_again(groups, ground, views, settings, primary)
    return finish([result])[0]


def finish(results: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Correct p-values over all the results given together (layers, poolings), then draw verdicts and words from them.

    `verdicts.correct_all` says what is a family. Where one result contradicts another, both say so.
    """
    correct_all(results)
    for result in results:
        decide_all(result)
        result["answers"] = answers(result)
    for result in results:
        result["disagreements"] = disagreements(result, results)
        result["cautions"] = cautions(result)
        result["headline"] = headline(result)
        result["conclusion"] = conclusion(result)
    return list(results)


def primary_metric(bases: Sequence[ComparedBasis], images: TestImages | None) -> str | None:
    """The metric that decides: `truth_r` where truth is complete, else `caption_r`; None where nobody wrote anything.

    Without test images: `caption_r` where any label has it.
    """
    if images is not None:
        return images.primary()
    found = any(row["named"].get("caption_r") is not None for basis in bases for row in basis.rows)
    return "caption_r" if found else None


def _images(images: TestImages, ground: Ground, bases: Sequence[ComparedBasis]) -> dict[str, Any]:
    """How many test images the primary metric is measured on, and how many groups they are."""
    metric = images.primary()
    parts = None if metric is None else ground.parts(metric, bases)
    counts = {"test": len(images.ids), "judged": None, "groups": None}
    return counts if parts is None else counts | {"judged": len(parts.of), "groups": parts.groups}


def _groups(bases: Sequence[ComparedBasis]) -> dict[str, list[ComparedBasis]]:
    """Groups in the order in which differences read best: other bases, neurons, controls."""
    ordered = sorted(bases, key=lambda basis: (basis.control, basis.kind == "neuron"))
    return {name: [b for b in ordered if b.group == name] for name in dict.fromkeys(b.group for b in ordered)}


def _pairs(groups: dict[str, list[ComparedBasis]]) -> list[tuple[str, str]]:
    """Every two groups but two controls."""
    return [(a, b) for a, b in itertools.combinations(groups, 2) if not groups[a][0].control]


def _group(name: str, members: Sequence[ComparedBasis]) -> dict[str, Any]:
    seeds = [basis.seed for basis in members if basis.seed is not None]
    first = members[0]
    return {
        "name": name,
        "kind": first.kind,
        "control": first.control,
        "bases": [b.name for b in members],
        "seeds": seeds,
    }
