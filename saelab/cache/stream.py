"""Training on the fly: batches of tokens that are never stored, with the interface of `Batches`.

The tokens of a deck (decks.py) are permuted as `Batches` permutes rows, and a batch is some consecutive ones of that
order. So it is a pure function of (seed, epoch, step) and of the number of superblocks; no state is saved, and a
resumed run computes the superblocks again that its deck draws from.
"""

from collections.abc import Generator, Iterator, Mapping
from functools import reduce
from typing import Any

import numpy as np
from jaxtyping import Float, Int
from torch import Tensor

from saelab.cache.batches import Batches, check_share
from saelab.cache.buffer import Buffer
from saelab.cache.decks import mixing
from saelab.cache.passes import Moments
from saelab.cache.superblocks import PICTURES, Superblocks
from saelab.cache.unstored import UnstoredActivations


class ActivationStream(Batches):
    """Batches over the `mine` tokens of one layer, which the host computes while training uses them.

    An epoch holds each token once, but for what doesn't fill a batch at a deck's end. Moments and quality are of the
    pictures that the first deck draws from: a random sample, or all of them. Made by `cache.stream`.
    """

    def __init__(self, blocks: Superblocks, layer: str, batch_size: int, seed: int) -> None:
        self.blocks, self.layer, self.seed, self.name = blocks, layer, seed, f"the tokens of {layer}"
        self.store = blocks.stores[layer]
        self.tokens, self.rows = self.store.tokens, None
        self.decks = blocks.decks[layer]
        sizes = self.decks.sizes
        self.n_tokens, self.batch_size = int(sizes.sum()), min(batch_size, int(sizes.min()))
        self._ends = np.cumsum(sizes // self.batch_size)

    @property
    def d_in(self) -> int:
        """Width of the tokens."""
        return self.store.d_in

    @property
    def steps_per_epoch(self) -> int:
        """Batches of an epoch."""
        return int(self._ends[-1])

    @property
    def facts(self) -> dict[str, Any]:
        """What decides the order besides the seed, for recipes."""
        own = {"superblocks": self.blocks.count, "superblock_pictures": self.blocks.pictures}
        return own | mixing(self.blocks.count)

    @property
    def moments_of(self) -> dict[str, Any]:
        """Which tokens `moments` are of."""
        return {"moments": f"of the first {len(self.blocks.ids_of_first())} pictures"}

    @property
    def same_picture_pairs(self) -> float:
        """Expected share of a batch's pairs of tokens that come from one picture; a full shuffle has fewer."""
        return self.decks.same_picture_pairs(self.store.plan.stored, self.batch_size)

    def number_of(self, step: int) -> int:
        """The deck of a global step, numbered on from one epoch to the next."""
        epoch, inside = divmod(step, self.steps_per_epoch)
        return epoch * self.blocks.count + int(np.searchsorted(self._ends, inside, side="right"))

    def steps_of(self, number: int) -> range:
        """The global steps that draw their batches from a deck."""
        epoch, inside = divmod(number, self.blocks.count)
        start = epoch * self.steps_per_epoch
        return range(start + (int(self._ends[inside - 1]) if inside else 0), start + int(self._ends[inside]))

    def places(self, step: int) -> Int[np.ndarray, "batch"]:
        """Which tokens of its deck's hand a step's batch holds, ascending."""
        number = self.number_of(step)
        return self.decks.draw(number, (step - self.steps_of(number).start) * self.batch_size, self.batch_size)

    def rows_of(self, step: int) -> Int[np.ndarray, "batch"]:
        """Which rows of the layer's cache (of all images) a step's batch holds, in the batch's order."""
        stored, hand = self.store.plan.stored, self.decks.hand(self.number_of(step))
        rows = [self.blocks.ids_of(number)[own // stored] * stored + own % stored for number, own in hand]
        return np.concatenate(rows)[self.places(step)]

    def batch(self, step: int, rank: int = 0, world: int = 1) -> Float[Tensor, "batch d_in"]:
        """The batch of a global step, float32 where the host is. Alone, it may have to compute its superblocks first.

        With `world` > 1, the rank's contiguous share of it. Raises UserError where the host gives NaN or an infinity.
        """
        return self.take(self.blocks.at(self.number_of(step)), step, rank, world)

    def take(self, buffer: Buffer, step: int, rank: int = 0, world: int = 1) -> Float[Tensor, "batch d_in"]:
        """`batch` from the buffer at its deck."""
        places = self.places(step)
        if world > 1:
            check_share(self.batch_size, world)
            places = places[rank * len(places) // world : (rank + 1) * len(places) // world]
        self.blocks.pace.taken += len(places)
        return buffer.take(self.layer, places)

    def prefetch(self, first: int, last: int, rank: int = 0, world: int = 1) -> Iterator[Float[Tensor, "batch d_in"]]:
        """Batches first..last-1; while one deck is in use, the host makes the next superblock in another thread."""
        yield from (x for _, _, x in together({self.layer: self}, {self.layer: (first, last)}, rank, world))

    def in_order(self, chunk: int) -> Iterator[Float[Tensor, "chunk d_in"]]:
        """The tokens of the pictures that the first deck draws from, `chunk` at once."""
        return self.blocks.at(0).in_order(self.layer, chunk)

    def moments(self, chunk: int = 16_384) -> tuple[Float[np.ndarray, "d_in"], float]:
        """Mean [d_in] and total variance of `in_order`, in float64; kept on disk, so that none is made twice."""
        make = lambda: reduce(Moments.merge, map(Moments.of, self.in_order(chunk)))  # noqa: E731
        recipe = {"superblocks": self.blocks.count, "seed": self.blocks.seed} | mixing(self.blocks.count)
        found = self.store.save_moments("-first", recipe, make)
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
    begin = min(streams[layer].number_of(first) for layer, (first, _) in spans.items())
    end = max(streams[layer].number_of(last - 1) for layer, (_, last) in spans.items())
    blocks = next(iter(streams.values())).blocks
    for number, buffer in blocks.run(begin, end + 1):
        for layer, (first, last) in spans.items():
            own = streams[layer].steps_of(number)
            for step in range(max(own.start, first), min(own.stop, last)):
                yield layer, step, streams[layer].take(buffer, step, rank, world)


def stream(
    stores: Mapping[str, UnstoredActivations], batch_size: int = 4096, seed: int = 0, pictures: int = PICTURES
) -> dict[str, ActivationStream]:
    """Streams of several layers over the same superblocks: what `cache.recompute` returned, to train on.

    `pictures`: half of those in memory, and twice as many as a superblock holds, at most (see docs/scale.md).
    Superblocks are cut evenly, so their number decides the order, not `pictures` itself. A `batch_size` above a
    superblock's tokens is cut to these. Raises UserError where they don't fit in memory.
    """
    blocks = Superblocks(stores, pictures, seed)
    return {layer: ActivationStream(blocks, layer, batch_size, seed) for layer in stores}
