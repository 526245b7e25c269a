"""Checkpoints: everything a trainer is, in one file that is whole or is not there, and damaged files are passed over.

A file `step-00001000.safetensors` holds the tensors of one or several trainers and, in its metadata, the step, the
recipe's digest and the tensors' SHA-256.
"""

import hashlib
import json
import logging
import shutil
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from saelab.artifacts import atomic
from saelab.errors import UserError

log = logging.getLogger("saelab")


def write(folder: Path, step: int, state: dict[str, Tensor], recipe: str, keep: int) -> None:
    """Write the checkpoint of `step` atomically, then delete all but the `keep` newest."""
    folder.mkdir(parents=True, exist_ok=True)
    state = {name: tensor.detach().cpu().contiguous() for name, tensor in state.items()}
    metadata = {"step": json.dumps(step), "recipe": recipe, "sha256": checksum(state)}
    with atomic(folder / f"step-{step:08d}.safetensors") as temporary:
        save_file(state, temporary, metadata=metadata)
    for old in _newest_first(folder)[keep:]:
        old.unlink(missing_ok=True)


def latest(folder: Path, recipe: str) -> tuple[int, dict[str, Tensor]] | None:
    """Step and state of the newest whole checkpoint; None where there is none.

    A damaged file is passed over with a warning. Raises UserError for a checkpoint of another recipe.
    """
    for file in _newest_first(folder):
        try:
            with safe_open(file, framework="pt") as opened:
                metadata = opened.metadata() or {}
                state = {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118
        except (SafetensorError, OSError) as error:
            log.warning("checkpoint %s is damaged (%s): falling back to the one before", file, error)
            continue
        if metadata.get("sha256") != checksum(state):
            log.warning("checkpoint %s is damaged (wrong checksum): falling back to the one before", file)
            continue
        if metadata.get("recipe") != recipe:
            remedy = "give another folder, or delete its checkpoints to start over"
            raise UserError("checkpoint", file, "belongs to another recipe (config, data or seed differ)", remedy)
        return json.loads(metadata["step"]), state
    return None


def clear(folder: Path) -> None:
    """Delete all checkpoints: the finished SAE has taken their place."""
    shutil.rmtree(folder, ignore_errors=True)


def _newest_first(folder: Path) -> list[Path]:
    return sorted(folder.glob("step-*.safetensors"), reverse=True)


def checksum(state: dict[str, Tensor]) -> str:
    """SHA-256 (64 hex digits) of tensors: their names, types, shapes and bytes."""
    digest = hashlib.sha256()
    for name in sorted(state):
        digest.update(f"{name} {state[name].dtype} {tuple(state[name].shape)}".encode())
        digest.update(state[name].detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()
