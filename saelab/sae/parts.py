"""Checkpoints in parts: a safetensors file for each shard of the latents, and an index that says which rows lie where.

`step-00001000.safetensors.index.json` maps names to files, as safetensors' own indices do; a part's tensors are named
`name[first:last]`, the rows of the whole tensor that it holds. What all shards hold alike lies in the first part. The
index is written last. So a run goes on with another number of shards, or with one.
"""

import hashlib
import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from saelab.artifacts import atomic, read_json, write_json
from saelab.errors import UserError
from saelab.sae.distributed import World

INDEX = ".safetensors.index.json"
NAMED = re.compile(r"(.+)\[(\d+):(\d+)\]")
AT_ONCE = 1 << 24  # numbers read at once for a checksum


class Damaged(Exception):
    """A checkpoint that is not whole, with what is wrong."""


@dataclass(frozen=True)
class Holding:
    """What of a trainer's state this process holds: some latents, and the tensors that all shards hold alike."""

    latents: int  # of the whole SAE
    shared: frozenset[str]  # names of tensors that have no row for each latent, besides numbers
    world: World
    device: torch.device

    @property
    def rows(self) -> slice:
        return self.world.rows(self.latents)

    def somewhere(self, fact: bool) -> bool:
        """Whether it holds for any process, where there are shards; else whether it does here."""
        if self.world.latents.size == 1:
            return fact
        return bool(self.world.all.any(torch.tensor([fact], device=self.device)))

    def check_same(self, folder: Path, *numbers: int) -> None:
        """Raise UserError in all processes where they found different things in the folder and there are shards."""
        if self.world.latents.size == 1:
            return
        found = self.world.all.gather(torch.tensor([numbers], device=self.device))
        if bool((found != found[0]).any()):
            remedy = "it has to be one that all of them see"
            raise UserError("folder", folder, "the processes find different SAEs or checkpoints", remedy)


def write(folder: Path, step: int, state: Mapping[str, Tensor], recipe: str, own: Holding) -> None:
    """Write this shard's part, and when all are there the index; called by one process of each shard together."""
    shards = own.world.latents
    size, rows, names = shards.size, own.rows, {}
    mine: dict[str, Tensor] = {}
    for name, tensor in state.items():
        whole = not tensor.ndim or name in own.shared
        for rank in range(1 if whole else size):
            first, last = (rank * own.latents // size, (rank + 1) * own.latents // size)
            names[name if whole else f"{name}[{first}:{last}]"] = _part(step, rank, size)
        if not whole or not shards.rank:
            placed = name if whole else f"{name}[{rows.start}:{rows.stop}]"
            mine[placed] = tensor.detach().cpu().contiguous()
    folder.mkdir(parents=True, exist_ok=True)
    with atomic(folder / _part(step, shards.rank, size)) as temporary:
        save_file(mine, temporary, metadata={"sha256": checksum(mine)})
    shards.wait(own.device)  # until every part lies on the disk
    if not shards.rank:
        write_json(
            folder / f"step-{step:08d}{INDEX}", {"metadata": {"step": step, "recipe": recipe}, "weight_map": names}
        )


def read(file: Path, own: Holding) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """The metadata and this process' rows of a checkpoint, in parts or whole. Raises Damaged."""
    try:
        metadata, places = _index(file)
        for part in sorted(set(places.values()))[own.world.latents.rank :: own.world.latents.size]:
            with safe_open(file.parent / part, framework="pt") as opened:
                if (opened.metadata() or {}).get("sha256") != _checksum_of(opened):
                    raise Damaged(f"wrong checksum of {part}")
        return metadata, _take(file.parent, places, own)
    except (SafetensorError, UserError, OSError, ValueError, KeyError) as error:
        raise Damaged(str(error)) from None


def forget(folder: Path, kept: set[int]) -> None:
    """Delete the parts of all other steps."""
    for part in folder.glob("part-*.safetensors"):
        if int(part.name.split("-")[1]) not in kept:
            part.unlink(missing_ok=True)


def checksum(state: Mapping[str, Tensor]) -> str:
    """SHA-256 (64 hex digits) of tensors: their names, types, shapes and bytes."""
    pieces = ((name, str(t.dtype), tuple(t.shape), iter([t])) for name, t in sorted(state.items()))
    return _digest(pieces)


def _checksum_of(opened: Any) -> str:
    """`checksum` of a file's tensors, some rows at a time."""
    return _digest(_pieces(opened, name) for name in sorted(opened.keys()))


def _pieces(opened: Any, name: str) -> tuple[str, str, tuple[int, ...], Iterator[Tensor]]:
    lazy = opened.get_slice(name)
    shape = tuple(lazy.get_shape())
    if not shape or not shape[0]:
        tensor = opened.get_tensor(name)
        return name, str(tensor.dtype), shape, iter([tensor])
    step = max(1, AT_ONCE * shape[0] // max(1, torch.Size(shape).numel()))
    rows = (lazy[first : first + step] for first in range(0, shape[0], step))
    return name, str(lazy[:1].dtype), shape, rows


def _digest(pieces: Iterator[tuple[str, str, tuple[int, ...], Iterator[Tensor]]]) -> str:
    digest = hashlib.sha256()
    for name, dtype, shape, parts in pieces:
        digest.update(f"{name} {dtype} {shape}".encode())
        for part in parts:
            digest.update(part.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def _part(step: int, rank: int, size: int) -> str:
    return f"part-{step:08d}-{rank + 1:05d}-of-{size:05d}.safetensors"


def _index(file: Path) -> tuple[dict[str, Any], dict[str, str]]:
    """A checkpoint's metadata, and the file that each tensor lies in."""
    if file.name.endswith(INDEX):
        index = read_json(file)
        return index["metadata"], index["weight_map"]
    with safe_open(file, framework="pt") as opened:
        metadata = opened.metadata() or {}
        return {**metadata, "step": json.loads(metadata["step"])}, dict.fromkeys(opened.keys(), file.name)


def _take(folder: Path, places: Mapping[str, str], own: Holding) -> dict[str, Tensor]:
    """This process' rows of each tensor, and what is shared."""
    rows, state = own.rows, {}
    pieces: dict[str, list[tuple[int, Tensor]]] = {}
    for part in sorted(set(places.values())):
        with safe_open(folder / part, framework="pt") as opened:
            for placed in (name for name, where in places.items() if where == part):
                named = NAMED.fullmatch(placed)
                name, first = (named[1], int(named[2])) if named else (placed, 0)
                lazy = opened.get_slice(placed)
                if not lazy.get_shape() or name in own.shared:
                    state[name] = opened.get_tensor(placed)
                    continue
                begin, end = max(rows.start - first, 0), min(rows.stop - first, lazy.get_shape()[0])
                if begin < end:
                    pieces.setdefault(name, []).append((first, lazy[begin:end]))
    for name, found in pieces.items():
        state[name] = torch.cat([tensor for _, tensor in sorted(found, key=lambda piece: piece[0])])
        if len(state[name]) != rows.stop - rows.start:
            raise Damaged(f"{name} has {len(state[name])} of the {rows.stop - rows.start} rows wanted")
    return state
