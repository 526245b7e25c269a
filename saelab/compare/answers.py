"""Answers: which side is better, per pair of groups, matching and family of metrics."""

from typing import Any

from saelab.compare.glossary import METRICS

FAMILIES = {"faithfulness": "label faithfulness", "coherence": "unit coherence"}


def answers(result: dict[str, Any]) -> list[dict[str, Any]]:
    """Per pair, matching and family: which side is better, by the corrected results of counting `all`.

    "mixed": some metrics for either side. SCS has no say where its judge is the encoder that chose the labels.
    """
    found = []
    for pair in result["pairs"]:
        for family in FAMILIES:
            rows = [
                row
                for row in pair["results"]
                if row["counting"] == "all" and METRICS[row["metric"]].family == family
                if row["metric"] != "scs" or independent_judge(result)
            ]
            sides = {side: [row["metric"] for row in rows if row["verdict"] == side] for side in ("a", "b", "none")}
            verdict = "mixed" if sides["a"] and sides["b"] else "a" if sides["a"] else "b" if sides["b"] else "none"
            found.append(
                {name: pair[name] for name in ("a", "b", "matching")}
                | {"family": family, "verdict": verdict if rows else "refused"}
                | {"better_a": sides["a"], "better_b": sides["b"], "none": sides["none"]}
            )
    return found


def answer_of(result: dict[str, Any], pair: dict[str, Any], family: str, matching: str) -> dict[str, Any]:
    wanted = (pair["a"], pair["b"], family, matching)
    return next(x for x in result["answers"] if (x["a"], x["b"], x["family"], x["matching"]) == wanted)


def independent_judge(result: dict[str, Any]) -> bool:
    return bool(result["setup"]["judge"] != result["setup"]["encoder"])


def pair_of(result: dict[str, Any], a: str, b: str, matching: str) -> dict[str, Any]:
    return next(p for p in result["pairs"] if (p["a"], p["b"], p["matching"]) == (a, b, matching))


def row_of(pair: dict[str, Any], metric: str) -> dict[str, Any] | None:
    return next((r for r in pair["results"] if r["metric"] == metric and r["counting"] == "all"), None)
