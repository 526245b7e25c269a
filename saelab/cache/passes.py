"""One pass over the images: forward, choose, pool, round, store, for several layers at once."""

import hashlib
import os
from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from saelab import bars
from saelab.arrays import Narrowing
from saelab.artifacts import atomic
from saelab.cache import layout
from saelab.errors import UserError

if TYPE_CHECKING:
    from saelab.hosts import Host
    from saelab.images import ImageSet

_FLOAT64 = 1 << 22  # numbers that are widened to float64 at once
_WAITING = 2  # batches that may wait for the disk while the model goes on


@dataclass(frozen=True)
class Plan:
    """What is stored of one layer."""

    layer: str
    policy: str
    dtype: str
    total: int  # tokens that the policy keeps of an image
    stored: int  # tokens that are stored of them
    d_in: int
    seed: int  # of the choice of tokens, where stored < total
    mine: np.ndarray  # bool [images]: the split that the moments are of

    @property
    def row_bytes(self) -> int:
        """Bytes of the tokens of one image."""
        return self.stored * self.d_in * layout.STORED[self.dtype].itemsize


class Moments(NamedTuple):
    """Tokens, mean and summed squared deviation per dimension, float64; merged as Chan et al. (1983) do."""

    tokens: int
    mean: Float[Tensor, "d_in"]
    m2: Float[Tensor, "d_in"]

    @classmethod
    def of(cls, tokens: Float[Tensor, "tokens d_in"]) -> "Moments":
        """Of the rows of a matrix; float64 is not had on every device (MPS), hence the CPU there."""
        tokens = tokens.cpu() if tokens.device.type == "mps" else tokens
        whole = cls.none(tokens.shape[1])
        for rows in tokens.split(max(1, _FLOAT64 // tokens.shape[1])):
            x = rows.to(torch.float64)
            mean = x.mean(0)
            if len(x):
                whole = whole.merge(cls(len(x), mean.cpu(), (x - mean).square_().sum(0).cpu()))
        return whole

    @classmethod
    def none(cls, d_in: int) -> "Moments":
        """Of nothing."""
        return cls(0, torch.zeros(d_in, dtype=torch.float64), torch.zeros(d_in, dtype=torch.float64))

    def merge(self, other: "Moments") -> "Moments":
        """Of both together."""
        total = self.tokens + other.tokens
        if not other.tokens or not self.tokens:
            return self if self.tokens else other
        delta = other.mean - self.mean
        mean = self.mean + delta * (other.tokens / total)
        return Moments(total, mean, self.m2 + other.m2 + delta.square() * (self.tokens * other.tokens / total))

    def save(self, path: Path, metadata: dict[str, str] | None = None) -> None:
        """Write them into a safetensors file."""
        from safetensors.torch import save_file

        tensors = {"count": torch.tensor([self.tokens]), "mean": self.mean, "m2": self.m2}
        with atomic(path) as temporary:
            save_file(tensors, str(temporary), metadata=metadata)

    @classmethod
    def load(cls, path: Path) -> tuple["Moments", dict[str, str]]:
        """Read what `save` wrote: the moments and the metadata."""
        from safetensors import safe_open

        with safe_open(str(path), "pt") as file:
            own = cls(int(file.get_tensor("count")[0]), file.get_tensor("mean"), file.get_tensor("m2"))
            return own, file.metadata() or {}


class Part(NamedTuple):
    """A batch's share of one layer, ready to be written; consecutive images of one shard."""

    images: np.ndarray  # ids
    tokens: np.ndarray  # [images * stored, d_in] in the stored dtype
    pooled_max: np.ndarray  # [images, d_in] float32
    pooled_mean: np.ndarray
    moments: Moments


class LayerWriter:
    """Writes one layer's shards into its file, in the order that they come, one shard after the other."""

    def __init__(self, folder: Path, plan: Plan, shard_images: int, images: int) -> None:
        self.folder, self.plan, self.shard_images, self.n_images = folder, plan, shard_images, images
        self.places = layout.places(folder / layout.FILE)[0]
        self.pending = set(pending(folder, images, shard_images))
        self.file = os.open(folder / layout.FILE, os.O_WRONLY)
        self._checksum, self._moments = hashlib.sha256(), Moments.none(plan.d_in)
        self.narrow = Narrowing(plan.dtype, layer=plan.layer)  # of the shard that is being made

    def close(self) -> None:
        """Close the file; a shard that is not whole is done again by the next run."""
        os.close(self.file)

    def store(self, part: Part) -> None:
        """Write a part; when it completes its shard, write the shard's record after the rows are on disk."""
        first = int(part.images[0])
        tokens = self.places["tokens"]
        layout.write_at(self.file, tokens.offset + first * self.plan.stored * tokens.row_bytes, part.tokens)
        for name, values in (("pooled_max", part.pooled_max), ("pooled_mean", part.pooled_mean)):
            layout.write_at(self.file, self.places[name].offset + first * self.places[name].row_bytes, values)
        self._checksum.update(part.tokens.data.cast("B"))
        self._moments = self._moments.merge(part.moments)
        if self.completes(part):
            os.fsync(self.file)
            self._write_record(first // self.shard_images)
            self._checksum, self._moments = hashlib.sha256(), Moments.none(self.plan.d_in)

    def completes(self, part: Part) -> bool:
        """Whether the part is the last of its shard."""
        shard, last = int(part.images[0]) // self.shard_images, int(part.images[-1])
        return last + 1 == min((shard + 1) * self.shard_images, self.n_images)

    def _write_record(self, shard: int) -> None:
        self._moments.save(record(self.folder, shard), {"sha256": self._checksum.hexdigest()})


def record(folder: Path, shard: int) -> Path:
    """Where a finished shard's record lies while the cache is being made."""
    return folder / "shards" / f"{shard:07d}.safetensors"


def pending(folder: Path, images: int, shard_images: int) -> list[int]:
    """The shards without a record."""
    return [s for s in range(-(-images // shard_images)) if not record(folder, s).exists()]


def run_pass(
    images: "ImageSet",
    host: "Host",
    writers: list[LayerWriter],
    shards: list[int],
    batch_size: int,
    workers: int,
    quiet: bool,
) -> None:
    """Forward the images of the given shards and store every writer's layer. Raises UserError for a full disk."""
    size = writers[0].shard_images
    ids = np.concatenate([np.arange(s * size, min((s + 1) * size, len(images))) for s in shards])
    layers = [w.plan.layer for w in writers]
    title = layers[0] if len(layers) == 1 else f"{len(layers)} layers"
    waiting: deque[Future[None]] = deque()
    with ExitStack() as stack:
        disk = stack.enter_context(ThreadPoolExecutor(1))
        bar = stack.enter_context(bars.show(total=len(ids), what=f"activations, {title}", unit="img", hidden=quiet))
        for numbers, batch in images.batches(host.transform, batch_size, workers, ids):
            tokens = host.tokens(batch, layers, writers[0].plan.policy)
            for writer in writers:
                for part in _parts(tokens.pop(writer.plan.layer), numbers, writer):
                    waiting.append(disk.submit(writer.store, part))
            while len(waiting) > _WAITING * len(writers):
                waiting.popleft().result()
            bar.update(len(numbers))
        while waiting:
            waiting.popleft().result()


def _parts(tokens: Tensor, numbers: np.ndarray, writer: LayerWriter) -> Iterator[Part]:
    """The batch cut where a shard ends, without what is stored already."""
    shards = numbers // writer.shard_images
    for shard in np.unique(shards):
        if int(shard) in writer.pending:
            own = np.flatnonzero(shards == shard)
            part = _part(tokens[own[0] : own[-1] + 1], numbers[own], writer.plan, writer.narrow)
            if writer.completes(part):  # before its record is: what lost its numbers is never taken for whole
                writer.narrow.finish()
                writer.narrow = Narrowing(writer.plan.dtype, layer=writer.plan.layer)
            yield part


def _part(tokens: Float[Tensor, "images tokens d_in"], numbers: np.ndarray, plan: Plan, narrow: Narrowing) -> Part:
    check_size(tokens, numbers, plan)
    largest, average = pool(tokens)
    rows = keep(tokens, numbers, plan, narrow)
    mine = torch.from_numpy(plan.mine[numbers]).to(rows.device)
    moments = Moments.of(rows[mine].flatten(0, 1))
    flat = rows.flatten(0, 1).cpu().contiguous()
    stored = (flat.view(torch.uint16) if plan.dtype == "bfloat16" else flat).numpy()
    return Part(numbers, stored, largest.cpu().numpy(), average.cpu().numpy(), moments)


def check_size(tokens: Float[Tensor, "images tokens d_in"], numbers: np.ndarray, plan: Plan) -> None:
    """Raise UserError where a layer gave other tokens than the probing pass promised."""
    if tuple(tokens.shape[1:]) != (plan.total, plan.d_in):
        found, expected = tuple(tokens.shape[1:]), (plan.total, plan.d_in)
        what = f"gave {found} tokens x d_in for image {numbers[0]}, {expected} was planned"
        raise UserError("layer", plan.layer, what, "set host.transform.crop, so that all pictures have one size")


def pool(tokens: Float[Tensor, "images tokens d_in"]) -> tuple[Float[Tensor, "images d_in"], Float[Tensor, "..."]]:
    """Maximum and mean over all of an image's tokens, float32: before some are chosen and all are rounded."""
    wide = tokens.float()
    return wide.amax(1), wide.mean(1)


def keep(
    tokens: Float[Tensor, "images tokens d_in"], numbers: np.ndarray, plan: Plan, narrow: Narrowing
) -> Float[Tensor, "images stored d_in"]:
    """The tokens of a batch that the plan keeps, rounded to its dtype."""
    if plan.stored < plan.total:
        chosen = torch.from_numpy(np.stack([sample(plan, int(i)) for i in numbers])).to(tokens.device)
        tokens = tokens.gather(1, chosen[:, :, None].expand(-1, -1, plan.d_in))
    return narrow(tokens)


def sample(plan: Plan, image: int) -> np.ndarray:
    """Which tokens of an image are stored: without replacement, ascending, a function of (seed, image) alone."""
    generator = np.random.default_rng([plan.seed, image])
    return np.sort(generator.choice(plan.total, plan.stored, replace=False))


def merge_records(folder: Path, shards: int) -> tuple[Moments, list[str]]:
    """The moments of all shards, merged in their order, and the shards' checksums."""
    moments, checksums = None, []
    for shard in range(shards):
        own, metadata = Moments.load(record(folder, shard))
        checksums.append(metadata["sha256"])
        moments = own if moments is None else moments.merge(own)
    assert moments is not None
    return moments, checksums


def plan_of(
    images: "ImageSet", host: "Host", layer: str, policy: str, dtype: str, tokens_per_image: int | None, seed: int
) -> tuple[Plan, dict[str, Any]]:
    """The plan of a layer, and the attributes of its file."""
    choice = host.choice(layer, policy)
    stored = choice.tokens if tokens_per_image is None else min(choice.tokens, tokens_per_image)
    sampled = stored < choice.tokens
    has_cls = policy == "cls" or (choice.prefix > 0 and host.prefix.cls > 0)
    attributes = {
        "layer": layer,
        "host": host.name,
        "policy": policy,
        "dtype": dtype,
        "has_cls": bool(has_cls and not sampled),
        "grid_height": 0 if sampled or choice.grid is None else choice.grid[0],
        "grid_width": 0 if sampled or choice.grid is None else choice.grid[1],
    }
    plan = Plan(
        layer, policy, dtype, choice.tokens, stored, host.d_in(layer), seed, np.asarray(images.splits) == "mine"
    )
    return plan, attributes
