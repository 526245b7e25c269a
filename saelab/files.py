"""Files as this package writes them: JSON, JSON lines and CSV, atomically; digests of values and of files."""

import csv
import dataclasses
import fcntl
import hashlib
import io
import json
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from saelab.errors import UserError
from saelab.settings import nearest

FORMULA = ("=", "+", "-", "@", "\t", "\r", "\uff1d", "\uff0b", "\uff0d", "\uff20")  # what spreadsheets may execute


ADDED = "added"  # key in the metadata of a dataclass field; see `added`


def added(default: Any) -> Any:
    """A dataclass field that recipes leave out at its default, so that those from before it existed stay the same."""
    return dataclasses.field(default=default, metadata={ADDED: True})


DEVICES = {"con", "prn", "aux", "nul"} | {f"{port}{i}" for port in ("com", "lpt") for i in range(10)}  # of Windows


def folder_name(name: str, longest: int = 60) -> str:
    """`name` as one that every file system takes for a folder: letters and digits of any script, `-`, `_` and dots.

    Never empty, hidden, longer than `longest` characters, a device of Windows, or with a dot at its end.
    """
    safe = "".join(c if c.isalnum() or c in "-_." else "_" for c in name).strip("._")[:longest].rstrip(".")
    stem, dot, rest = safe.partition(".")
    return f"{stem}_{dot}{rest}" if stem.casefold() in DEVICES else safe or "unnamed"


def folder_names(names: Iterable[str]) -> list[str]:
    """The same of several names, no two alike, not even where a file system takes `A` for `a`."""
    taken: dict[str, str] = {}
    for name in names:
        base = own = folder_name(name)
        count = 2
        while own.casefold() in taken:
            own, count = f"{base}-{count}", count + 1
        taken[own.casefold()] = own
    return list(taken.values())


