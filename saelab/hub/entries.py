"""The SAEs to share, and where the files lie that say what is known of each."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from saelab import settings
from saelab.errors import UserError
from saelab.files import folder_name
from saelab.report import reading


@dataclass(frozen=True)
class Entry:
    """One SAE. Folders are artifacts; None: not measured."""

    sae: Path  # the folder with sae.safetensors
    host: str
    layer: str
    name: str  # unique on its layer
    labels: Path | None = None
    evaluation: Path | None = None
    quality: Path | None = None
    effects: Path | None = None
    images: Path | None = None  # the image set that labels were mined and measured on
    encoder: str | None = None  # that judged labels
    place: str = ""  # its folder in the repository; "": host/layer/name

    def __post_init__(self) -> None:
        for name in ("sae", "labels", "evaluation", "quality", "effects", "images"):
            if getattr(self, name) is not None:
                object.__setattr__(self, name, Path(getattr(self, name)))  # a text will do
        if not self.place:
            object.__setattr__(self, "place", "/".join(slug(part) for part in (self.host, self.layer, self.name)))


def slug(name: str) -> str:
    """A name as part of a path that every file system and the hub take; never empty, never a dot file."""
    return folder_name(re.sub(r"[^A-Za-z0-9._-]+", "_", name).strip("._-") or "sae", 100)


def read_entries(run_json: Path | str, names: Sequence[str] | None = None) -> list[Entry]:
    """The SAEs of a finished run, all or those named, each in a folder of its own.

    Raises UserError for a run that is missing, damaged or without SAEs, and for a name that is not among them.
    """
    path = Path(run_json)
    record = reading.read_record(path)
    known = [basis for basis in record["bases"] if basis.get("sae")]
    if not known:
        raise UserError("run", path, "has no SAE", "train some: bases=[neuron,sae]")
    called = ((b["name"], b["basis"], b["layer"], f"{b['layer']} {b['name']}") for b in known)
    chosen = settings.choose("bases", names, list(zip(known, called)), "is no SAE of this run")
    host, images = record.get("host") or record["name"], reading.artifact(path, record["images"], "images")
    entries: list[Entry] = []
    for basis in chosen:
        entry = _entry(path, basis, host, record["encoder"], images)
        entries.append(_apart(entry, [other.place for other in entries]))
    return entries


def _entry(run: Path, basis: Mapping[str, Any], host: str, encoder: str, images: Path) -> Entry:
    """A basis of run.json, its artifacts checked."""

    def find(stage: str) -> Path | None:
        return reading.artifact(run, basis[stage], f"{stage} of {basis['name']}") if basis.get(stage) else None

    return Entry(
        reading.artifact(run, basis["sae"], f"sae of {basis['name']}"),
        host,
        basis["layer"],
        basis["name"],
        labels=find("labels"),
        evaluation=find("evaluation"),
        quality=find("quality"),
        effects=run.parent / basis["effects"] if basis.get("effects") else None,  # it grows, so it is no artifact
        images=images,
        encoder=encoder,
    )


def _apart(entry: Entry, taken: Sequence[str]) -> Entry:
    """The same entry in a folder that no other has: names may differ in signs that paths don't keep."""
    lower, place, count = [other.lower() for other in taken], entry.place, 2
    while place.lower() in lower:
        place, count = f"{entry.place}-{count}", count + 1
    return replace(entry, place=place)
