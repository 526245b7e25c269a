"""Files of labels: plain text, tables (CSV, TSV), JSON; the column that holds the labels is found, or asked for."""

import csv
import json
import logging
import re
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from saelab.errors import UserError
from saelab.text import fold

log = logging.getLogger("saelab")

HEADINGS = ("label", "concept", "name", "class name", "class", "category", "tag", "term", "word", "object")
DELIMITERS = (",", ";", "\t", "|")
LARGEST = 1 << 28  # bytes
_NUMBER = re.compile(r"[-+]?[\d.,]*\d(e[-+]?\d+)?|n\d{8}", re.IGNORECASE)  # numbers and WordNet ids are no labels
_REMEDY = "name it by its heading or its number from 1: file:PATH#COLUMN"


def read(place: str | Path) -> list[str]:
    """The labels of a file, `PATH` or `PATH#COLUMN`, in its order.

    Text (one a line), CSV and TSV (split at comma, semicolon, tab or bar, whichever the lines agree on), JSON (a list,
    or an object with the list under a heading, or numbers to labels), JSONL. UTF-8, or UTF-16 with a byte-order mark.
    Of several columns the one under a known heading (`label`, `concept`, `name` ...) is taken, else the only one that
    holds words. Raises UserError for a missing or unreadable file, no label, and where the column is in doubt.
    """
    path, column = Path(place), None
    if not _is_file(path) and "#" in str(place):
        before, _, column = str(place).rpartition("#")
        path = Path(before)
    text = _text(path)
    kind = path.suffix.lower()
    if kind in (".json", ".jsonl", ".ndjson"):
        found = _of_json(path, text, kind != ".json", column)
    else:
        rows = _rows(path, text, DELIMITERS if kind == ".csv" else ("\t",))
        found = _of_rows(path, rows, column)
    labels = [label.strip() for label in found if label.strip()]
    if not labels:
        raise UserError("vocabulary", f"file:{path}", "holds no label", "write one label a line")
    return labels


def _is_file(path: Path) -> bool:
    try:
        return path.expanduser().is_file()
    except (OSError, ValueError, RuntimeError):
        return False


def _text(path: Path) -> str:
    try:
        real = path.expanduser()
        if not real.exists():
            raise UserError("vocabulary", f"file:{path}", "there is no such file", "check the path")
        if not real.is_file() or real.stat().st_size > LARGEST:
            raise UserError("vocabulary", f"file:{path}", "can't be read (no file of labels)", "give a text file")
        data = real.read_bytes()
    except (OSError, ValueError, RuntimeError) as error:
        reason = getattr(error, "strerror", None) or error
        raise UserError("vocabulary", f"file:{path}", f"can't be read ({reason})", "give a text file") from None
    wide = data.startswith((b"\xff\xfe", b"\xfe\xff"))
    try:
        return data.decode("utf-16" if wide else "utf-8-sig")
    except UnicodeDecodeError as error:
        remedy = "save the file as UTF-8 (iconv -f ISO-8859-1 -t UTF-8 does it)"
        raise UserError("vocabulary", f"file:{path}", f"is not UTF-8 (byte {error.start})", remedy) from None


def _rows(path: Path, text: str, delimiters: Sequence[str]) -> list[list[str]]:
    """The cells of each line that isn't blank, split at the delimiter that most lines have equally often."""
    lines = re.split(r"\r\n|\n|\r", text)
    if delimiters == ("\t",) and "\t" not in text:
        return [[line] for line in lines if line.strip()]  # quotes mean nothing in a list
    best: tuple[float, list[list[str]]] | None = None
    for delimiter in delimiters:
        try:
            rows = [row for row in csv.reader(lines, delimiter=delimiter) if any(cell.strip() for cell in row)]
        except csv.Error as error:
            raise UserError("vocabulary", f"file:{path}", f"can't be read as a table ({error})") from None
        width, agreeing = Counter(map(len, rows)).most_common(1)[0] if rows else (0, 0)
        share = agreeing / len(rows) if width > 1 else 0.0
        if best is None or share > best[0]:
            best = share, rows
    assert best is not None
    return best[1]


