"""People's answers about a run, written beside it to append-only JSONL files.

`labels_edited.jsonl` and `judgements.jsonl`: what people say of units (`saelab.report.people` reads them).
`ratings.jsonl`: `{"study", "rater", "code", "rating", "when"}` a line; rating 1 to 5, or null for "can't say"; a line
with `"undone": true` takes back the rater's last line that still stands.
"""

import fcntl
import json
import os
import time
import unicodedata
from collections.abc import Callable
from pathlib import Path
from typing import Any

from saelab.artifacts import read_jsonl
from saelab.errors import UserError
from saelab.report import people
from saelab.report.live.rating import Answer, Study
from saelab.report.reading import ReadBasis, Run
from saelab.text import visible

JOINERS = {0x200C: None, 0x200D: None}  # invisible, but they shape letters


def append(path: Path, row: dict[str, Any] | Callable[[], dict[str, Any]]) -> dict[str, Any]:
    """Add one line and return it: whole or not at all, whoever else writes.

    A callable `row` is called when nobody else can write any more, so that it may read what was written last. A last
    line that a kill cut off is removed first; one that lacks no more than its end (an editor's, say) gets it.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a+b") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        file.seek(0)
        lines = file.read().splitlines(keepends=True)
        last = lines[-1] if lines and not lines[-1].endswith(b"\n") else b""
        if _is_row(last):
            file.write(b"\n")
            file.flush()
        else:
            file.truncate(sum(map(len, lines)) - len(last))
        made = row() if callable(row) else row
        file.write(json.dumps(made, ensure_ascii=False).encode() + b"\n")
        file.flush()
        os.fsync(file.fileno())
    return made


def _is_row(line: bytes) -> bool:
    """Is it a whole row? Of one that was cut off, none of the beginnings is."""
    try:
        return isinstance(json.loads(line), dict)
    except (ValueError, RecursionError):  # no JSON, or a character that was cut in two
        return False


class Edits:
    """Labels that people put in place of a run's own; `labels.jsonl` stays unchanged."""

    def __init__(self, run: Run, folder: Path) -> None:
        self.run, self.path = run, folder / people.LABELS
        self.bases = {basis.name: basis for basis in run.bases}

    def current(self) -> dict[str, dict[int, dict[str, Any]]]:
        """basis -> unit -> `{"label", "was", "who", "when"}`; without units whose label is the run's own again."""
        found: dict[str, dict[int, dict[str, Any]]] = {}
        for row in (row for row in people.read(self.run.bases, self.path.parent) if "new" in row):
            basis = self.bases[row["basis"]]
            was = basis.labels[row["unit"]]["label"]
            edits = found.setdefault(basis.name, {})
            edits.pop(row["unit"], None)
            if row["new"] != was:
                edits[row["unit"]] = {"label": row["new"], "was": was, "who": row["who"], "when": row["when"]}
        return found

    def edit(self, basis: object, unit: object, label: object, who: object) -> dict[str, Any]:
        """Keep `label` (None: no label) for a unit and return the line written. Raises UserError for bad input."""
        known, number = _unit(self.bases, basis, unit)
        new, name = None if label is None else line("label", label), line("name", who)

        def row() -> dict[str, Any]:
            old = self.current().get(known.name, {}).get(number, known.labels[number])["label"]
            place = {"units": known.units.name, "basis": known.name, "unit": number}
            return place | {"old": old, "new": new, "who": name, "when": _now()}

        return append(self.path, row)


class Judgements:
    """Verdicts, stars, notes and collections that people give to units."""

    def __init__(self, run: Run, folder: Path) -> None:
        self.run, self.path = run, folder / people.JUDGEMENTS
        self.bases = {basis.name: basis for basis in run.bases}

    def said(self) -> list[dict[str, Any]]:
        """Every line on this run's units, edits of labels too, oldest first."""
        return people.read(self.run.bases, self.path.parent)

    def add(self, basis: object, unit: object, change: object, who: object) -> dict[str, Any]:
        """Keep a `change` (one or more of `verdict`, `star`, `note`, `collections`). Raises UserError for bad input."""
        known, number = _unit(self.bases, basis, unit)
        given = change if isinstance(change, dict) else {}
        fields = [key for key in people.FIELDS if key != "new"]
        if not given or not set(given) <= set(fields):
            raise UserError("change", shown(change), "says nothing that is kept", f"give any of {', '.join(fields)}")
        kept = {key: _given(key, value) for key, value in given.items()}
        place = {"units": known.units.name, "basis": known.name, "unit": number}
        return append(self.path, place | kept | {"who": line("name", who), "when": _now()})


