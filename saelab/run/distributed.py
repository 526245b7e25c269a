"""Several processes of torchrun that train one SAE: the first owns the artifacts, all of them take the steps."""

import logging
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from saelab.artifacts import Artifact, ensure_all, open_artifact
from saelab.errors import UserError

# What gloo, nccl and torch's store say where another process is gone or was never there.
LOST = (
    "connection closed",
    "connection reset",
    "connection refused",
    "broken pipe",
    "timed out waiting",  # gloo
    "before timing out",  # nccl's watchdog
    "remote process exit",  # nccl
    "socket has timed out",  # the store, as is the next
    "wait timeout after",
)


def count_processes() -> int:
    """Processes that torchrun has started, this one among them."""
    return int(os.environ.get("WORLD_SIZE", 1))


@contextmanager
def join() -> Iterator[bool]:
    """Join torchrun's other processes for the block, where there are any; gives whether this one is the first.

    Raises UserError where another process ends before this one, and for what nccl refuses.
    """
    size, rank = count_processes(), int(os.environ.get("RANK", 0))
    if size == 1:
        yield True
        return
    if rank:
        logging.getLogger("saelab").setLevel(logging.WARNING)
    if torch.cuda.is_available():
        torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", 0)))
    try:
        dist.init_process_group("cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo")
        yield rank == 0
    except RuntimeError as error:
        mistake = explain(str(error), rank, size)
        if mistake is None:
            raise
        raise mistake from None
    finally:
        if dist.is_initialized():
            dist.destroy_process_group()


def explain(text: str, rank: int, size: int) -> UserError | None:
    """What a user can do about an error of torch.distributed with this text; None for what is none of its own."""
    setting, lower = ("torchrun", f"process {rank} of {size}"), text.lower()
    if any(words in lower for words in LOST):
        return UserError(
            *setting,
            "another process ended before this one, or can't be reached",
            "run the same command again to go on",
        )
    if "nccl" not in lower:
        return None
    first, *more = filter(None, map(str.strip, text.splitlines()))
    cause = next((line for before, line in pairwise(more) if before == "Last error:"), None)
    if "duplicate gpu" in lower:
        remedy = "start as many processes as there are GPUs (--nproc-per-node)"
    else:
        remedy = "NCCL_DEBUG=INFO has nccl tell more"
    return UserError(*setting, first if cause is None else f"{first}: {cause}", remedy)


def ensure_together(
    root: Path, stage: str, wanted: Sequence[tuple[str, Any]], build: Callable[[dict[int, Path]], None]
) -> list[Artifact]:
    """`saelab.artifacts.ensure_all` for a `build` in which all processes take part.

    The first process locks, names the partial folders, and finishes the artifacts; the others build along in the same
    folders, from which they read checkpoints, and wait until the artifacts are whole.
    """
    if not dist.is_initialized():
        return ensure_all(root, stage, wanted, build)
    if dist.get_rank():
        folders = _broadcast(None)
        if folders:
            build(folders)
        return [open_artifact(path) for path in _broadcast(None)]
    announced: list[dict[int, Path]] = []

    def announce(folders: dict[int, Path]) -> None:
        announced.append(_broadcast(folders))
        build(folders)

    made = ensure_all(root, stage, wanted, announce)
    if not announced:
        _broadcast({})
    _broadcast([artifact.path for artifact in made])
    return made


def _broadcast(value: Any) -> Any:
    """The first process' value, on all of them."""
    box = [value]
    dist.broadcast_object_list(box)
    return box[0]
