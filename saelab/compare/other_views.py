"""The same units looked at another way: pooled otherwise, behind another gate, judged by another reader of captions.

Does the answer hang on it? In the first two views labels are chosen anew by the scorer that chose them, so none is
judged by another's labels; in the third they stay.
"""

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from saelab.compare.evidence import Ground
from saelab.compare.inputs import ComparedBasis, Settings
from saelab.compare.shared import combine
from saelab.compare.twins import paired_difference

HALF = 0.5  # of a difference: a sentence says whether a twin explains less or more


@dataclass(frozen=True)
class Views:
    """Bases under their own names and with their own units; their activations and named labels are the view's."""

    pooling: str | None = None  # how `pooled` are pooled
    pooled: Sequence[ComparedBasis] = ()
    rate: float | None = None  # share of the mined images that units of `cut` fire on
    cut: Sequence[ComparedBasis] = ()  # neurons and random directions cut to the firing rate of SAE features
    dense: Sequence[ComparedBasis] = ()  # SAE directions before their gate


def look_again(
    groups: Mapping[str, Sequence[ComparedBasis]], ground: Ground, views: Views, settings: Settings, metric: str | None
) -> dict[str, list[dict[str, Any]]]:
    """`judges`, `poolings` and `twins` of comparison.json, by the metric that decides; empty where there is none."""
    judges = _judges(groups, ground, settings, metric)
    if metric is None or settings.scorer != "final":
        return {"judges": judges, "poolings": [], "twins": []}
    twins = [*_twins(groups, ground, views.cut, "cut", views.rate, settings, metric)]
    twins += _twins(groups, ground, views.dense, "dense", None, settings, metric)
    return {"judges": judges, "poolings": _poolings(groups, ground, views, settings, metric), "twins": twins}


def _judges(
    groups: Mapping[str, Sequence[ComparedBasis]], ground: Ground, settings: Settings, metric: str | None
) -> list[dict[str, Any]]:
    """Every two real groups, with the labels that they have, where the second reader of captions judges."""
    second = ground.judged_by_second() if metric == "caption_r" else None
    if second is None or second.images is None or second.images.judges.captions is None:
        return []
    real = {name: members for name, members in groups.items() if not members[0].control}
    judge = second.images.judges.captions.name
    return [row | {"judge": judge} for row in _told(real, second, settings, "caption_r", settings.scorer)]


def _poolings(
    groups: Mapping[str, Sequence[ComparedBasis]], ground: Ground, views: Views, settings: Settings, metric: str
) -> list[dict[str, Any]]:
    """Every two real groups under the other pooling."""
    seen = {name: _of(views.pooled, members) for name, members in groups.items() if not members[0].control}
    some = {name: members for name, members in seen.items() if members}
    return [row | {"pooling": views.pooling} for row in _told(some, ground.anew(), settings, metric)]


def _told(
    groups: Mapping[str, Sequence[ComparedBasis]],
    ground: Ground,
    settings: Settings,
    metric: str,
    scorer: str | None = None,
) -> list[dict[str, Any]]:
    """Every two groups by one metric, every unit named: means, difference, interval, p uncorrected, verdict."""
    found = []
    for a, b in itertools.combinations(groups, 2):
        one, other, parts = ground.sides(groups[a], groups[b], metric, scorer)
        if parts is None:
            continue
        gap = combine(one, other, parts, settings.alpha)
        told = gap.p is not None and gap.p < settings.alpha
        row = {"a": a, "b": b, "mean_a": gap.mean_a, "mean_b": gap.mean_b}
        row |= {name: getattr(gap, name) for name in ("difference", "low", "high", "p", "refused")}
        found.append(row | {"verdict": ("a" if (gap.difference or 0) > 0 else "b") if told else "none"})
    return found


def _twins(
    groups: Mapping[str, Sequence[ComparedBasis]],
    ground: Ground,
    views: Sequence[ComparedBasis],
    kind: str,
    rate: float | None,
    settings: Settings,
    metric: str,
) -> list[dict[str, Any]]:
    """What the gate does to the units of each group: twin less unit, pair by pair. Seven parameters: one noun each."""
    found = []
    for group, members in groups.items():
        twins = _of(views, members)
        if not twins or ground.parts(metric, [*members, *twins]) is None:
            continue
        sides = [g.side(some, metric) for g, some in ((ground, members), (ground.anew(), twins))]
        if any(len(labels) < settings.fewest for labels in sides[0].labels):
            continue
        apart = torch.from_numpy(ground.groups(metric))
        gap = paired_difference(sides[1], sides[0], apart, "pearson", settings.parts, settings.seed, settings.alpha)
        row = {"group": group, "twin": kind, "rate": rate, "n": sum(map(len, sides[0].labels))}
        row |= {"mean": gap.mean_b, "mean_twin": gap.mean_a, "difference": gap.difference}
        found.append(row | {name: getattr(gap, name) for name in ("low", "high", "p", "refused")})
    return found


def _of(views: Sequence[ComparedBasis], members: Sequence[ComparedBasis]) -> list[ComparedBasis]:
    """The view of every member of a group; none where one lacks it."""
    by_name = {basis.name: basis for basis in views}
    return [by_name[basis.name] for basis in members] if all(basis.name in by_name for basis in members) else []


def rate_explains(result: dict[str, Any], pair: dict[str, Any], gap: float) -> str | None:
    """Whether the gate makes half of a gap a - b or more: "yes", "no", "unclear"; None where no twin was measured.

    A dense side that is cut, and a sparse one before its gate, would each have to make up for it.
    """
    shares = []
    for twin in result["twins"]:
        if twin["low"] is None or twin["group"] not in (pair["a"], pair["b"]):
            continue
        sign = (1 if twin["group"] == pair["b"] else -1) / gap
        shares.append(sorted((twin["low"] * sign, twin["high"] * sign)))
    if not shares:
        return None
    if all(high < HALF for _, high in shares):
        return "no"
    return "yes" if any(low > HALF for low, _ in shares) else "unclear"