def plain(value: Any) -> Any:
    """`value` as JSON's own types: dataclasses and mappings to dicts, sequences to lists, paths to strings.

    Fields made by `added` are left out at their default. Raises TypeError for anything whose text would not be the same
    in the next process (an object, a tensor).
    """
    if value is None or isinstance(value, bool | int | float | str):  # first: most values are such
        return value
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        pairs = [(field, getattr(value, field.name)) for field in dataclasses.fields(value)]
        return {f.name: plain(own) for f, own in pairs if not (ADDED in f.metadata and own == f.default)}
    if isinstance(value, dict):
        return {str(k): plain(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [plain(v) for v in value]
    if isinstance(value, Path):
        return str(value)
    raise TypeError(f"a recipe can't hold a {type(value).__name__}: {value!r}")


def digest(recipe: Any) -> str:
    """SHA-256 (64 hex digits) of the recipe's canonical JSON; equal recipes give equal digests in every process."""
    text = json.dumps(plain(recipe), sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    return hashlib.sha256(text.encode()).hexdigest()


def file_digest(path: Path) -> str:
    """SHA-256 (64 hex digits) of a file's bytes."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def write_json(path: Path, value: Any) -> None:
    """Write `value` as JSON, atomically: the file holds either the old text or all of the new."""
    with atomic(path) as temporary:
        temporary.write_text(json.dumps(plain(value), indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


def read_json(path: Path) -> Any:
    """Read a JSON file. Raises UserError (with the file's name) where it is missing or not JSON."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UserError("file", path, "missing", "run the stage that makes it again") from None
    except (ValueError, RecursionError, OSError) as error:  # cut off, no text, a number of 5000 digits, nested too deep
        raise UserError("file", path, f"not JSON ({error})", "delete its folder to have it made again") from None


def read_named(setting: str, path: Path, what: str, remedy: str) -> dict[str, Any]:
    """The settings or facts in a JSON file that a person names: a mistake is in its name, not in a stage's folder.

    Raises UserError for what is no file, and `setting=path: what` for one that holds no JSON object.
    """
    if not path.is_file():
        raise UserError(setting, path, "is a folder" if path.is_dir() else "is not there", remedy)
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UserError(setting, path, f"can't be read ({error.strerror})", remedy) from None
    except (ValueError, RecursionError):
        found = None
    if not isinstance(found, dict):
        raise UserError(setting, path, what, remedy)
    return found


def check_folder(setting: str, path: Path, remedy: str = "give a folder that can be written to") -> None:
    """Raise UserError where a file stands in the place of a folder, or of one above it."""
    for place in (path, *path.parents):
        if place.is_file():
            raise UserError(setting, path, f"Not a directory: {place} is a file", remedy)


def write_jsonl(path: Path, rows: Iterable[Any]) -> None:
    """Write one JSON object a line, atomically. NaN and infinities become null (JSON has no word for them)."""
    with atomic(path) as temporary, temporary.open("w", encoding="utf-8") as file:
        file.writelines(_line(row) + "\n" for row in rows)


def read_jsonl(path: Path) -> list[Any]:
    """All whole lines of a JSONL file; a last line that a kill cut off is passed over. Missing file: UserError."""
    try:
        lines = path.read_bytes().splitlines(keepends=True)  # a text would also be cut at U+2028 within a string
    except FileNotFoundError:
        raise UserError("file", path, "missing", "run the stage that makes it again") from None
    rows = []
    for i, line in enumerate(lines):
        try:
            rows.append(json.loads(line))
        except (ValueError, RecursionError) as error:  # no JSON, or a character that was cut in two
            if i + 1 == len(lines) and not line.endswith(b"\n"):
                break
            raise UserError("file", path, f"line {i + 1} is not JSON ({error})", "delete its folder") from None
    return rows


class _Semicolons(csv.excel):
    """What spreadsheets write where the comma is the decimal mark."""

    delimiter = ";"


def read_csv(
    path: Path, setting: str, columns: Sequence[str], remedy: str
) -> list[tuple[int, dict[str | None, str | None]]]:
    """Rows of somebody's CSV (UTF-8; commas or semicolons) with the line on which each ends.

    A cell that a short line lacks is None. Raises UserError, of `setting` and with `remedy`, where the file is no such
    table or lacks one of the `columns`.
    """
    try:
        text = path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise UserError(setting, path, f"is not UTF-8 (byte {error.start})", "save it as UTF-8") from None
    except OSError as error:
        raise UserError(setting, path, f"unreadable ({error})", remedy) from None
    dialect = csv.excel if ";" not in text.partition("\n")[0] else _Semicolons
    reader = csv.DictReader(io.StringIO(text, newline=""), dialect=dialect)
    try:
        headings, rows = list(reader.fieldnames or ()), [(reader.line_num, row) for row in reader]
    except csv.Error as error:
        raise UserError(setting, path, f"can't be read as a table ({error})", remedy) from None
    for column in columns:
        if column not in headings:
            near = nearest(column, headings)
            raise UserError(setting, path, f"has no column {column}", f"{near}columns: {', '.join(columns)}")
    return rows


def write_csv(path: Path, rows: Iterable[Mapping[str, Any]], columns: Sequence[str] | None = None) -> None:
    """Write a table, atomically: a heading, then a line for each row; all CSVs of this package are written here.

    `columns`: the headings (default: the keys of all rows, in their order; then `rows` are walked through twice); what
    a row lacks and None are empty. Lists and mappings become JSON. A *text* that a spreadsheet would take for a formula
    (one that begins with `= + - @`, a tab or a line break) gets an apostrophe in front; numbers stay numbers.
    """
    names = list(dict.fromkeys(name for row in rows for name in row)) if columns is None else list(columns)
    with atomic(path) as temporary, temporary.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file)
        writer.writerow([_cell(name) for name in names])
        writer.writerows([_cell(row.get(name)) for name in names] for row in rows)


def _cell(value: Any) -> Any:
    if isinstance(value, list | tuple | dict):
        value = json.dumps(value, ensure_ascii=False)
    if not isinstance(value, str):
        return value
    text = value.encode("utf-8", "replace").decode()  # a lone surrogate has no bytes
    return f"'{text}" if text.startswith((*FORMULA, "\n")) else text


@contextmanager
def atomic(path: Path) -> Iterator[Path]:
    """A temporary file beside `path` that replaces it when the block ends well and is removed when it does not."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        yield temporary
        to_disk(temporary)
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


@contextmanager
def locked(path: Path) -> Iterator[None]:
    """Hold the lock of this file: others who want it, in this process or another, wait until the block ends."""
    with path.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)  # released by the system when the process ends, however it ends
        yield


def to_disk(path: Path) -> None:
    """Have the system write a file, or a folder's list of names, to disk before going on."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _line(row: Any) -> str:
    """The row as `plain` makes it, NaN and infinities as null. Keys must be strings or integers."""
    try:
        return json.dumps(row, ensure_ascii=False, allow_nan=False, default=plain)
    except (TypeError, ValueError):
        pass  # NaN, an infinity, or what `plain` refuses in words
    return json.dumps(_finite(plain(row)), ensure_ascii=False)


def _finite(value: Any) -> Any:
    if isinstance(value, float) and (value != value or value in (float("inf"), float("-inf"))):
        return None
    if isinstance(value, dict):
        return {k: _finite(v) for k, v in value.items()}
    return [_finite(v) for v in value] if isinstance(value, list) else value
