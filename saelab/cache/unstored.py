"""Activations that are never stored: what ActivationCache gives, computed by the host when it is read.

A store of the same images, host and settings has the recipe of the cache that it stands for, so whatever is made from
the one is found by the other. Its tokens are that cache's to the bit: pictures pass the host in the same batches.
"""

from collections import OrderedDict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from saelab import artifacts, bars
from saelab.arrays import TORCH, Narrowing
from saelab.cache.decks import HELD
from saelab.cache.passes import Moments, Plan, check_size, keep, plan_of, pool
from saelab.cache.store import ActivationCache
from saelab.cache.unchanged import Unchanged
from saelab.cache.write import check, images_of_shard, recipe
from saelab.images.crops import Crops

if TYPE_CHECKING:
    from saelab.hosts import Host
    from saelab.images import ImageSet

MOMENTS = "moments.safetensors"
CODE = 1  # version of the moments stage; part of every recipe
POOLED = ("max", "mean")  # what a cache's file holds of each image
KEPT_BYTES = 256 << 20  # of the batches read last, which a layer's store keeps
Loaded = Iterator[tuple[Int[np.ndarray, "batch"], Float[Tensor, "batch 3 height width"]]]


@dataclass(frozen=True)
class Forward:
    """How the host passes over the pictures: what the layers of one call have in common."""

    images: "ImageSet"
    host: "Host"
    plans: dict[str, Plan]
    batch_size: int
    workers: int

    def pictures(self, ids: Int[np.ndarray, "images"], crops: Crops | None = None) -> Loaded:
        """The pictures of these ids, in this order, in batches; with `crops`, those, resized to the host's size.

        Raises UserError for a picture that has changed meanwhile.
        """
        transform = self.host.transform if crops is None else self.host.transform.stretch()
        for numbers, batch in self.images.batches(transform, self.batch_size, self.workers, ids, crops):
            self.unchanged.require(numbers)
            yield numbers, batch

    @cached_property
    def unchanged(self) -> Unchanged:
        """The pictures' files as they were when the host first saw each."""
        return Unchanged(self.images)

    def tokens(self, loaded: Loaded, layers: Sequence[str]) -> Iterator[tuple[np.ndarray, dict[str, Tensor]]]:
        """Batches of ids and, by layer, all the tokens that the policy keeps: [batch, tokens, d_in], of the host."""
        policy = self.plans[layers[0]].policy
        for numbers, batch in loaded:
            found = self.host.tokens(batch, layers, policy)
            for layer in layers:
                check_size(found[layer], numbers, self.plans[layer])
            yield numbers, found


