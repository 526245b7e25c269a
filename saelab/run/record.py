"""The record of a run, <root>/<name>.json: what was made and where it lies, for reports, viewers and later calls."""

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from saelab import __version__
from saelab.artifacts import Artifact, plain, read_json, write_json
from saelab.errors import UserError
from saelab.run.basis import RANDOM_GROUP, Basis
from saelab.run.config import RunConfig


@dataclass(frozen=True)
class Outcome:
    """What a finished run made."""

    config: dict[str, Any]  # as RunConfig.record gives it, with what was decided on the way
    images: Artifact
    host: str  # names, as a person would cite them
    encoder: str
    bases: Sequence[Basis]
    comparisons: Mapping[str, Artifact]  # by layer
    timings: Mapping[str, float]  # seconds by stage
    notes: Sequence[str]  # what a reader of the report should know

    @property
    def artifacts(self) -> list[Artifact]:
        """Every basis' artifacts."""
        return [artifact for basis in self.bases for artifact in basis.artifacts]


def write(outcome: Outcome, root: Path, name: str) -> Path:
    """Write <root>/<name>.json, with paths relative to it. A run that only reused keeps the record of its maker."""
    path = root / f"{name}.json"
    record = plain(_record(outcome, root, name))
    made = {artifact.path for artifact in outcome.artifacts}
    if not (path.is_file() and len(record["reused"]) == len(made) and _same(read_json(path), record)):
        write_json(path, record)
    return path


def renew(outcome: Outcome, root: Path, name: str) -> Path:
    """`write`, for a run without effects: a record of the same comparisons with effects stays as it is."""
    path = root / f"{name}.json"
    before = read_json(path) if path.is_file() else None
    return path if _knows_more(before, outcome.comparisons, root) else write(outcome, root, name)


def add_effects(path: Path, outcome: Outcome, name: str) -> None:
    """Enter what units do, and the comparison that knows it, into the record of a finished run; the rest stays."""
    facts, now = read_json(path), plain(_record(outcome, path.parent, name))
    places = {(b["layer"], b["name"]): b.get("effects") for b in now["bases"]}
    for basis in facts["bases"]:
        place = places.get((basis["layer"], basis["name"]))
        basis |= {} if place is None else {"effects": place}
    facts["config"]["effects"] = now["config"]["effects"]
    facts |= {"comparison": now["comparison"], "comparisons": now["comparisons"]}
    write_json(path, facts)


def read_config(path: Path) -> RunConfig:
    """The config that made a run, from its record; `root` is where the record lies now.

    Raises UserError where there is no record, with the command that makes one.
    """
    if path.is_dir() or not path.is_file():
        what = "is a folder" if path.is_dir() else "is not there"
        raise UserError(
            "run", path, what, "give the .json of a finished run; `saelab quickstart` makes runs/quickstart.json"
        )
    facts = read_json(path)
    if not isinstance(facts, dict) or not isinstance(facts.get("config"), dict):
        raise UserError("run", path, "holds no record of a run", "`saelab quickstart` makes runs/quickstart.json")
    known = set(RunConfig.__dataclass_fields__)
    return RunConfig.of({k: v for k, v in facts["config"].items() if k in known} | {"root": str(path.parent)})


def _record(outcome: Outcome, root: Path, name: str) -> dict[str, Any]:
    def place(artifact: Artifact | None) -> str | None:
        return None if artifact is None else str(artifact.path.relative_to(root))

    bases = [
        {"name": b.name, "group": b.group, "basis": b.kind, "layer": b.layer, "seed": b.seed, "control": b.control}
        | {
            "units": place(b.units),
            "labels": place(b.labels),
            "evaluation": place(b.evaluation),
            "sae": place(b.sae),
            "quality": place(b.quality),
        }
        | ({} if b.effects is None else {"effects": str(b.effects.relative_to(root))})
        | ({"random_host": True} if b.group == RANDOM_GROUP else {})
        for b in outcome.bases
    ]
    return {
        "name": name,
        "version": __version__,
        "created": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
        "config": outcome.config,
        "images": place(outcome.images),
        "host": outcome.host,
        "encoder": outcome.encoder,
        "bases": bases,
        "comparison": place(next(iter(outcome.comparisons.values()), None)),
        "comparisons": {layer: place(artifact) for layer, artifact in outcome.comparisons.items()},
        "timings": {stage: round(seconds, 1) for stage, seconds in outcome.timings.items()},
        "reused": sorted({str(a.path.relative_to(root)) for a in outcome.artifacts if a.reused}),
        "notes": list(outcome.notes),
    }


def _same(before: Any, now: dict[str, Any]) -> bool:
    """Do two records name the same things, whenever and however fast they were made?"""
    drop = ("created", "timings", "reused")
    return isinstance(before, dict) and all(before.get(k) == now[k] for k in now if k not in drop)


def _knows_more(before: Any, compared: Mapping[str, Artifact], root: Path) -> bool:
    """Were all comparisons that a record names made from these, with effects added?"""
    places = before.get("comparisons") if isinstance(before, dict) else None
    if not places or list(places) != list(compared):
        return False
    digests = [artifact.digest for artifact in compared.values()]
    recipes = [root / place / "recipe.json" for place in places.values()]
    return all(path.is_file() and read_json(path).get("comparisons") == digests for path in recipes)
