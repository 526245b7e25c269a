"""Checkpoints: everything a trainer is, in one file that is whole or is not there, and damaged files are passed over.

A file `step-00001000.safetensors` holds the tensors of a trainer and, in its metadata, the step, the recipe's digest
and the tensors' SHA-256. Where several processes hold the latents, each writes a part (parts.py).
"""

import json
import logging
import shutil
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from saelab.artifacts import atomic
from saelab.errors import UserError
from saelab.sae import parts
from saelab.sae.parts import Holding, checksum

log = logging.getLogger("saelab")


def write(
    folder: Path, step: int, state: dict[str, Tensor], recipe: str, keep: int, own: Holding | None = None
) -> None:
    """Write the checkpoint of `step` atomically, then delete all but the `keep` newest.

    `own`: what of the trainer `state` is, where several processes hold its latents; they write it in parts, together.
    """
    if own is not None and own.world.latents.size > 1:
        parts.write(folder, step, state, recipe, own)
        if own.world.latents.rank:
            return
    else:
        folder.mkdir(parents=True, exist_ok=True)
        state = {name: tensor.detach().cpu().contiguous() for name, tensor in state.items()}
        metadata = {"step": json.dumps(step), "recipe": recipe, "sha256": checksum(state)}
        with atomic(folder / f"step-{step:08d}.safetensors") as temporary:
            save_file(state, temporary, metadata=metadata)
    newest = _newest_first(folder)
    for old in newest[keep:]:
        old.unlink(missing_ok=True)
    parts.forget(folder, {_step_of(file) for file in newest[:keep] if file.suffix == ".json"})


def latest(
    folder: Path, recipe: str, own: Holding | None = None, before: str | None = None
) -> tuple[int, dict[str, Tensor]] | None:
    """Step and state of the newest whole checkpoint; None where there is none.

    `own`: what of the state this process holds (all of it, if None); one that other shards wrote is read by rows.
    `before`: another digest that the recipe once had. A damaged file is passed over with a warning, by all processes
    where there are shards. Raises UserError for a checkpoint of another recipe, and for shards that find different
    files.
    """
    files = _newest_first(folder)
    if own is not None:
        own.check_same(folder, len(files), sum(map(_step_of, files)))
    for file in files:
        metadata: dict[str, Any] = {}
        problem = None
        try:
            if own is None or (own.world.latents.size == 1 and file.suffix != ".json"):
                metadata, state = _read_whole(file)
            else:
                metadata, state = parts.read(file, own)
        except parts.Damaged as error:
            problem = str(error)
        if own is not None and own.somewhere(problem is not None):
            problem = problem or "another process found so"
        if problem is not None:
            log.warning("checkpoint %s is damaged (%s): falling back to the one before", file, problem)
            continue
        if metadata.get("recipe") not in (recipe, before or recipe):
            remedy = "give another folder, or delete its checkpoints to start over"
            raise UserError("checkpoint", file, "belongs to another recipe (config, data or seed differ)", remedy)
        return metadata["step"], state
    return None


def _read_whole(file: Path) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """The metadata and tensors of a checkpoint in one file. Raises Damaged."""
    try:
        with safe_open(file, framework="pt") as opened:
            metadata = opened.metadata() or {}
            state = {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118
    except (SafetensorError, OSError) as error:
        raise parts.Damaged(str(error)) from None
    if metadata.get("sha256") != checksum(state):
        raise parts.Damaged("wrong checksum")
    return {**metadata, "step": json.loads(metadata["step"])}, state


def clear(folder: Path) -> None:
    """Delete all checkpoints: the finished SAE has taken their place."""
    shutil.rmtree(folder, ignore_errors=True)


def _newest_first(folder: Path) -> list[Path]:
    """Checkpoints in one file, and the indices of those in parts."""
    files = [*folder.glob("step-*.safetensors"), *folder.glob(f"step-*{parts.INDEX}")]
    return sorted(files, key=lambda file: (_step_of(file), file.name), reverse=True)


def _step_of(file: Path) -> int:
    return int(file.name.split(".")[0].removeprefix("step-"))
