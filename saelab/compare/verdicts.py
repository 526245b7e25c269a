"""From p-values to verdicts: one primary metric decides, the rest is read only where it has."""

from collections.abc import Sequence
from typing import Any

from saelab import metrics
from saelab.compare.glossary import METRICS

SHOWN = ("auprc", "f1", "iou")  # they mix labels that have truth with units that abstain: shown, never decided by


def role_of(metric: str, primary: str | None) -> str:
    """`primary`, `secondary` or `shown` (in no verdict)."""
    return "primary" if metric == primary else "shown" if metric in SHOWN else "secondary"


def correct_all(results: Sequence[dict[str, Any]]) -> None:
    """Give every row of the results (layers, poolings, further bases: all answered together) its Holm-corrected p.

    Families: the primary metric over all main pairs of all results, every unit named; the same for the controls; the
    coherence metrics over all main pairs, and over the controls; within a pair its secondary metrics, and the primary
    in other countings and matchings, each for itself; scorers within their group.
    """
    families: dict[tuple[str, ...], list[dict[str, Any]]] = {}
    for result in results:
        for pair in result["pairs"]:
            for row in pair["results"]:
                row["role"] = role_of(row["metric"], result["primary"])
                row["p_holm"] = None
                if row["role"] != "shown" and row["p"] is not None:
                    families.setdefault(_family(pair, row), []).append(row)
        for row in result["methods"]:
            families.setdefault(("methods", row["group"]), []).append(row)
    for family, rows in families.items():
        name = "p_wilcoxon" if family[0] == "methods" else "p"
        for row, p in zip(rows, metrics.holm([row[name] for row in rows])):
            row["p_holm"] = p


def _family(pair: dict[str, Any], row: dict[str, Any]) -> tuple[str, ...]:
    whole = pair["matching"] == "all" and row["counting"] == "named"
    coherence = METRICS[row["metric"]].family == "coherence"
    if whole and (coherence or row["role"] == "primary"):
        return ("coherence" if coherence else "primary", pair["role"])
    return (pair["a"], pair["b"], pair["matching"], row["counting"], row["role"], str(coherence))


def decide_all(result: dict[str, Any]) -> None:
    """Set every row's `verdict`: the side that is better, "a" or "b", or "none" where no difference is shown.

    Secondary metrics of faithfulness are gatekept: they say nothing of a pair that the primary doesn't tell apart.
    """
    alpha = result["settings"]["alpha"]
    open_ = set()
    for pair in result["pairs"]:
        for row in pair["results"]:
            decide(row, alpha)
            if row["role"] == "primary" and (pair["matching"], row["counting"]) == ("all", "named"):
                open_ |= {(pair["a"], pair["b"])} if row["verdict"] != "none" else set()
    for pair in result["pairs"]:
        for row in pair["results"]:
            faithful = METRICS[row["metric"]].family == "faithfulness"
            if faithful and row["role"] == "secondary" and (pair["a"], pair["b"]) not in open_:
                row["verdict"] = "none"
    for row in result["methods"]:
        decide(row, alpha)


def decide(row: dict[str, Any], alpha: float) -> None:
    """Set `verdict` of one row by its corrected p and interval alone."""
    row["verdict"] = "none"
    if row["p_holm"] is not None and row["p_holm"] < alpha and not row["low"] <= 0 <= row["high"]:
        row["verdict"] = "a" if (row["difference"] > 0) == METRICS[row["metric"]].higher_is_better else "b"