class UnstoredActivations(ActivationCache):
    """Tokens [tokens, d_in] of one layer, computed by the host when they are read; read like an ActivationCache.

    Reading in order costs one pass of the host. Reading one image computes its whole batch, since a model's numbers
    depend, in their last bits, on what passes with them; the batches read last are kept (256 MB). On disk it leaves
    the moments of the `mine` tokens, some kilobytes, if they are asked for. Made by `cache.recompute`.
    """

    def __init__(
        self, forward: Forward, layer: str, recipe: dict[str, Any], info: dict[str, Any], root: Path | str
    ) -> None:
        """`recipe`: that of the cache it stands for; `info`: the attributes of that cache's file."""
        self.forward, self.plan, self.info, self.root = forward, forward.plans[layer], info, Path(root)
        self.recipe, self.digest, self.path = artifacts.plain(recipe), artifacts.digest(recipe), Path(root)
        self.layer, self.host, self.dtype = layer, forward.host.name, self.plan.dtype
        count, self.d_in = len(forward.images), self.plan.d_in
        self.offsets = np.arange(count + 1, dtype=np.int64) * self.plan.stored
        self.n_tokens = count * self.plan.stored
        self._kept: OrderedDict[int, np.ndarray] = OrderedDict()  # by number of the batch, in the stored dtype
        self._narrow = self.watch()

    def __repr__(self) -> str:
        return f"UnstoredActivations({self.layer}, {self.n_images} images, {self.n_tokens} x {self.d_in})"

    def watch(self) -> Narrowing:
        """What rounds tokens to the dtype, and refuses them where that loses them."""
        return Narrowing(self.dtype, layer=self.layer)

    @property
    def batch_size(self) -> int:
        """Images that pass the host together."""
        return self.forward.batch_size

    @cached_property
    def tokens(self) -> Any:
        """Rows [tokens, d_in] by slice or number, float16 or float32 (bfloat16 widened); each read computes them."""
        return _Rows(self)

    @cached_property
    def splits(self) -> np.ndarray:
        """Split of each image: "mine", "show" or "test"."""
        return np.asarray(self.forward.images.splits)

    @property
    def mean(self) -> Float[np.ndarray, "d_in"]:
        """Mean of the `mine` tokens, float64; the first time, a pass of the host."""
        return self._moments.mean.numpy()

    @property
    def variances(self) -> Float[np.ndarray, "d_in"]:
        """Variance of each dimension of the `mine` tokens, float64; the first time, a pass of the host."""
        return (self._moments.m2 / self._moments.tokens).numpy()

    @property
    def count(self) -> int:
        """Number of `mine` tokens."""
        return int(self.plan.mine.sum()) * self.plan.stored

    def pooled(self, kind: str = "max") -> Float[np.ndarray, "images d_in"]:
        """As a cache's; `max` and `mean` take a pass of the host, the first time."""
        return self._pooled[kind] if kind in POOLED else super().pooled(kind)

    def verify(self) -> list[str]:
        """Nothing is stored, so nothing can differ."""
        return []

    def batches(self, numbers: Int[np.ndarray, "batches"]) -> Iterator[tuple[int, np.ndarray]]:
        """Batches of images by number, ascending, each with its stored tokens: [images * tokens, d_in], as on disk."""
        missing = [int(b) for b in numbers if int(b) not in self._kept]
        size, last = self.batch_size, self.n_images
        ids = [np.arange(b * size, min((b + 1) * size, last), dtype=np.int64) for b in missing]
        made = self._make(np.concatenate(ids)) if ids else iter(())
        for b in map(int, numbers):
            if b in self._kept:
                self._kept.move_to_end(b)
                yield b, self._kept[b]
                continue
            self._remember(b, next(made))
            yield b, self._kept[b]
        self._narrow.finish()

    def batch_of(self, images: Int[np.ndarray, "images"]) -> Int[np.ndarray, "images"]:
        """The number of the batch that each image is computed in."""
        return images // self.batch_size

    def save_moments(self, name: str, recipe: dict[str, Any], make: Any) -> Moments:
        """Moments made by `make()`, or as they were found before under this recipe."""
        where = self._place_moments(name, recipe)
        made = artifacts.ensure(*where, lambda folder: make().save(folder / MOMENTS))
        return Moments.load(made.path / MOMENTS)[0]

    def lacks_moments(self, name: str, recipe: dict[str, Any]) -> bool:
        """Whether `save_moments` would make them."""
        return not artifacts.folder(*self._place_moments(name, recipe)).exists()

    def _place_moments(self, name: str, recipe: dict[str, Any]) -> tuple[Path, str, str, dict[str, Any]]:
        whole = {"stage": "moments", "code": CODE, "cache": self.digest} | recipe
        return self.root, "moments", f"{self.layer}{name}", whole

    def _make(self, ids: Int[np.ndarray, "images"]) -> Iterator[np.ndarray]:
        with torch.inference_mode():
            for numbers, tokens in self.forward.tokens(self.forward.pictures(ids), [self.layer]):
                rows = keep(tokens[self.layer], numbers, self.plan, self._narrow).flatten(0, 1).cpu()
                yield (rows.view(torch.uint16) if self.dtype == "bfloat16" else rows).numpy()

    def _remember(self, number: int, rows: np.ndarray) -> None:
        self._kept[number] = rows
        while len(self._kept) > 1 and sum(kept.nbytes for kept in self._kept.values()) > KEPT_BYTES:
            self._kept.popitem(last=False)

    @cached_property
    def _moments(self) -> Moments:
        return self.save_moments("", {}, self._sum_up)

    def _sum_up(self) -> Moments:
        """Moments of the `mine` tokens, added up batch by batch and shard by shard, as a cache's are."""
        shard = images_of_shard(self.n_images, self.plan.row_bytes, self.batch_size) // self.batch_size
        whole = own = Moments.none(self.d_in)
        for b, rows in self._pass("moments"):
            first = b * self.batch_size
            mine = np.repeat(self.plan.mine[first : first + self.batch_size], self.plan.stored)
            own = own.merge(Moments.of(as_torch(rows, self.dtype)[torch.from_numpy(mine)]))
            if (b + 1) % shard == 0:
                whole, own = whole.merge(own), Moments.none(self.d_in)
        return whole.merge(own)

    def _pass(self, what: str) -> Iterator[tuple[int, np.ndarray]]:
        every = np.arange(-(-self.n_images // self.batch_size))
        with bars.show(total=self.n_images, what=f"{what}, {self.layer}", unit="img") as bar:
            for b, rows in self.batches(every):
                yield b, rows
                bar.update(len(rows) // self.plan.stored)

    @cached_property
    def _pooled(self) -> dict[str, np.ndarray]:
        """Of all tokens that the policy keeps, before some are chosen and all are rounded; as in a cache's file."""
        loaded = self.forward.pictures(np.arange(self.n_images, dtype=np.int64))
        with torch.inference_mode():
            parts = [pool(tokens[self.layer]) for _, tokens in self.forward.tokens(loaded, [self.layer])]
        found = (np.concatenate([part[i].cpu().numpy() for part in parts]) for i in (0, 1))
        return dict(zip(POOLED, found, strict=True))

    @cached_property
    def _grids(self) -> Int[np.ndarray, "images 2"]:
        grid = np.array([self.info["grid_height"], self.info["grid_width"]], dtype=np.int32)
        return np.tile(grid, (self.n_images, 1))


class _Rows:
    """Rows of a store by number or slice, as a memory map gives them."""

    ndim = 2

    def __init__(self, store: UnstoredActivations) -> None:
        self.store, self.shape = store, (store.n_tokens, store.d_in)
        self.dtype = np.dtype(np.float16 if store.dtype == "float16" else np.float32)

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, rows: Any) -> np.ndarray:
        if isinstance(rows, slice):
            rows = np.arange(*rows.indices(len(self)))
        wanted = np.asarray(rows)
        if wanted.dtype == bool:
            wanted = np.flatnonzero(wanted)
        if wanted.ndim == 0:
            return self[wanted[None]][0]
        wanted = np.where(wanted < 0, wanted + len(self), wanted)
        if len(wanted) and not (wanted.min() >= 0 and wanted.max() < len(self)):
            raise IndexError(f"rows {wanted.min()} to {wanted.max()} of {len(self)}")
        out, stored = np.empty((len(wanted), self.shape[1]), self.dtype), self.store.plan.stored
        owner = self.store.batch_of(wanted // stored)
        order = np.argsort(owner, kind="stable")
        numbers, starts = np.unique(owner[order], return_index=True)
        for part, (b, tokens) in zip(np.split(order, starts[1:]), self.store.batches(numbers)):
            own = tokens[wanted[part] - b * self.store.batch_size * stored]
            out[part] = as_torch(own, self.store.dtype).float().numpy() if own.dtype == np.uint16 else own
        return out


def as_torch(rows: np.ndarray, dtype: str) -> Tensor:
    """Rows as they are stored (bfloat16 as its bits), as a tensor of their dtype."""
    found = torch.from_numpy(rows)
    return found.view(TORCH[dtype]) if rows.dtype == np.uint16 else found


def check_crops(images: "ImageSet", host: "Host") -> None:
    """Raise UserError where crops of the pictures can't be trained on: too few of them, or a callable transform."""
    images.require(HELD, "mine", "a stream of crops")
    host.transform.stretch()


def recompute(
    images: "ImageSet",
    host: "Host",
    layers: Sequence[str],
    root: Path | str,
    policy: str = "all",
    dtype: str = "float16",
    batch_size: int = 32,
    workers: int = 0,
    tokens_per_image: int | None = None,
    seed: int = 0,
) -> dict[str, UnstoredActivations]:
    """What `cache.write` returns, by the same parameters, without writing any activations: they are computed when read.

    Nothing is computed here. `cache.stream` trains from what this returns. Raises UserError as `cache.write` does.
    Ten parameters: those of `cache.write`, for which this stands in.
    """
    check(images, dtype, tokens_per_image, batch_size)
    names = host.resolve([layers] if isinstance(layers, str) else layers)
    settings = (policy, dtype, tokens_per_image, seed)
    planned = {n: plan_of(images, host, n, *settings) for n in names}
    forward = Forward(images, host, {n: plan for n, (plan, _) in planned.items()}, batch_size, workers)
    return {n: UnstoredActivations(forward, n, recipe(images, host, n, *settings), planned[n][1], root) for n in names}
