"""The class-units stage: how much every unit of a basis raises every class, and how typical each mining picture is.

Lies in <root>/class_units/<basis>-<hash>/: class_units.safetensors and class_units.json.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

from saelab import artifacts, units
from saelab.artifacts import Artifact, ensure, read_json
from saelab.effects import Head, HostAnswers
from saelab.effects.classes import ClassUnits, find_class_units, outputs_of
from saelab.run.basis import Basis
from saelab.run.stages.effects import Seen

CODE = 2  # version of this stage; part of every recipe
MOST = 4096  # mining pictures that are looked at, drawn by seed
SEED = 0
AT_ONCE = 64  # pictures whose classes are asked for at once
TENSORS, FACTS = "class_units.safetensors", "class_units.json"


def measure_classes(basis: Basis, seen: Seen, head: Callable[[], Head], named: str, root: Path) -> Artifact:
    """The `class_units` artifact of a basis, on pictures of `mine`. `head`: makes what is called `named`.

    Raises UserError where the host has no named outputs.
    """
    recipe = {
        "stage": "class_units",
        "code": CODE,
        "units": basis.units.digest,
        "cache": seen.store.digest,
        "host": seen.host.recipe,
        "images": seen.images.fingerprint,
        "head": named,
        "most": MOST,
    }

    def build(folder: Path) -> None:
        from safetensors.torch import save_file

        own = head()
        ids = _pictures(seen)
        answers = HostAnswers(seen.host, seen.store, seen.images, own)
        of, known = outputs_of([seen.images.classes[i] for i in ids], own.outputs, _predicted(answers, ids))
        project = units.Projection.load(basis.units.path, basis.sae_path)
        grid = seen.host.choice(basis.layer, seen.store.info["policy"]).grid if answers.whole else None
        writes = project.writes(seen.store.d_in)
        found = find_class_units(answers, ids, of, project, writes, len(own.outputs), grid)
        tensors = {"scores": found.scores, "strength": found.strength, "typicality": torch.from_numpy(found.typicality)}
        tensors |= {name: torch.from_numpy(np.asarray(getattr(found, name))) for name in ("outputs", "ids", "of")}
        save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, str(folder / TENSORS))
        classes = [[own.outputs.names[c], found.pictures(int(c))] for c in found.outputs]
        facts = {"classes": classes, "pictures": len(ids), "by_class": known, "by_host": len(ids) - known}
        artifacts.write_json(folder / FACTS, facts)

    return ensure(root, "class_units", basis.name, recipe, build)


def read_classes(folder: Path) -> tuple[ClassUnits, dict[str, Any]]:
    """The matrix with its pictures, and class_units.json."""
    from saelab.tensor_files import read_safetensors

    found, _ = read_safetensors(folder / TENSORS, "class_units")
    numbers = {name: found[name].numpy() for name in ("outputs", "ids", "of", "typicality")}
    return ClassUnits(scores=found["scores"], strength=found["strength"], **numbers), read_json(folder / FACTS)


def _pictures(seen: Seen) -> np.ndarray:
    ids = np.asarray(seen.images.ids("mine"))
    return ids if len(ids) <= MOST else np.sort(np.random.default_rng(SEED).choice(ids, MOST, replace=False))


def _predicted(answers: HostAnswers, ids: np.ndarray) -> np.ndarray:
    """What the host says that each picture shows."""
    parts = np.array_split(ids, max(1, -(-len(ids) // AT_ONCE)))
    return np.concatenate([answers.logits(p, answers.tokens(p)[None])[0].argmax(-1).numpy() for p in parts])
