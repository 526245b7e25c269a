"""Pictures made to raise a unit, as its page shows them: below the photos, with what each is worth in words."""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from saelab.artifacts import digest, read_json, read_jsonl
from saelab.synthesise.summary import path_in_words

ROWS = "synthesised.jsonl"
SIDE, QUALITY = 256, 82  # of a picture in the report
PAPER = 0.12  # least opacity in the faded copy: a hint of what the unit never depended on

Made = dict[int, list[tuple[Path, dict[str, Any]]]]  # unit -> (folder, row)


def find_folders(root: Path, units: Mapping[str, Any]) -> list[Path]:
    """The folders with pictures of the units with this recipe, by any method."""
    recipes = sorted((root / "synthesised").glob("*/recipe.json"))
    own = [path.parent for path in recipes if read_json(path).get("units") == digest(units)]
    return [folder for folder in own if (folder / ROWS).is_file()]


def read(root: Path, units: Mapping[str, Any]) -> Made:
    """The rows of these folders by unit."""
    found: Made = {}
    for folder in find_folders(root, units):
        for row in read_jsonl(folder / ROWS):
            found.setdefault(row["unit"], []).append((folder, row))
    return found


def of_basis(made: Made, units: int, labels: str, number: int, out: Path) -> Iterator[list[dict[str, Any]]]:
    """Per unit of basis `number` its pictures, of which small copies are written into the report's folder `out`.

    `labels`: the digest of the labels that its pages show.
    """
    for unit in range(units):
        yield [_shown(folder, row, row["labels"] == labels, number, out) for folder, row in made.get(unit, [])]


def tell(row: Mapping[str, Any], current: bool) -> list[str]:
    """What a picture is worth, a sentence a number; numbers that it lacks are passed over.

    `current`: is what the row says of the label about the label that is shown?
    """
    said = [_reach(row)]
    way = path_in_words(row["path_share"])
    if way is not None:
        how = {"like its photos": "as its photos go", "apart from its photos": "by another way than its photos"}
        share = f"{100 * max(row['path_share'], 0):.0f} %"
        words = how.get(way, "partly as its photos go")
        said.append(f"On its way to the unit it goes {words}: {share} of what they have in common.")
    who = "An encoder that has no part in the network" if row["independent"] else "The network’s own encoder"
    place = row["retrieval"]
    if place is not None:
        said.append(
            f"{who} takes it for this unit’s: its photos are nearer than those of {100 * place['percentile']:.0f} % of "
            f"the others (rank {place['rank']} of {place['of']}; chance 50 %)."
        )
    if current and row["label_agrees"] is not None:
        said.append(
            f"The label fits it better than {100 * row['label_agrees']:.0f} % of other units’ labels do (chance 50 %)."
        )
    return said


def _reach(row: Mapping[str, Any]) -> str:
    if not row["reached"]:
        return "Not reached: it fires the unit less than half of its photos do, so it is not what the unit looks for."
    if row["ratio"] is None:
        return "It fires the unit, which no photo does."
    if row["ratio"] >= 1:
        return f"It fires the unit {row['ratio']:.2f} times as strongly as the strongest photo."
    return f"It fires the unit at {100 * row['ratio']:.0f} % of the strongest photo."


def _shown(folder: Path, row: Mapping[str, Any], current: bool, number: int, out: Path) -> dict[str, Any]:
    stem = f"synthesised/{number}/{folder.name.rsplit('-', 1)[-1]}-{Path(row['file']).stem}"
    (out / stem).parent.mkdir(parents=True, exist_ok=True)
    with Image.open(folder / row["file"]) as picture, Image.open(folder / row["where"]) as where:
        whole, opacity = picture.convert("RGB"), np.asarray(where.convert("L"), dtype=np.float32) / 255
    faded = whole.copy()
    faded.putalpha(Image.fromarray((255 * (PAPER + (1 - PAPER) * opacity)).round().astype(np.uint8)))
    for name, made in ((f"{stem}.webp", whole), (f"{stem}-faded.webp", faded)):
        if not (out / name).exists():
            made.thumbnail((SIDE, SIDE), Image.Resampling.LANCZOS)
            made.save(out / name, "WEBP", quality=QUALITY)
    keep = ("method", "reached", "photo")
    return {key: row[key] for key in keep} | {"place": stem, "said": tell(row, current)}
