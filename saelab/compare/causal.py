"""The family `causal` of a comparison: does the network use units for what their labels say (docs/effects.md)?

It is added to a finished comparison, in the same statistics: units of one label are a cluster, groups of test images
are left out in turn, p-values are corrected over all pairs. What was there before stays as it is.
"""

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from jaxtyping import Float

from saelab import metrics
from saelab.compare.answers import above_chance
from saelab.compare.cautions import cautions
from saelab.compare.evidence import TestImages, cliffs_delta
from saelab.compare.glossary import Metric
from saelab.compare.inputs import COUNTINGS, ComparedBasis, Counting, Settings, selected
from saelab.compare.left_out import Measured, Parts
from saelab.compare.pairs import interval_kind
from saelab.compare.shared import combine, of_one
from saelab.compare.sides import check_groups
from saelab.compare.words import conclusion, headline
from saelab.effects.summary import WHY, column, four_field, share_below, share_corrected

PRIMARY = "causal_net"
METRICS = {
    PRIMARY: Metric(
        "Own class, net of other units",
        "causal",
        True,
        -1,
        1,
        "ours: ablation, with other units of the same images as the control",
        "When the unit is taken out, do the outputs that its label means lose more, in percentiles of all outputs, "
        "than when other units that fire on the same images are?",
    ),
    "causal": Metric(
        "Own class above dealt labels",
        "causal",
        True,
        -1,
        1,
        "ours: ablation, with the basis' labels dealt out as the control",
        "When the unit is taken out, do the outputs that its label means lose more than those of the other labels? The "
        "images that fire a unit mostly show what its label says, so this alone decides nothing.",
    ),
}
Rows = Sequence[Mapping[str, Any]]  # of effects.jsonl, with `causal_q` (saelab.effects.summary.add_corrected)


def join(
    results: Sequence[dict[str, Any]],
    bases: Sequence[Sequence[ComparedBasis]],
    effects: Mapping[tuple[str, str], Rows],
    settings: Settings,
    images: TestImages | None = None,
    how: Mapping[str, Any] | None = None,
) -> None:
    """Add `causal` to each finished comparison, and say so in its answers, headline, conclusion and cautions.

    `bases`: those of each result. `effects`: layer and name of a basis -> rows of effects.jsonl; a basis without rows
    counts as not measured. `how`: with which settings they were measured, for the record. Six parameters: several
    layers are corrected together.
    """
    for result, own in zip(results, bases, strict=True):
        layer = result["setup"]["layer"]
        result["causal"] = _family(
            result, own, {b.name: effects.get((layer, b.name), ()) for b in own}, settings, images
        )
        result["causal"]["how"] = dict(how or {})
    _correct([result["causal"] for result in results], settings.alpha)
    for result in results:
        others = [a for a in result["answers"] if a["family"] != "causal"]
        result["answers"] = others + _answers(result["causal"], settings.alpha)
        result["cautions"] = cautions(result)
        result["headline"], result["conclusion"] = headline(result), conclusion(result)


def _family(
    result: dict[str, Any],
    bases: Sequence[ComparedBasis],
    rows: Mapping[str, Rows],
    settings: Settings,
    images: TestImages | None,
) -> dict[str, Any]:
    part_of, parts = _parts(images, settings)
    kept = {basis.name: set(selected(basis, settings).tolist()) for basis in bases}
    own = {name: [row for row in some if row["unit"] in kept[name]] for name, some in rows.items()}
    ground = _Ground({basis.name: basis for basis in bases}, own, part_of, parts)
    members = {group["name"]: group["bases"] for group in result["groups"]}
    pairs = [p for p in result["pairs"] if p["matching"] == "all"]
    return {
        "primary": PRIMARY,
        "metrics": {name: dataclasses.asdict(metric) for name, metric in METRICS.items()},
        "bases": [_describe(basis, ground, settings) for basis in bases],
        "pairs": [_pair(p, members[p["a"]], members[p["b"]], ground, settings) for p in pairs],
    }


@dataclasses.dataclass(frozen=True)
class _Ground:
    bases: Mapping[str, ComparedBasis]
    rows: Mapping[str, list[Mapping[str, Any]]]  # of the units that are compared
    part_of: Mapping[int, int]  # test image -> its part
    parts: Parts | None

    def measure(self, names: Sequence[str], metric: str, counting: Counting) -> Measured:
        """The units of a group, seeds one after the other; `all` counts those without a sure label or number as 0."""
        values, left, cluster, seeds, places, dropped = [], [], [], [], [], 0
        label_place: dict[object, int] = {}
        for seed, name in enumerate(names):
            given = self.bases[name].given()
            for place, row in enumerate(self.rows[name]):
                value, sure = row.get(metric), given[row["unit"]] is not None
                if counting == "labelled" and not sure:
                    continue
                if counting == "all" and not sure:
                    value = None
                if value is None and counting != "all":
                    dropped += 1
                    continue
                label = row["label"] if row["label"] is not None else (seed, row["unit"])
                cluster.append(label_place.setdefault(label, len(label_place)))
                values.append(value or 0.0)
                left.append(self._left_out(row, metric, value))
                seeds.append(seed)
                places.append(place)
        numbers = np.array(values, dtype=float)
        without = np.stack(left, axis=1) if left else np.zeros((0 if self.parts is None else len(self.parts), 0))
        label, of, unit = (np.array(x, dtype=np.int64) for x in (cluster, seeds, places))
        return Measured(numbers, numbers, without, label, of, unit, len(names), dropped)

    def _left_out(self, row: Mapping[str, Any], metric: str, value: float | None) -> Float[np.ndarray, "parts"]:
        """The unit's number without each part of the images: what leaving out each of its images changes, summed."""
        found = np.full(0 if self.parts is None else len(self.parts), value or 0.0)
        if self.parts is not None and value is not None:
            changes = np.array(row["without"][metric]) - value
            np.add.at(found, [self.part_of[image] for image in row["pictures"]], changes)
        return found


