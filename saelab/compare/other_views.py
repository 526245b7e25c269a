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
from saelab.compare.shared import Difference, combine
from saelab.compare.sides import Side
from saelab.compare.twins import paired_difference, paired_differences

HALF = 0.5  # of a difference: a sentence says whether a twin explains less or more


@dataclass(frozen=True)
class Cut:
    """Neurons and random directions cut to the firing rate of one group of SAE features."""

    group: str  # of these features
    rate: float  # share of the mined images that units fire on at most
    bases: Sequence[ComparedBasis] = ()


@dataclass(frozen=True)
class Views:
    """Bases under their own names and with their own units; their activations and named labels are the view's."""

    pooling: str | None = None  # how `pooled` are pooled
    pooled: Sequence[ComparedBasis] = ()
    cut: Sequence[Cut] = ()  # one for each group of SAE features
    dense: Sequence[ComparedBasis] = ()  # SAE directions before their gate


def look_again(
    groups: Mapping[str, Sequence[ComparedBasis]], ground: Ground, views: Views, settings: Settings, metric: str | None
) -> dict[str, list[dict[str, Any]]]:
    """`judges`, `poolings` and `twins` of comparison.json, by the metric that decides; empty where there is none."""
    judges = _judges(groups, ground, settings, metric)
    if metric is None or settings.scorer != "final":
        return {"judges": judges, "poolings": [], "twins": []}
    twins: list[dict[str, Any]] = []
    for cut in views.cut:
        head = {"twin": "cut", "rate": cut.rate, "against": cut.group}
        twins += _twins(groups, ground, cut.bases, head, settings, metric)
    twins += _twins(groups, ground, views.dense, {"twin": "dense", "rate": None, "against": None}, settings, metric)
    twins += _gates_off(groups, ground, views.dense, settings, metric)
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
        row = {"a": a, "b": b, "mean_a": gap.mean_a, "mean_b": gap.mean_b} | _estimate(gap)
        found.append(row | {"verdict": ("a" if (gap.difference or 0) > 0 else "b") if told else "none"})
    return found


def _twins(
    groups: Mapping[str, Sequence[ComparedBasis]],
    ground: Ground,
    views: Sequence[ComparedBasis],
    head: Mapping[str, Any],
    settings: Settings,
    metric: str,
) -> list[dict[str, Any]]:
    """What the gate does to the units of each group: twin less unit, pair by pair."""
    found = []
    for group, members in groups.items():
        sides = _with_twins(members, ground, views, settings, metric)
        if sides is None:
            continue
        apart = torch.from_numpy(ground.groups(metric))
        gap = paired_difference(sides[1], sides[0], apart, "pearson", settings.parts, settings.seed, settings.alpha)
        row = {"group": group, **head, "n": sum(map(len, sides[0].labels))}
        found.append(row | {"mean": gap.mean_b, "mean_twin": gap.mean_a} | _estimate(gap))
    return found


def _gates_off(
    groups: Mapping[str, Sequence[ComparedBasis]],
    ground: Ground,
    views: Sequence[ComparedBasis],
    settings: Settings,
    metric: str,
) -> list[dict[str, Any]]:
    """Two groups that both have a gate, both without it: what that does to the difference between them."""
    found: list[dict[str, Any]] = []
    gated = {name: members for name, members in groups.items() if _of(views, members)}
    if len(gated) < 2:
        return found
    sides = {name: _with_twins(members, ground, views, settings, metric) for name, members in gated.items()}
    for a, b in itertools.combinations(gated, 2):
        one, other, parts = sides[a], sides[b], ground.parts(metric, [*groups[a], *groups[b]])
        if one is None or other is None or parts is None:
            continue
        gap = paired_differences(one, other, parts, settings.alpha)
        row: dict[str, Any] = {"group": a, "twin": "dense", "rate": None, "against": b}
        row |= {"n": sum(len(labels) for side in (one[0], other[0]) for labels in side.labels)}
        found.append(row | {"mean": gap.mean_b, "mean_twin": gap.mean_a} | _estimate(gap))
    return found


def _with_twins(
    members: Sequence[ComparedBasis], ground: Ground, views: Sequence[ComparedBasis], settings: Settings, metric: str
) -> tuple[Side, Side] | None:
    """The units of a group and their twins; None where there are none, or too few."""
    twins = _of(views, members)
    if not twins or ground.parts(metric, [*members, *twins]) is None:
        return None
    units = ground.side(members, metric)
    return None if min(map(len, units.labels)) < settings.fewest else (units, ground.anew().side(twins, metric))


def _estimate(gap: Difference) -> dict[str, Any]:
    return {name: getattr(gap, name) for name in ("difference", "low", "high", "p", "refused")}


def _of(views: Sequence[ComparedBasis], members: Sequence[ComparedBasis]) -> list[ComparedBasis]:
    """The view of every member of a group; none where one lacks it."""
    by_name = {basis.name: basis for basis in views}
    return [by_name[basis.name] for basis in members] if all(basis.name in by_name for basis in members) else []


def rate_explains(result: dict[str, Any], pair: dict[str, Any], gap: float) -> str | None:
    """Whether the gate makes half of a gap a - b or more: "yes", "no", "unclear"; None where no twin was measured.

    A dense side that is cut, and a sparse one before its gate, would each have to make up for it. Where both sides have
    a gate, both come off: what one side alone loses says nothing.
    """
    kinds = {group["name"]: group["kind"] for group in result["groups"]}
    alike = kinds[pair["a"]] == kinds[pair["b"]]
    shares = []
    for twin in result["twins"]:
        of_pair = {twin["group"], twin["against"]} == {pair["a"], pair["b"]}
        of_side = twin["against"] is None and twin["group"] in (pair["a"], pair["b"]) and not alike
        if twin["low"] is None or not (of_pair or of_side):
            continue
        sign = (1 if twin["group"] == pair["b"] else -1) / gap
        shares.append(sorted((twin["low"] * sign, twin["high"] * sign)))
    if not shares:
        return None
    less, more = [high < HALF for _, high in shares], [low > HALF for low, _ in shares]
    if all(less):
        return "no"
    return "yes" if any(more) and not any(less) else "unclear"
