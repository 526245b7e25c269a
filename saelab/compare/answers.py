"""Answers: which side is better, per pair of groups, matching and family of metrics."""

from collections.abc import Sequence
from typing import Any

from saelab.compare.glossary import METRICS

FAMILIES = {"faithfulness": "label faithfulness", "coherence": "unit coherence"}


def answers(result: dict[str, Any]) -> list[dict[str, Any]]:
    """Per pair, matching and family: which side is better, every unit named.

    Faithfulness: what the primary metric says; the lists name secondary metrics too. Coherence: "mixed" where some
    metrics are for either side. "refused": no interval can be given. SCS counts only with a judge of its own. `above`:
    with a verdict on faithfulness, whether a side is above chance at all (`above_chance`).
    """
    found = []
    for pair in result["pairs"]:
        for family in FAMILIES:
            rows = [row for row in pair["results"] if row["counting"] == "named" and _counts(row, family, result)]
            tested = [row for row in rows if row["p"] is not None]
            sides = {side: [row["metric"] for row in tested if row["verdict"] == side] for side in ("a", "b", "none")}
            above = None
            if family == "faithfulness":
                decides = next((row for row in tested if row["role"] == "primary"), None)
                verdict = "refused" if decides is None else decides["verdict"]
                above = None if decides is None else above_chance(decides, result["settings"]["alpha"])
            else:
                both = sides["a"] and sides["b"]
                verdict = "mixed" if both else "a" if sides["a"] else "b" if sides["b"] else "none"
                verdict = verdict if tested else "refused"
            found.append(
                {name: pair[name] for name in ("a", "b", "matching")}
                | {"family": family, "verdict": verdict, "above": above}
                | {"better_a": sides["a"], "better_b": sides["b"], "none": sides["none"]}
                | {"why": _why(pair, rows, result) if verdict == "refused" else None}
            )
    return found


def above_chance(row: dict[str, Any], alpha: float) -> bool | None:
    """Whether either side's mean is shown to be above 0; None without a verdict.

    Of two sides below chance one is still ahead: what a row calls better need not be good.
    """
    if row["verdict"] == "none":
        return None
    sides = [(row["mean_a"], row["p_a"]), (row["mean_b"], row["p_b"])]
    return any(p is not None and p < alpha and mean > 0 for mean, p in sides)


def _counts(row: dict[str, Any], family: str, result: dict[str, Any]) -> bool:
    if METRICS[row["metric"]].family != family or row["role"] == "shown":
        return False
    return row["metric"] != "scs" or independent_judge(result)


def _why(pair: dict[str, Any], rows: Sequence[dict[str, Any]], result: dict[str, Any]) -> str:
    if pair["refused"]:
        return str(pair["refused"])
    if result["primary"] is None:
        return "nothing that people wrote of the test images judges the labels"
    names = {"on side a": f"on {pair['a']}", "on side b": f"on {pair['b']}"}
    for row in rows:
        if row["refused"]:
            text = row["refused"]
            for side, name in names.items():
                text = text.replace(side, name)
            return str(text)
    return "too few units have a number"


def answer_of(result: dict[str, Any], pair: dict[str, Any], family: str, matching: str) -> dict[str, Any]:
    wanted = (pair["a"], pair["b"], family, matching)
    return next(x for x in result["answers"] if (x["a"], x["b"], x["family"], x["matching"]) == wanted)


def independent_judge(result: dict[str, Any]) -> bool:
    return bool(result["setup"]["judge"] != result["setup"]["encoder"])


def pair_of(result: dict[str, Any], a: str, b: str, matching: str) -> dict[str, Any]:
    return next(p for p in result["pairs"] if (p["a"], p["b"], p["matching"]) == (a, b, matching))


def row_of(pair: dict[str, Any], metric: str | None, counting: str = "named") -> dict[str, Any] | None:
    return next((r for r in pair["results"] if r["metric"] == metric and r["counting"] == counting), None)
