"""The result on disk: comparison.json and the same numbers as CSV tables."""

from pathlib import Path
from typing import Any

from saelab.artifacts import write_csv, write_json


def write(folder: Path, result: dict[str, Any]) -> None:
    """`comparison.json`, `bases.csv`, `pairs.csv` and `methods.csv` into `folder`."""
    pairs = [*result["pairs"], *result.get("causal", {"pairs": []})["pairs"]]
    write_json(folder / "comparison.json", result)
    write_csv(folder / "bases.csv", [_basis(basis) for basis in result["bases"]])
    write_csv(folder / "pairs.csv", [row for pair in pairs for row in _pair(pair)])
    write_csv(folder / "methods.csv", result["methods"])


def _basis(basis: dict[str, Any]) -> dict[str, Any]:
    names = (
        "name",
        "group",
        "kind",
        "seed",
        "control",
        "before",
        "after",
        "coverage",
        "named",
        "labelled",
        "abstained",
        "with_truth",
    )
    row = {name: basis[name] for name in names}
    row |= {f"labels_{name}": basis["labels"][name] for name in ("distinct", "reuse", "entropy", "evenness")}
    row["firing_rate_median"] = basis["firing_rate"]["median"]
    for metric, means in basis["means"].items():
        row |= {f"{metric}_{counting}": value for counting, value in means.items()}
    return row | {f"{metric}_shuffled": value for metric, value in basis["shuffled"].items()}


def _pair(pair: dict[str, Any]) -> list[dict[str, Any]]:
    head = {name: pair[name] for name in ("a", "b", "matching", "interval", "refused")} | {"pair": pair["role"]}
    rows = [{k: v for k, v in row.items() if not isinstance(v, dict)} for row in pair["results"]]
    variances = [{f"variance_{k}": v for k, v in row["variance"].items()} for row in pair["results"]]
    return [head | row | variance for row, variance in zip(rows, variances)] or [head]