def _given(key: str, value: Any) -> Any:
    """A field's value as it is kept. Raises UserError where it is none."""
    if key == "note" and value is not None:
        value = line("note", value)
    if key == "collections" and isinstance(value, list):
        value = list(dict.fromkeys(line("collection", name) for name in value))
    if not people.FIELDS[key](value):
        raise UserError(key, shown(value), "is no value that it can have", "load the page again")
    return value


def _unit(bases: dict[str, ReadBasis], basis: object, unit: object) -> tuple[ReadBasis, int]:
    known = bases.get(basis) if isinstance(basis, str) else None
    if known is None:
        raise UserError("basis", shown(basis), "is not in this run", f"use {', '.join(bases)}")
    if not people.is_place(unit, len(known.labels)):
        raise UserError("unit", shown(unit), f"is not a unit of {basis}", f"use 0 to {len(known.labels) - 1}")
    return known, unit


class Ratings:
    """Answers to one blind study."""

    def __init__(self, study: Study, folder: Path) -> None:
        self.study, self.path = study, folder / "ratings.jsonl"
        self.codes = {item.code for item in study.items}

    def answers(self) -> list[Answer]:
        """The last answer of each rater to each item of this study, in the order of their first answers."""
        rows = [row for own in self._standing().values() for row in own]
        last = {(row["rater"], row["code"]): row["rating"] for row in rows}
        return [Answer(rater, code, rating) for (rater, code), rating in last.items()]

    def add(self, rater: object, code: object, rating: object) -> None:
        """Keep one answer. Raises UserError for an item that is not in the study or no rating."""
        name = line("name", rater)
        if not isinstance(code, str) or code not in self.codes:
            raise UserError("item", shown(code), "is not in this study", "load the page again")
        if rating is not None and not _is_rating(rating):
            raise UserError("rating", shown(rating), "is not 1 to 5", "use null for can't say")
        row = {"study": self.study.name, "rater": name, "code": code, "rating": rating, "when": _now()}
        append(self.path, row)

    def undo(self, rater: object) -> str:
        """Take back the rater's last answer, so that the one before it counts, and return its item's code.

        Raises UserError where the rater has given none.
        """
        name = line("name", rater)

        def row() -> dict[str, Any]:
            given = self._standing().get(name)
            if not given:
                raise UserError("name", shown(name), "has no answer to take back", "rate something first")
            own = {"study": self.study.name, "rater": name, "code": given[-1]["code"], "rating": None}
            return own | {"undone": True, "when": _now()}

        code: str = append(self.path, row)["code"]
        return code

    def _standing(self) -> dict[str, list[dict[str, Any]]]:
        """Each rater's lines that were not taken back, oldest first."""
        found: dict[str, list[dict[str, Any]]] = {}
        for row in (row for row in _rows(self.path, {"study", "rater", "code", "rating"}) if self._is_own(row)):
            own = found.setdefault(row["rater"], [])
            if row.get("undone") is not True:
                own.append(row)
            elif own:
                own.pop()
        return found

    def _is_own(self, row: dict[str, Any]) -> bool:
        named = row["study"] == self.study.name and str(row["code"]) in self.codes and isinstance(row["rater"], str)
        return named and (row["rating"] is None or _is_rating(row["rating"]))


def shown(value: object) -> str:
    """A value from outside as it may stand in a message: short, one line, without what can't be written."""
    text = value if isinstance(value, str) else json.dumps(value, default=str)
    return "".join(c if c.isprintable() else "?" for c in text[:40])


def _is_rating(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 1 <= value <= 5


def line(what: str, value: object) -> str:
    """One line of text with something in it, in Unicode's composed form. Raises UserError for anything else."""
    given = " ".join(value.split()) if isinstance(value, str) else ""
    text = "" if any(unicodedata.category(c) in ("Cc", "Cs") for c in given) else visible(given)
    if not text or len(text) > people.LONGEST[what] or not text.translate(JOINERS).isprintable():
        wanted = f"expected a line of 1 to {people.LONGEST[what]} characters"
        raise UserError(what, shown(value), wanted, "shorten it or fill it in")
    return text


def _rows(path: Path, keys: set[str]) -> list[dict[str, Any]]:
    """The lines that have all of `keys`; anybody may have edited the file."""
    rows = read_jsonl(path) if path.is_file() else []
    return [row for row in rows if isinstance(row, dict) and keys <= set(row)]


def _now() -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%S%z")
