"""People's answers about a run, kept beside it in append-only JSONL files.

`labels_edited.jsonl`: `{"units", "basis", "unit", "old", "new", "who", "when"}` a line; the last line of a unit counts.
`units` is the folder of the unit activations: an edit is of those units, and not of others that later bear the name.
`ratings.jsonl`: `{"study", "rater", "code", "rating", "when"}` a line; rating 1 to 5, or null for "can't say".
"""

import fcntl
import json
import os
import time
from pathlib import Path
from typing import Any

from saelab.artifacts import read_jsonl
from saelab.errors import UserError
from saelab.report.live.rating import Answer, Study
from saelab.report.reading import Run

LONGEST = {"label": 200, "name": 60}  # characters


def append(path: Path, row: dict[str, Any]) -> None:
    """Add one line, whole or not at all, whoever else writes; a last line that a kill cut off is removed first."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a+b") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        file.seek(0)
        before = file.read()
        file.truncate(before.rfind(b"\n") + 1)
        file.write(json.dumps(row, ensure_ascii=False).encode() + b"\n")
        file.flush()
        os.fsync(file.fileno())


class Edits:
    """Labels that people put in place of a run's own; `labels.jsonl` stays unchanged."""

    def __init__(self, run: Run, folder: Path) -> None:
        self.run, self.path = run, folder / "labels_edited.jsonl"
        self.bases = {basis.name: basis for basis in run.bases}

    def current(self) -> dict[str, dict[int, dict[str, Any]]]:
        """basis -> unit -> `{"label", "was", "who", "when"}`; without units whose label is the run's own again."""
        found: dict[str, dict[int, dict[str, Any]]] = {}
        for row in _rows(self.path):
            basis = self.bases.get(row["basis"])
            if basis is None or basis.units.name != row["units"]:
                continue
            was = basis.labels[row["unit"]]["label"]
            edits = found.setdefault(basis.name, {})
            edits.pop(row["unit"], None)
            if row["new"] != was:
                edits[row["unit"]] = {"label": row["new"], "was": was, "who": row["who"], "when": row["when"]}
        return found

    def edit(self, basis: object, unit: object, label: object, who: object) -> dict[str, Any]:
        """Keep `label` (None: no label) for a unit and return the line written. Raises UserError for bad input."""
        known = self.bases.get(basis) if isinstance(basis, str) else None
        if known is None:
            raise UserError("basis", basis, "is not in this run", f"use {', '.join(self.bases)}")
        if not isinstance(unit, int) or isinstance(unit, bool) or not 0 <= unit < len(known.labels):
            raise UserError("unit", unit, f"is not a unit of {basis}", f"use 0 to {len(known.labels) - 1}")
        new, name = None if label is None else line("label", label), line("name", who)
        old = self.current().get(known.name, {}).get(unit, known.labels[unit])["label"]
        row = {"units": known.units.name, "basis": known.name, "unit": unit}
        row |= {"old": old, "new": new, "who": name, "when": _now()}
        append(self.path, row)
        return row


class Ratings:
    """Answers to one blind study."""

    def __init__(self, study: Study, folder: Path) -> None:
        self.study, self.path = study, folder / "ratings.jsonl"
        self.codes = {item.code for item in study.items}

    def answers(self) -> list[Answer]:
        """The last answer of each rater to each item of this study."""
        rows = [row for row in _rows(self.path) if row["study"] == self.study.name and row["code"] in self.codes]
        last = {(row["rater"], row["code"]): row["rating"] for row in rows}
        return [Answer(rater, code, rating) for (rater, code), rating in last.items()]

    def add(self, rater: object, code: object, rating: object) -> None:
        """Keep one answer. Raises UserError for an item that is not in the study or no rating."""
        name = line("name", rater)
        if code not in self.codes:
            raise UserError("item", code, "is not in this study", "reload the page")
        if rating is not None and (isinstance(rating, bool) or rating not in (1, 2, 3, 4, 5)):
            raise UserError("rating", rating, "is not 1 to 5", "use null for can't say")
        append(self.path, {"study": self.study.name, "rater": name, "code": code, "rating": rating, "when": _now()})


def line(what: str, value: object) -> str:
    """One line of text with something in it."""
    text = " ".join(value.split()) if isinstance(value, str) else ""
    if not text or len(text) > LONGEST[what] or not text.isprintable():
        raise UserError(
            what, str(value)[:40], f"is no line of 1 to {LONGEST[what]} characters", "shorten it or fill it in"
        )
    return text


def _rows(path: Path) -> list[dict[str, Any]]:
    return read_jsonl(path) if path.is_file() else []


def _now() -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%S%z")
