"""Training on the fly: batches of tokens that are never stored, with the interface of `Batches`.

An epoch's decks (decks.py) are permuted as `Batches` permutes rows, and a batch is some consecutive tokens of that
order. So it is a pure function of (seed, epoch, step) and of the number of superblocks; no state is saved, and a
resumed run computes the superblocks again that its deck draws from.
"""

from collections.abc import Generator, Iterator, Mapping
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from saelab.cache.batches import Batches, check_share
from saelab.cache.buffer import Buffer
from saelab.cache.decks import mixing
from saelab.cache.ranks import Ranks
from saelab.cache.superblocks import PICTURES, Superblocks
from saelab.cache.unstored import UnstoredActivations
from saelab.errors import UserError


class ActivationStream(Batches):
    """Batches over the `mine` tokens of one layer, which the host computes while training uses them.

    An epoch holds each token once, but for what doesn't fill a batch at its end. Moments are of the first pictures of
    the first epoch (4096 or more, or all), quality of those that the first deck draws from. With crops, tokens of a
    batch and moments are of crops, quality is of whole pictures. Made by `cache.stream`.
    Under torch.distributed each process' host passes over its share of a superblock and gets the others' tokens: so
    all processes have to take the same steps, and whatever else reads tokens, together.
    """

    def __init__(self, blocks: Superblocks, layer: str, batch_size: int, seed: int) -> None:
        self.blocks, self.layer, self.seed, self.name = blocks, layer, seed, f"the tokens of {layer}"
        self.store, self.decks = blocks.stores[layer], blocks.decks[layer]
        self.tokens, self.rows = self.store.tokens, None
        self._ends = np.cumsum(self.decks.sizes)
        self.n_tokens = int(self._ends[-1])
        self.batch_size = min(batch_size, self.n_tokens)

    @property
    def d_in(self) -> int:
        """Width of the tokens."""
        return self.store.d_in

    @property
    def facts(self) -> dict[str, Any]:
        """What decides the order besides the seed, for recipes."""
        own = {"superblocks": self.blocks.count, "superblock_pictures": self.blocks.pictures}
        return own | mixing(self.blocks.count) | self.blocks.crop

    @property
    def moments_of(self) -> dict[str, Any]:
        """Which tokens `moments` are of."""
        crops = "crops of " if self.blocks.crop else ""
        return {"moments": f"of {crops}the first {self.blocks.edges[self.blocks.sampled]} pictures"}

    @property
    def same_picture_pairs(self) -> float:
        """Expected share of a batch's pairs of tokens that come from one picture; a full shuffle has fewer."""
        return self.decks.same_picture_pairs(self.batch_size)

    def decks_of(self, step: int) -> range:
        """The decks that the batch of a global step lies in, numbered on from one epoch to the next."""
        epoch, inside = divmod(step, self.steps_per_epoch)
        ends = np.array([inside * self.batch_size, (inside + 1) * self.batch_size - 1])  # its first and its last token
        first, last = epoch * self.blocks.count + np.searchsorted(self._ends, ends, side="right")
        return range(int(first), int(last) + 1)

    def steps_of(self, number: int) -> range:
        """The global steps with tokens of a deck."""
        epoch, inside = divmod(number, self.blocks.count)
        first, last = self._span(inside)
        start, stop = first // self.batch_size, -(-last // self.batch_size)
        return range(*(epoch * self.steps_per_epoch + min(step, self.steps_per_epoch) for step in (start, stop)))

    def places(self, step: int, number: int) -> Int[np.ndarray, "part"]:
        """Which tokens of a deck's hand a step's batch holds, ascending."""
        (first, last), start = self._span(number % self.blocks.count), step % self.steps_per_epoch * self.batch_size
        return self.decks.draw(number, max(0, start - first), min(last, start + self.batch_size) - first)

    def _span(self, inside: int) -> tuple[int, int]:
        return int(self._ends[inside] - self.decks.sizes[inside]), int(self._ends[inside])

    def rows_of(self, step: int) -> Int[np.ndarray, "batch"]:
        """Which rows of the layer's cache (of all images) a step's batch holds, in the batch's order."""
        stored, parts = self.store.plan.stored, []
        for number in self.decks_of(step):
            hand = self.decks.hand(number)
            rows = [self.blocks.ids_of(block)[own // stored] * stored + own % stored for block, own in hand]
            parts.append(np.concatenate(rows)[self.places(step, number)])
        return np.concatenate(parts)

    def batch(self, step: int, rank: int = 0, world: int = 1) -> Float[Tensor, "batch d_in"]:
        """The batch of a global step, float32 where the host is. Alone, it may have to compute its superblocks first.

        With `world` > 1, the rank's contiguous share of it. Raises UserError where the host gives NaN or an infinity.
        """
        return self.join(
            [self.take(self.blocks.at(number), step, number) for number in self.decks_of(step)], rank, world
        )

    def take(self, buffer: Buffer, step: int, number: int) -> Float[Tensor, "part d_in"]:
        """What `batch` has of a deck, from the buffer at that deck."""
        return buffer.take(self.layer, self.places(step, number))

    def join(self, parts: list[Tensor], rank: int, world: int) -> Float[Tensor, "batch d_in"]:
        """A batch from its parts."""
        self.blocks.pace.taken += self.batch_size
        if world == 1:
            return torch.cat(parts)
        check_share(self.batch_size, world)
        return torch.cat(parts)[rank * self.batch_size // world : (rank + 1) * self.batch_size // world]

    def prefetch(
        self, first: int, last: int, rank: int = 0, world: int = 1, narrow: bool = False
    ) -> Iterator[Float[Tensor, "batch d_in"]]:
        """Batches first..last-1; while one deck is in use, the host makes the next superblock in another thread.

        `narrow` changes nothing: they are where the host is already.
        """
        yield from (x for _, _, x in together({self.layer: self}, {self.layer: (first, last)}, rank, world))

    def in_order(self, chunk: int) -> Iterator[Float[Tensor, "chunk d_in"]]:
        """The tokens of the pictures that the first deck draws from, whole ones also with crops; `chunk` at once."""
        return self.blocks.first(self.layer, chunk)

    def moments(self, chunk: int = 16_384) -> tuple[Float[np.ndarray, "d_in"], float]:
        """Mean [d_in] and total variance of the first pictures, in float64; kept on disk, so that none is made twice.

        `chunk` changes nothing: one pass of the host serves all layers.
        """
        recipe, ranks = {"superblocks": self.blocks.count, "seed": self.blocks.seed}, Ranks.current()
        where = ("-first", recipe | mixing(self.blocks.count) | self.blocks.crop)
        if ranks.world > 1 and any(ranks.gather(self.store.lacks_moments(*where))):
            self.blocks.moments  # noqa: B018  (by all; within save_moments, all but one would wait for its lock)
        found = self.store.save_moments(*where, lambda: self.blocks.moments[self.layer])
        return found.mean.numpy(), float((found.m2 / found.tokens).sum())

    def fingerprint(self) -> str:
        """16 hex digits of what made the tokens; none is looked at."""
        return self.store.digest[:16]


def together(
    streams: Mapping[str, ActivationStream],
    spans: Mapping[str, tuple[int, int]],
    rank: int = 0,
    world: int = 1,
) -> Generator[tuple[str, int, Float[Tensor, "batch d_in"]], None, None]:
    """(layer, step, batch) of several layers' streams over the same superblocks, of steps first..last-1 of each.

    Deck by deck, and within one, layer by layer: so one pass of the host serves all of them, although an epoch of a
    layer with more tokens has more steps.
    """
    spans = {layer: (first, last) for layer, (first, last) in spans.items() if first < last}
    if not spans:
        return
    begin = min(streams[layer].decks_of(first).start for layer, (first, _) in spans.items())
    end = max(streams[layer].decks_of(last - 1).stop for layer, (_, last) in spans.items())
    blocks = next(iter(streams.values())).blocks
    parts: dict[str, list[Tensor]] = {layer: [] for layer in spans}  # of a batch that goes on in the next deck
    for number, buffer in blocks.run(begin, end):
        for layer, (first, last) in spans.items():
            own = streams[layer]
            for step in own.steps_of(number):
                if first <= step < last:
                    parts[layer].append(own.take(buffer, step, number))
                    if own.decks_of(step)[-1] == number:
                        whole, parts[layer] = own.join(parts[layer], rank, world), []
                        yield layer, step, whole


def stream(
    stores: Mapping[str, UnstoredActivations],
    batch_size: int = 4096,
    seed: int = 0,
    pictures: int = PICTURES,
    crop: str | None = None,
) -> dict[str, ActivationStream]:
    """Streams of several layers over the same superblocks: what `cache.recompute` returned, to train on.

    `pictures`: half of those in memory (see docs/scale.md). Superblocks are cut evenly, so their number decides the
    order, not `pictures` itself. `crop="random"`: the host sees a crop of each picture, another one in each epoch, a
    pure function of seed, epoch and picture (saelab.images.crops); whatever reads the stores still gets whole pictures.
    Raises UserError where superblocks don't fit in memory, for stores that are caches, for another `crop`, and for
    crops of fewer than 8 pictures or by a host whose transform is a callable.
    """
    for layer, store in stores.items():
        if not isinstance(store, UnstoredActivations):
            what = "is stored: there is no host that passes over the pictures again"
            raise UserError("stores", layer, what, "give what cache.recompute returns")
    blocks = Superblocks(stores, pictures, seed, crop)
    return {layer: ActivationStream(blocks, layer, batch_size, seed) for layer in stores}
