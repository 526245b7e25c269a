"""What an outside program answers about units: JSON lines, or a CSV file, read as far as possible."""

import csv
import io
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from saelab.errors import UserError
from saelab.label.rerank import Candidate, order_by_information
from saelab.label.vlm.completion import amount
from saelab.label.vlm.text import one_line

LONGEST = 200  # characters of a label
TEXTS = ("description", "label", "summary")  # what CSV files and JSON lines call a single label


@dataclass(frozen=True)
class Answer:
    """About one unit."""

    unit: int
    labels: tuple[str, ...]  # best first; none: the program sees nothing in common
    raw: str  # the line, verbatim
    evidence: str | None = None
    confidence: float | None = None  # 0..1


class Unreadable(Exception):
    """A line that is no answer; its text says why, on one line."""


def read_line(line: str, weight: float) -> Answer:
    """The answer in a line of JSON. Raises Unreadable.

    {"unit": 3, "labels": ["cat", "kitten"]} or {"unit": 3, "description": "cat"}; with log-probabilities, by which
    labels are put in order: {"unit": 3, "candidates": [{"text": "cat", "log_p": -1.2, "log_prior": -7.0}]}.
    """
    try:
        row = json.loads(line)
    except (ValueError, RecursionError):
        raise Unreadable(f"is no JSON ({one_line(line, 60)!r})") from None
    if not isinstance(row, dict) or type(row.get("unit")) is not int:
        raise Unreadable(f"names no unit ({one_line(line, 60)!r})")
    evidence = row.get("evidence")
    confidence = amount(row.get("confidence"))
    return Answer(
        row["unit"],
        _labels(row, weight),
        line.strip(),
        one_line(evidence, 1000) if isinstance(evidence, str) else None,
        confidence if confidence is not None and confidence <= 1 else None,
    )


def read_file(path: Path, weight: float) -> Iterator[Answer | Unreadable]:
    """The answers in a file of JSON lines or in a CSV file with the columns `unit` and `description`, in its order.

    MILAN's own descriptions.csv is one. Yields Unreadable for lines that are no answers; a missing file yields nothing.
    """
    if not path.is_file():
        return
    text = path.read_text(encoding="utf-8-sig", errors="replace")
    lines = [line for line in text.split("\n") if line.strip()]
    if not any(line.lstrip().startswith("{") for line in lines):
        lines, broken = _rows(text)
        yield from broken
    for line in lines:
        try:
            yield read_line(line, weight)
        except Unreadable as error:
            yield error


def _rows(text: str) -> tuple[list[str], list[Unreadable]]:
    """A table's rows as lines of JSON, up to where it breaks, if it does."""
    found: list[str] = []
    try:
        for row in csv.DictReader(io.StringIO(text)):
            found.append(json.dumps(_cast(row)))
    except csv.Error as error:
        return found, [Unreadable(f"the table breaks after row {len(found)}: {error}")]
    return found, []


def _cast(row: dict[str | None, Any]) -> dict[str, Any]:
    unit = str(row.get("unit") or "").strip()
    named = {name: value for name, value in row.items() if name in TEXTS}
    return named | {"unit": int(unit) if unit.isascii() and unit.isdigit() and len(unit) < 10 else None}


def _labels(row: dict[str, Any], weight: float) -> tuple[str, ...]:
    if "candidates" in row:
        try:
            found = [Candidate(str(c["text"]), float(c["log_p"]), float(c["log_prior"])) for c in row["candidates"]]
            given: Any = [own.text for own in order_by_information(found, weight)]
        except (KeyError, TypeError, ValueError, OverflowError):
            raise Unreadable(f"unit {row['unit']}: candidates need text, log_p and log_prior") from None
        except UserError as error:
            raise Unreadable(f"unit {row['unit']}: {error}") from None
    else:
        given = row.get("labels", next((row[name] for name in TEXTS if name in row), None))
    given = [given] if isinstance(given, str) else given
    if not isinstance(given, list) or not all(isinstance(label, str) for label in given):
        raise Unreadable(f"unit {row['unit']}: names no labels")
    return tuple(dict.fromkeys(label for own in given if (label := one_line(own, LONGEST))))
