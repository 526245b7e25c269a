"""Decks: how a stream mixes the tokens of neighbouring superblocks, as a pure function of seed and numbers.

The tokens of a superblock are dealt at random to the decks of its neighbourhood, in equal shares, and a batch is some
consecutive tokens of a shuffled deck. So a deck is as large as a superblock, but its pictures are those of five. What
a deck has used up is gone from memory; that is why four superblocks' worth of memory mix five superblocks.
"""

from collections.abc import Iterator
from functools import cached_property, lru_cache
from typing import Any

import numpy as np
from jaxtyping import Int

from saelab.cache.batches import permute

REACH = 2  # superblocks before its own, and after it, that a deck draws from
OF_TOKENS = 0x5EED  # sets the order of a deck apart from the order of pictures
OF_SHARES = 0xDEA1  # ... and which of a superblock's tokens go to which deck


def count_superblocks(images: int, pictures: int) -> int:
    """Into how many superblocks an epoch of so many images is cut, where twice `pictures` are to be in memory."""
    return 1 if images <= 2 * pictures else -(-images // (2 * pictures // (REACH + 2)))


def mixing(superblocks: int) -> dict[str, int]:
    """What recipes say of the order beside the number of superblocks: how many of them a deck draws from."""
    return {"mixed": 2 * REACH + 1} if superblocks > 1 else {}


class Decks:
    """The decks of one layer: as many in an epoch as there are superblocks, numbered on from one epoch to the next.

    `sizes`: tokens of each superblock of an epoch. Every token is in one deck of each epoch. Where all pictures are in
    one superblock, a deck is that superblock.
    """

    def __init__(self, sizes: Int[np.ndarray, "superblocks"], seed: int) -> None:
        self.superblocks, self.seed, self.count = np.asarray(sizes, dtype=np.int64), seed, len(sizes)
        self.reach = REACH if self.count > 1 else 0
        self.deal = lru_cache(2 * REACH + 2)(self._deal)

    @cached_property
    def sizes(self) -> Int[np.ndarray, "decks"]:
        """Tokens of each deck of an epoch."""
        return self._tokens.sum(1)

    @cached_property
    def _tokens(self) -> Int[np.ndarray, "decks superblocks"]:
        """How many tokens each deck of an epoch has from each superblock of its neighbourhood, first to last."""
        held = np.zeros((self.count, 2 * self.reach + 1), dtype=np.int64)
        inside = np.arange(self.count)
        for share, size in enumerate(self._shares(self.superblocks).T):
            deck = mirror(inside + share - self.reach, self.count)
            np.add.at(held, (deck, inside - deck + self.reach), size)
        return held

    def _shares(self, tokens: Any) -> np.ndarray:
        """How many of so many tokens each share has; the rest is the own deck's, so that the edges even out."""
        shares = np.repeat(np.asarray(tokens)[..., None] // (2 * self.reach + 1), 2 * self.reach + 1, axis=-1)
        shares[..., self.reach] += tokens - shares.sum(-1)
        return shares

    def _deal(self, number: int) -> dict[int, Int[np.ndarray, "share"]]:
        """The decks that a superblock's tokens go to, ascending, and which tokens each is dealt."""
        inside = number % self.count
        start, size = number - inside, int(self.superblocks[inside])
        if not self.reach:
            return {number: np.arange(size)}
        order = permute(np.arange(size, dtype=np.uint64), size, self.seed ^ OF_SHARES, number)
        found: dict[int, list[np.ndarray]] = {}
        for share, part in enumerate(np.split(order, self._shares(size).cumsum()[:-1])):
            found.setdefault(start + int(mirror(inside + share - self.reach, self.count)), []).append(part)
        return {deck: np.concatenate(found[deck]) for deck in sorted(found)}

    def drawn_from(self, number: int) -> range:
        """The superblocks that a deck draws from."""
        inside = number % self.count
        first, last = max(0, inside - self.reach), min(self.count - 1, inside + self.reach)
        return range(number - inside + first, number - inside + last + 1)

    def hand(self, number: int) -> Iterator[tuple[int, Int[np.ndarray, "share"]]]:
        """A deck's tokens before it is shuffled: superblock by superblock, the places of those that it was dealt."""
        yield from ((superblock, self.deal(superblock)[number]) for superblock in self.drawn_from(number))

    def draw(self, number: int, first: int, size: int) -> Int[np.ndarray, "batch"]:
        """The places in a deck's hand of so many tokens from the `first` of the shuffled deck on, ascending."""
        places = np.arange(first, first + size, dtype=np.uint64)
        return np.sort(permute(places, int(self.sizes[number % self.count]), self.seed ^ OF_TOKENS, number))

    @property
    def most_held(self) -> int:
        """Tokens that are in memory at once, at most, while one superblock is made: of REACH + 2 superblocks."""
        if not self.reach:
            return int(self.superblocks.sum())
        number = np.arange(2 * self.count)  # of decks: two epochs, since an epoch's end may hold more
        come = np.tile(self.superblocks, 2 + self.reach + 1).cumsum()[number + self.reach + 1]
        gone = np.tile(self.sizes, 2).cumsum() - self.sizes[number % self.count]  # with the decks before
        return int((come - gone).max())

    def same_picture_pairs(self, tokens: int, batch: int) -> float:
        """Expected share of a batch's pairs of tokens that are of one picture, where each has `tokens`; over an epoch.

        Two tokens of a deck come from one superblock with the share of such pairs in its hand, and are then any two of
        that superblock.
        """
        inside = np.arange(self.count)[:, None] + np.arange(-self.reach, self.reach + 1)
        of = self.superblocks[inside.clip(0, self.count - 1)]
        pairs = self._tokens * (self._tokens - 1) / np.maximum(1, self.sizes * (self.sizes - 1))[:, None]
        each = (pairs * (tokens - 1) / np.maximum(1, of - 1)).sum(1)
        return float(np.average(each, weights=self.sizes // batch))


def mirror(place: Any, count: int) -> Any:
    """Places beyond the first or the last of `count`, mirrored at that edge, so that every share has a deck."""
    place = place % (2 * count)
    return np.minimum(place, 2 * count - 1 - place)