def _parts(images: TestImages | None, settings: Settings) -> tuple[dict[int, int], Parts | None]:
    if images is None:
        return {}, None
    groups = check_groups(images.groups, len(images.ids))
    parts = Parts.deal(np.unique(groups, return_inverse=True)[1], settings.parts, settings.seed)
    return dict(zip(np.asarray(images.ids).tolist(), parts.of.tolist())), parts


def _describe(basis: ComparedBasis, ground: _Ground, settings: Settings) -> dict[str, Any]:
    """One basis: how many units were measured, the four-field table *detects x uses*, means against 0."""
    rows, given = ground.rows[basis.name], basis.given()
    p = column(rows, "causal_p")  # type: ignore[arg-type]
    means = {}
    for metric in METRICS:
        one = of_one(ground.measure([basis.name], metric, "named"), ground.parts, settings.alpha)
        n = sum(row.get(metric) is not None for row in rows)
        means[metric] = {
            "mean": one.mean_a,
            "low": one.low,
            "high": one.high,
            "p": one.p,
            "n": n,
            "refused": one.refused,
        }
    return {
        "name": basis.name,
        "group": basis.group,
        "control": basis.control,
        "units": len(basis.rows),
        "chosen": len(rows),
        "measured": sum(row["why"] is None for row in rows),
        "why": {why: sum(row["why"] == why for row in rows) for why in WHY},
        "uses": share_below(p),
        "uses_corrected": share_corrected(rows),
        "four_field": four_field(p, [given[row["unit"]] is not None for row in rows]),
        "means": means,
    }


def _pair(
    pair: Mapping[str, Any], a: Sequence[str], b: Sequence[str], ground: _Ground, settings: Settings
) -> dict[str, Any]:
    counts = [[sum(row["why"] is None for row in ground.rows[name]) for name in side] for side in (a, b)]
    fewest, refused = min(min(side) for side in counts), None
    if fewest < settings.fewest:
        refused = f"only {fewest} units on one side have a measured effect; at least {settings.fewest} are needed"
    found = {name: pair[name] for name in ("a", "b", "role", "matching")} | {"refused": refused}
    found |= {
        "units_a": counts[0],
        "units_b": counts[1],
        "balance": None,
        "interval": interval_kind(None, ground.parts),
    }
    results = []
    for metric in METRICS if refused is None else ():
        for counting in COUNTINGS:
            sides = [ground.measure(side, metric, counting) for side in (a, b)]
            if min(min(side.kept) for side in sides) >= settings.fewest:
                results.append(_result(metric, counting, sides[0], sides[1], ground.parts, settings.alpha))
    if refused is None and not any(r["metric"] == PRIMARY and r["counting"] == "named" for r in results):
        found["refused"] = f"fewer than {settings.fewest} units on one side fire together with others on their images"
    return found | {"results": results}


def _result(
    metric: str, counting: Counting, a: Measured, b: Measured, parts: Parts | None, alpha: float
) -> dict[str, Any]:
    found = dataclasses.asdict(combine(a, b, parts, alpha))
    found |= {"df": None if found["df"] is None or math.isinf(found["df"]) else found["df"]}
    head = {"metric": metric, "counting": counting, "n_a": len(a.values), "n_b": len(b.values)}
    own = {"cliffs_delta": cliffs_delta(a.values, b.values), "null_difference": None}
    return head | found | own | {"role": "primary" if metric == PRIMARY else "shown", "p_holm": None, "verdict": "none"}


def _correct(families: Sequence[dict[str, Any]], alpha: float) -> None:
    """Holm over all main pairs of all layers, and over the controls; other countings each for themselves."""
    together: dict[tuple[str, ...], list[dict[str, Any]]] = {}
    for number, family in enumerate(families):
        for pair in family["pairs"]:
            for row in pair["results"]:
                if row["role"] == "primary" and row["p"] is not None:
                    named = row["counting"] == "named"
                    own = (pair["role"],) if named else (str(number), pair["a"], pair["b"], row["counting"])
                    together.setdefault(own, []).append(row)
    for rows in together.values():
        for row, p in zip(rows, metrics.holm([row["p"] for row in rows])):
            row["p_holm"] = p
            if p < alpha and not row["low"] <= 0 <= row["high"]:
                row["verdict"] = "a" if row["difference"] > 0 else "b"


def _answers(family: dict[str, Any], alpha: float) -> list[dict[str, Any]]:
    """As `answers.answers` gives them, from the primary metric, every named unit with a number."""
    found = []
    for pair in family["pairs"]:
        row = next((r for r in pair["results"] if (r["metric"], r["counting"]) == (PRIMARY, "named")), None)
        why = pair["refused"] or (row and row["refused"])
        verdict = "refused" if why or row is None else row["verdict"]
        sides = {name: [PRIMARY] if verdict == side else [] for name, side in _SIDES.items()}
        head = {"a": pair["a"], "b": pair["b"], "matching": "all", "family": "causal"}
        above = above_chance(row, alpha) if row is not None and verdict != "refused" else None
        found.append(head | {"verdict": verdict, "above": above, **sides, "why": why})
    return found


_SIDES = {"better_a": "a", "better_b": "b", "none": "none"}
