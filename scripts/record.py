"""The record of a run, runs/<name>.json: what was made and where it lies, for reports and viewers."""

import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from command import plain

from saelab import __version__
from saelab.artifacts import Artifact, read_json, write_json

if TYPE_CHECKING:
    from stages import Run


def write(run: "Run") -> Path:
    """runs/<name>.json: where everything lies, relative to that file."""
    path = run.root / f"{run.cfg.name}.json"

    def place(artifact: Artifact | None) -> str | None:
        return None if artifact is None else str(artifact.path.relative_to(run.root))

    comparisons = run.comparisons
    made = [a for basis in run.evaluated for a in basis.made()]
    bases = [
        {"name": b.name, "group": b.group, "basis": b.kind, "layer": b.layer, "seed": b.seed, "control": b.control}
        | {
            "units": place(b.units),
            "labels": place(b.labels),
            "evaluation": place(b.evaluation),
            "sae": place(b.sae),
        }
        for b in run.evaluated
    ]
    record: dict[str, Any] = {
        "name": run.cfg.name,
        "version": __version__,
        "created": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
        "config": plain(run.cfg),
        "images": place(run.images_artifact),
        "host": run.host.name,
        "encoder": run.encoder.name,
        "bases": bases,
        "comparison": place(next(iter(comparisons.values()))),
        "comparisons": {layer: place(artifact) for layer, artifact in comparisons.items()},
        "timings": {stage: round(seconds, 1) for stage, seconds in run.timings.items()},
        "reused": sorted({str(a.path.relative_to(run.root)) for a in made if a.reused}),
        "notes": run.notes,
    }
    keep = path.is_file() and len(record["reused"]) == len({a.path for a in made}) and _same(read_json(path), record)
    if not keep:  # a run that only reused has nothing to add to the record of the run that made it
        write_json(path, record)
    return path


def _same(before: Any, now: dict[str, Any]) -> bool:
    """Do two records name the same things, whenever and however fast they were made?"""
    drop = ("created", "timings", "reused")
    return isinstance(before, dict) and all(before.get(k) == now[k] for k in now if k not in drop)
