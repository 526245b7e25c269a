"""Pictures of a unit's label, generated or from a folder, with what the unit does on them (`saelab cosy`)."""

import shutil
from collections.abc import Iterator, Mapping
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


def of_basis(root: Path, basis: ReadBasis, out: Path) -> Iterator[dict[str, Any] | None]:
    """Per unit the pictures of its label, or None; they are copied into the report's folder `out`."""
    folder = find_measured(root, basis.recipes["labels"])
    rows = {} if folder is None else {row["unit"]: row for row in read_jsonl(folder / "cosy.jsonl")}
    facts = {} if folder is None else read_json(folder / "cosy.json")
    for given in basis.labels:
        row = rows.get(given["unit"])
        if folder is None or not row or row["label"] != given["label"] or not (row["strip"] or row["black"]):
            yield None
            continue
        shown = [[_copy(folder, i, out), value] for i, value in row["strip"]]
        numbers = {name: row[name] for name in NUMBERS}
        yield numbers | {"source": facts["source"], "by": facts.get("by"), "shown": shown}


def _copy(folder: Path, number: int, out: Path) -> str:
    place = f"label_pictures/{folder.name.rpartition('-')[2]}/{number}.jpg"
    (out / place).parent.mkdir(parents=True, exist_ok=True)
    if not (out / place).exists():
        shutil.copy(folder / "pictures" / f"{number}.jpg", out / place)
    return place
