"""Pictures of a unit's label, generated or from a folder, with what the unit does on them (`saelab cosy`)."""

import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from saelab.artifacts import digest, read_json, read_jsonl
from saelab.report.reading import ReadBasis

NUMBERS = ("auc_half", "mann_whitney_p", "images", "controls", "black")


def find_measured(root: Path, labels: Mapping[str, Any]) -> Path | None:
    """The newest measurement of these labels on pictures that are not the test split's; None: there is none."""
    found = []
    for path in (root / "cosy").glob("*/recipe.json"):
        recipe = read_json(path)
        fits = recipe.get("labels") == digest(labels) and recipe.get("scorer") == "final" and recipe.get("pictures")
        if fits and (path.parent / "complete.json").is_file() and (path.parent / "pictures").is_dir():
            found.append(path.parent)
    return max(found, key=lambda folder: ((folder / "complete.json").stat().st_mtime, folder.name), default=None)


def add(root: Path, bases: Sequence[ReadBasis], made: Sequence[list[dict[str, Any]]], out: Path) -> None:
    """Give each record its `label_pictures`, or None, and copy the pictures into the report's folder."""
    for basis, records in zip(bases, made, strict=True):
        folder = find_measured(root, basis.recipes["labels"])
        rows = {} if folder is None else {row["unit"]: row for row in read_jsonl(folder / "cosy.jsonl")}
        facts = {} if folder is None else read_json(folder / "cosy.json")
        for record in records:
            row = rows.get(record["unit"])
            record["label_pictures"] = None
            if folder is not None and row and row["label"] == record["label"] and (row["strip"] or row["black"]):
                shown = [[_copy(folder, i, out), value] for i, value in row["strip"]]
                numbers = {name: row[name] for name in NUMBERS}
                record["label_pictures"] = numbers | {"source": facts["source"], "by": facts.get("by"), "shown": shown}


def _copy(folder: Path, number: int, out: Path) -> str:
    place = f"label_pictures/{folder.name.rpartition('-')[2]}/{number}.jpg"
    (out / place).parent.mkdir(parents=True, exist_ok=True)
    if not (out / place).exists():
        shutil.copy(folder / "pictures" / f"{number}.jpg", out / place)
    return place