def _of_rows(path: Path, rows: list[list[str]], column: str | None) -> list[str]:
    if not rows:
        return []
    width = max(map(len, rows))
    if width > 1 and len(rows) > 1 and Counter(map(len, rows))[1] * 2 > len(rows):
        width = 1  # a list, some of whose labels hold the delimiter
    first = [fold(cell).replace("_", " ").strip() for cell in rows[0]]
    named = [place for heading in HEADINGS for place, cell in enumerate(first) if cell in (heading, _plural(heading))]
    if column is not None:
        return _find_column(path, rows, first, named, column)
    if width == 1:
        return [row[0] for row in rows[bool(named) :]]
    cells = [[row[i] for row in rows[1:] if i < len(row)] for i in range(width)]
    wordy = [place for place in range(width) if _are_words(cells[place] or [rows[0][place]])]
    usable = [place for place in named if place in wordy]
    if usable:
        return _column(rows[1:], usable[0])
    if len(wordy) == 1:
        numeric = next((i for i in range(width) if i != wordy[0] and i < len(first) and cells[i]), None)
        heading = numeric is not None and not _NUMBER.fullmatch(rows[0][numeric].strip())
        log.info("vocabulary: %s: labels are taken from column %d", path, wordy[0] + 1)
        return _column(rows[heading:], wordy[0])
    shown = ", ".join(cell.strip()[:30] for cell in rows[0][:8])
    raise UserError("vocabulary", f"file:{path}", f"which of its columns holds the labels? ({shown})", _REMEDY)


def _find_column(path: Path, rows: list[list[str]], first: list[str], named: list[int], column: str) -> list[str]:
    wanted = fold(column).replace("_", " ").strip()
    if wanted in first:
        return _column(rows[1:], first.index(wanted))
    if wanted.isascii() and wanted.isdigit() and 1 <= int(wanted[:9]) <= max(map(len, rows)):
        return _column(rows[bool(named) :], int(wanted) - 1)
    shown = ", ".join(cell.strip()[:30] for cell in rows[0][:8])
    raise UserError("vocabulary", f"file:{path}#{column}", f"no such column; the first line is {shown}", _REMEDY)


def _column(rows: Iterable[Sequence[str]], place: int) -> list[str]:
    return [row[place] for row in rows if place < len(row)]


def _plural(heading: str) -> str:
    if heading.endswith("y"):
        return heading[:-1] + "ies"
    return heading + ("es" if heading.endswith("s") else "s")


def _are_words(cells: Sequence[str]) -> bool:
    """Whether most cells are words, rather than numbers, ids or nothing."""
    return 2 * sum(bool(cell.strip()) and not _NUMBER.fullmatch(cell.strip()) for cell in cells) > len(cells)


def _of_json(path: Path, text: str, by_line: bool, column: str | None) -> list[str]:
    try:
        value = [json.loads(line) for line in text.split("\n") if line.strip()] if by_line else json.loads(text)
    except (ValueError, RecursionError) as error:
        reason = "nested too deep" if isinstance(error, RecursionError) else error
        raise UserError("vocabulary", f"file:{path}", f"is not JSON ({reason})", "one list of labels") from None
    if isinstance(value, dict):
        lists = {fold(key): own for key, own in value.items() if isinstance(own, list)}
        names = [fold(column)] if column else [n for h in HEADINGS for n in (_plural(h), h)]
        value = next((lists[name] for name in names if name in lists), list(value.values()))
    if not isinstance(value, list):
        raise UserError("vocabulary", f"file:{path}", "holds no list of labels", "one list of labels")
    if value and all(isinstance(item, dict) for item in value):
        headings = list(dict.fromkeys(key for item in value for key in item))
        rows = [headings, *([_cell(item.get(key)) for key in headings] for item in value)]
        if len(headings) == 1 and column is None:
            return _column(rows[1:], 0)
        return _of_rows(path, rows, column) if headings else []
    if value and all(isinstance(item, list) for item in value):  # [["n01440764", "tench"], ...]
        return _of_rows(path, [[_cell(cell) for cell in item] for item in value if item], column)
    if not all(isinstance(item, str) for item in value):
        raise UserError("vocabulary", f"file:{path}", "holds values that are no text", "one list of labels")
    return value


def _cell(value: Any) -> str:
    return value if isinstance(value, str) else "" if isinstance(value, dict | list) or value is None else str(value)
