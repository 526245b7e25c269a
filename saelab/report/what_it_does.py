"""What a unit does, as its page shows it: outputs raised and lowered, its own marked, detects x uses."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from saelab.artifacts import read_json, read_jsonl
from saelab.effects.summary import USES, add_corrected
from saelab.errors import UserError


@dataclass(frozen=True)
class Measured:
    """The effects of a basis, as far as they were measured."""

    rows: Mapping[int, dict[str, Any]]  # unit -> its line of effects.jsonl, with `causal_q`
    means: Mapping[str, list[Any]]  # label -> [output, share] of the outputs that it means, largest first
    outputs: int  # of the host


def read(folder: Path) -> Measured:
    """From the folder that `saelab effects` writes. Raises UserError where it is gone or not whole."""
    if not (folder / "effects.jsonl").is_file() or not (folder / "targets.json").is_file():
        raise UserError("run", folder, "holds no whole effects", "run `saelab effects` again")
    means = read_json(folder / "targets.json")
    rows = {row["unit"]: row for row in add_corrected(read_jsonl(folder / "effects.jsonl"))}
    return Measured(rows, means["labels"], means["outputs"])


def of_units(measured: Measured | None, labels: Sequence[Mapping[str, Any]]) -> list[dict[str, Any] | None]:
    """For each unit what its page shows; None where it was not measured, or fires on too few pictures to be."""
    if measured is None:
        return [None] * len(labels)
    return [_shown(measured, measured.rows.get(label["unit"]), label) for label in labels]


def _shown(measured: Measured, row: dict[str, Any] | None, label: Mapping[str, Any]) -> dict[str, Any] | None:
    if row is None or row["why"] == "too_few":
        return None
    own = dict(measured.means.get(row["label"] or "", []))
    numbers = (
        "causal_pct",
        "causal_control",
        "causal_net",
        "causal_p",
        "causal_q",
        "drop",
        "moved",
        "push",
        "necessity",
    )
    return {
        "pictures": len(row["pictures"]),
        "outputs": measured.outputs,
        "own": list(own),
        **{side: [[name, value, name in own] for name, value in row[side]] for side in ("raised", "lowered")},
        **{name: row.get(name) for name in numbers},
        "steer_pct": (row.get("steer_pct") or {}).get("1"),
        "cell": None if row["why"] else _cell(row, label),
    }


def _cell(row: Mapping[str, Any], label: Mapping[str, Any]) -> str:
    """Where the unit stands in the table *detects x uses*."""
    detects, uses = not label["abstained"], row["causal_p"] < USES
    return "both" if detects and uses else "detects" if detects else "uses" if uses else "neither"
