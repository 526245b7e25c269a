"""Where pictures come from when they lie on this disk: a folder of any depth, or a table (CSV, TSV, JSONL) of files."""

import csv
import json
import os
import re
import unicodedata
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from saelab.errors import UserError
from saelab.images.build import Entry, Listing
from saelab.images.decode import SUFFIXES, Unreadable, regular
from saelab.text import visible

CAPTION = 1 << 16  # bytes of a caption's file that are read

_TRUE, _FALSE = {"1", "true", "yes", "y", "present"}, {"", "0", "false", "no", "n", "absent", "nan", "none"}


def folder(
    root: Path | str, masks: str | None = None, mask_names: Sequence[str] = (), name: str | None = None
) -> Listing:
    """All pictures below `root`, at any depth; links are followed, links in circles once.

    Classes: the names of the folders a picture lies in, as far as not all pictures share them (ImageFolder's classes,
    and their parents). Caption: the first line of a `.txt` file of the same stem. `masks`: a folder (below root) of
    label images with the pictures' stems; `mask_names` names their pixel values 0, 1, ...
    """
    base = _folder(root)
    files, skipped = walk(base)
    found = LabelImages(base, masks)
    pictures = [f for f in files if not masks or not f.startswith(masks.strip("/") + "/")]
    parts = [f.split("/")[:-1] for f in pictures]
    shared = set.intersection(*map(set, parts)) if parts else set()
    entries = []
    for file, own in zip(pictures, parts, strict=True):
        classes = tuple(dict.fromkeys(p for p in own if p not in shared))
        entries.append(Entry(file, _caption(base / file), classes, found(file)))
    if masks and not any(e.mask for e in entries):
        raise UserError("images.masks", masks, "no label image there has the stem of a picture", "name them alike")
    return Listing(name or base.resolve().name, base, entries, skipped, mask_names=tuple(mask_names))


def table(
    table: Path | str,
    root: Path | str | None = None,
    file: str = "file",
    caption: str = "caption",
    classes: str = "classes",
    concepts: Sequence[str] = (),
    separator: str = ",",
    between: str = r"[;|]",
    group: str | None = None,
    masks: str | None = None,
    mask_names: Sequence[str] = (),
    name: str | None = None,
) -> Listing:
    """The pictures that a CSV (with a header) or JSONL file names, with what it says about them.

    root: the folder that file names are relative to (default: the table's own). file, caption, classes: names of
    columns; the last two may be absent. A file name may lack its suffix or its folders if it is unique without.
    concepts: columns that each tell a concept; where a column holds only truth values (1, true, yes, present and their
    opposites) a true one gives the column's name, elsewhere each value gives "column: value". between: regular
    expression between several values in one cell (JSONL: lists as well). separator: of a CSV; more than one character
    is a regular expression. group: a column that names the series a picture belongs to (a patient, a burst): pictures
    of one series share a split and are drawn together wherever chance is asked.
    Twelve parameters: they are the settings in conf/images/csv.yaml, by their names.
    """
    path = Path(table)
    rows = list(_rows(path, separator))
    base = _folder(root if root is not None else path.parent)
    wanted = [file, *concepts, *([group] if group is not None else [])]
    there = list(dict.fromkeys(c for row in rows for c in row))
    missing = [c for c in wanted if c not in there]
    if missing:
        raise UserError(
            "images.file" if file in missing else "images.group" if group in missing else "images.concepts",
            missing[0],
            f"no such column in {path}",
            f"it has {', '.join(there)}",
        )
    find = Finder(base)
    found = LabelImages(base, masks)
    boolean = {c for c in concepts if all(_word(row.get(c)) in _TRUE | _FALSE for row in rows)}
    entries, skipped, seen = [], [], set()
    for row in rows:
        given = str(row.get(file) or "").strip()
        if not given:
            continue  # a line of remarks
        where = find(given)
        if where is None or where in seen:
            missing_why = "not on disk" if find.inside(given) else "outside images.root: give a root above it"
            reason = "named twice in the table" if where else f"named in {path.name}, {missing_why}"
            skipped.append((_show(given), reason))
            continue
        seen.add(where)
        own = [*_cell(row.get(classes), between)]
        for concept in concepts:
            own += _read_concept(concept, row.get(concept), between, concept in boolean)
        series = text(row.get(group)) if group is not None else None
        entries.append(Entry(where, text(row.get(caption)), tuple(dict.fromkeys(own)), found(where), group=series))
    return Listing(name or path.stem, base, entries, skipped, mask_names=tuple(mask_names))


def walk(base: Path) -> tuple[list[str], list[tuple[str, str]]]:
    """Picture files below `base` (relative, sorted) and what can't be read; hidden files and folders are left out."""
    files: list[str] = []
    skipped: list[tuple[str, str]] = []
    visited: set[tuple[int, int]] = set()

    def failed(error: OSError) -> None:
        skipped.append((_show(os.path.relpath(error.filename, base)), error.strerror or str(error)))

    for here, folders, names in os.walk(base, followlinks=True, onerror=failed):
        state = Path(here).stat()
        if (state.st_dev, state.st_ino) in visited:
            folders.clear()
            continue
        visited.add((state.st_dev, state.st_ino))
        folders[:] = sorted(f for f in folders if not f.startswith("."))
        relative = Path(here).relative_to(base).as_posix()
        for n in sorted(names):
            if n.startswith(".") or Path(n).suffix.lower() not in SUFFIXES:
                continue
            file = n if relative == "." else f"{relative}/{n}"
            if _show(file) != file:
                skipped.append((_show(file), "its name is not UTF-8; rename it"))
            else:
                files.append(file)
    return sorted(files), skipped


