"""What people said of a run's units: other labels, verdicts, stars, notes, collections; kept beside the run.

Two append-only JSONL files lie in `live/<name of the run>/`. Every line names a unit and has `who` and `when`:
`labels_edited.jsonl` `{"units", "basis", "unit", "old", "new", ...}`, `judgements.jsonl` one of `verdict`, `star`,
`note`, `collections` (or `new`: what pages from disk save holds both kinds). The last line of a unit counts, field by
field. `units` is the folder of the unit activations: what was said is of those units alone.
"""

import datetime
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TypeGuard

from saelab.artifacts import read_jsonl
from saelab.report.reading import ReadBasis

LABELS, JUDGEMENTS = "labels_edited.jsonl", "judgements.jsonl"
LONGEST = {"label": 200, "name": 60, "note": 500, "collection": 60}  # characters
COLLECTIONS = 50  # that a unit may be in
Row = dict[str, Any]


def folder(run_json: Path) -> Path:
    """Where people's words about a run lie."""
    return run_json.parent / "live" / run_json.stem


def files(run_json: Path) -> list[Path]:
    """The files of people's words that exist."""
    return [path for name in (LABELS, JUDGEMENTS) if (path := folder(run_json) / name).is_file()]


def read(bases: Sequence[ReadBasis], at: Path) -> list[Row]:
    """The lines in folder `at` that speak of these units, oldest first; others are passed over.

    A line: `{"basis", "unit", "who", "when"}` and any of `new` (a label or None), `verdict` ("accepted", "rejected",
    None), `star` (bool), `note` (text or None), `collections` (names).
    """
    known = {basis.name: basis for basis in bases}
    paths = [path for name in (LABELS, JUDGEMENTS) if (path := at / name).is_file()]
    lines = [_line(row, known) for path in paths for row in read_jsonl(path)]
    return sorted((line for line in lines if line), key=lambda line: _moment(line["when"]))


def merged(rows: Sequence[Row]) -> dict[tuple[str, int], Row]:
    """(basis, unit) -> the last value of every field."""
    found: dict[tuple[str, int], Row] = {}
    for row in rows:
        said = {key: row[key] for key in FIELDS if key in row}
        found.setdefault((row["basis"], row["unit"]), {}).update(said)
    return found


def columns(said: Row | None, label: str | None) -> Row:
    """What stands in a table beside the run's own `label`: six columns, False or None where nobody said anything.

    `label_edited` tells a label that people took away, whose `label_by_people` is None, from one that nobody touched.
    """
    said = said or {}
    new = said.get("new", label)
    return {
        "label_edited": new != label,
        "label_by_people": new if new != label else None,
        "verdict": said.get("verdict"),
        "star": said.get("star") or None,
        "note": said.get("note"),
        "collections": said.get("collections") or None,
    }


def is_place(value: object, count: int) -> TypeGuard[int]:
    """Is it the number of one of `count` units?"""
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value < count


def _text(value: object, most: int) -> bool:
    return isinstance(value, str) and 0 < len(value) <= most


FIELDS: dict[str, Callable[[Any], bool]] = {
    "new": lambda x: x is None or _text(x, LONGEST["label"]),
    "verdict": lambda x: x is None or x in ("accepted", "rejected"),
    "star": lambda x: isinstance(x, bool),
    "note": lambda x: x is None or _text(x, LONGEST["note"]),
    "collections": lambda x: (
        isinstance(x, list) and len(x) <= COLLECTIONS and all(_text(name, LONGEST["collection"]) for name in x)
    ),
}


def _line(row: Any, known: dict[str, ReadBasis]) -> Row | None:
    """A line's useful part; None where it is of other units, or anybody wrote something else into the file."""
    if not isinstance(row, dict) or not {"units", "basis", "unit", "who", "when"} <= set(row):
        return None
    basis = known.get(str(row["basis"]))
    if basis is None or basis.units.name != row["units"] or not is_place(row["unit"], len(basis.labels)):
        return None
    said = {key: row[key] for key, valid in FIELDS.items() if key in row and valid(row[key])}
    place = {"basis": basis.name, "unit": row["unit"], "who": str(row["who"]), "when": str(row["when"])}
    return place | said if said else None


def _moment(when: str) -> float:
    try:
        return datetime.datetime.fromisoformat(when).timestamp()
    except (ValueError, OverflowError):
        return 0.0
