"""Where another counting, matching, judge, layer or pooling says something else of the same pair, and what."""

from collections.abc import Sequence
from typing import Any

from saelab.compare.answers import answer_of, pair_of, row_of
from saelab.compare.phrases import LIKE

COUNTED = {
    "all": "counting units that abstain as 0",
    "labelled": "leaving out units that abstain",
}
OTHER = {"layer": "at layer", "pooling": "pooled by"}


def disagreements(result: dict[str, Any], results: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Per main pair and other way to look at it: {a, b, way, verdict}, where the verdict on faithfulness is another.

    "none" beside a called difference counts as another verdict, except in a matching, where fewer units are left.
    """
    found = []
    for pair in result["pairs"]:
        if pair["role"] != "main" or pair["matching"] != "all":
            continue
        verdict = answer_of(result, pair, "faithfulness", "all")["verdict"]
        if verdict == "refused":
            continue
        for way, other in _other_ways(result, pair, results):
            if other != verdict:
                found.append({"a": pair["a"], "b": pair["b"], "way": way, "verdict": other})
    return found


def _other_ways(
    result: dict[str, Any], pair: dict[str, Any], results: Sequence[dict[str, Any]]
) -> list[tuple[str, str]]:
    ways = []
    for counting, text in COUNTED.items():
        row = row_of(pair, result["primary"], counting)
        if row is not None and row["p"] is not None:
            ways.append((text, row["verdict"]))
    for matching, like in LIKE.items():
        matched = row_of(pair_of(result, pair["a"], pair["b"], matching), result["primary"])
        if matched is not None and matched["verdict"] != "none":
            ways.append((f"among units of like {like}", matched["verdict"]))
    for row in result["poolings"]:
        if (row["a"], row["b"]) == (pair["a"], pair["b"]) and row["p"] is not None:
            ways.append((f"pooled by {row['pooling']}", row["verdict"]))
    for row in result["judges"]:
        if (row["a"], row["b"]) == (pair["a"], pair["b"]) and row["p"] is not None:
            ways.append((f"judged by {row['judge']}", row["verdict"]))
    for other in results:
        here, there = result["setup"], other["setup"]
        differs = [name for name in OTHER if here[name] != there[name]]
        names = [(p["a"], p["b"]) for p in other["pairs"]]
        if other is result or not differs or (pair["a"], pair["b"]) not in names:
            continue
        verdict = answer_of(other, pair, "faithfulness", "all")["verdict"]
        if verdict != "refused":
            ways.append((" and ".join(f"{OTHER[name]} {there[name]}" for name in differs), verdict))
    return ways