class LabelImages:
    """Finds a picture's label image: of the same stem, and where several have it, on the same path."""

    def __init__(self, base: Path, masks: str | None) -> None:
        self.masks = (masks or "").strip("/")
        self.by_stem: dict[str, list[str]] = {}
        if masks is None:
            return
        if not (base / masks).is_dir():
            raise UserError("images.masks", masks, f"no such folder below {base}", "give a folder below images.root")
        for file in walk(base / masks)[0]:
            self.by_stem.setdefault(unicodedata.normalize("NFC", Path(file).stem), []).append(file)

    def __call__(self, picture: str) -> str | None:
        found = self.by_stem.get(unicodedata.normalize("NFC", Path(picture).stem), [])
        if len(found) > 1:
            path = "/" + str(Path(picture).with_suffix(""))
            found = [f for f in found if path.endswith("/" + str(Path(f).with_suffix("")))]
        return f"{self.masks}/{found[0]}" if len(found) == 1 else None


class Finder:
    """Finds the file that a table means: by its relative name, else by its unique name or stem anywhere below.

    Only files below the folder: a table from elsewhere may not point at others. Names match in either Unicode form.
    """

    def __init__(self, base: Path) -> None:
        self.base = base
        self.by_name: dict[str, list[str]] | None = None

    def __call__(self, given: str) -> str | None:
        if not given:
            return None
        inside = self.inside(given)
        if inside is not None and (self.base / inside).is_file():
            return inside
        if self.by_name is None:
            self.by_name = self._index()
        found = self.by_name.get(unicodedata.normalize("NFC", given), [])
        return found[0] if len(found) == 1 else None

    def inside(self, given: str) -> str | None:
        """The name relative to the folder; None where it leads out of it."""
        if "\0" in given:
            return None
        relative = Path(os.path.relpath(self.base / given, self.base)).as_posix()
        return None if relative == ".." or relative.startswith("../") else relative

    def _index(self) -> dict[str, list[str]]:
        index: dict[str, list[str]] = {}
        for file in walk(self.base)[0]:
            whole = Path(file)
            for key in {file, whole.name, whole.stem, whole.with_suffix("").as_posix()}:
                index.setdefault(unicodedata.normalize("NFC", key), []).append(file)
        return index


def _folder(root: Path | str) -> Path:
    base = Path(root).expanduser()
    if not base.is_dir():
        raise UserError("images.root", root, "no such folder", "give a folder with pictures")
    return base


def _show(name: str) -> str:
    return name.encode("utf-8", "backslashreplace").decode()


def _caption(picture: Path) -> str | None:
    try:
        with regular(picture.with_suffix(".txt")) as file:
            text = file.read(CAPTION).decode("utf-8-sig", "replace")
    except (OSError, Unreadable):
        return None
    return next((line.strip() for line in text.splitlines() if line.strip()), None)


def _rows(path: Path, separator: str) -> Iterator[dict[str, Any]]:
    if not path.is_file():
        raise UserError("images.table", path, "no such file", "give a CSV with a header, or a JSONL file")
    if path.suffix.lower() in (".jsonl", ".ndjson"):
        yield from _json_rows(path)
        return
    import pandas as pd

    if path.suffix.lower() == ".tsv" and separator == ",":
        separator = "\t"
    engine: Any = "python" if len(separator) > 1 else "c"
    try:
        frame = pd.read_csv(
            path, sep=separator, engine=engine, dtype=str, keep_default_na=False, encoding_errors="replace"
        )
    except (ValueError, OverflowError, csv.Error, re.error) as error:  # pandas' own are ValueErrors
        raise UserError(
            "images.table", path, f"can't be read as CSV ({' '.join(str(error).split())})", "check images.separator"
        ) from None
    frame = frame.fillna("")  # lines with too few cells
    frame.columns = [str(c).strip() for c in frame.columns]
    yield from frame.to_dict("records")


def _json_rows(path: Path) -> Iterator[dict[str, Any]]:
    for number, line in enumerate(path.read_text(encoding="utf-8-sig", errors="replace").split("\n"), 1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise UserError("images.table", path, f"line {number} is not JSON ({error})", "one object a line") from None
        if not isinstance(row, dict):
            raise UserError("images.table", path, f"line {number} is not an object", "one object a line")
        yield row


def text(value: Any) -> str | None:
    """A caption as it is kept: one spelling, nothing invisible; None where there is none."""
    return (visible(str(value)).strip() or None) if value is not None else None


def _cell(value: Any, between: str) -> Iterable[str]:
    """The values in one cell, without empty ones."""
    if value is None:
        return []
    parts = value if isinstance(value, list) else re.split(between, str(value))
    return [t for t in (str(p).strip() for p in parts) if t]


def _word(value: Any) -> str:
    return "" if value is None else str(value).strip().lower()


def _read_concept(concept: str, value: Any, between: str, boolean: bool) -> list[str]:
    """The classes that one cell of a concept column gives."""
    if boolean:
        return [concept] if _word(value) in _TRUE else []
    return [f"{concept}: {v}" for v in _cell(value, between)]
