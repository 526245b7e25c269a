"""Decks: how a stream mixes the tokens of neighbouring superblocks, as a pure function of seed and numbers.

The tokens of a superblock are dealt out, picture by picture, to the decks of its neighbourhood; an epoch's decks are
shuffled and used one after the other. So a deck is as large as a superblock, but its pictures are those of thirteen.
Memory holds eight superblocks' worth: what a deck has used up is gone, and what lies far ahead has yet to come.
"""

from collections.abc import Iterator
from functools import cached_property, lru_cache
from typing import Any

import numpy as np
from jaxtyping import Int

from saelab.cache.batches import permute

REACH = 6  # superblocks before its own, and after it, that a deck draws from
HELD = REACH + 2  # superblocks' worth of tokens in memory, the one that is made included
LEAST = HELD // 2  # pictures, of which twice as many are HELD superblocks of one picture
OF_TOKENS = 0x5EED  # sets the order of a deck apart from the order of pictures
OF_SHARES = 0xDEA1  # ... and from which of a picture's tokens go to which deck


def count_superblocks(images: int, pictures: int) -> int:
    """Into how many superblocks an epoch of so many images is cut, where twice `pictures` are to be in memory."""
    return 1 if images <= 2 * pictures else -(-images // (2 * pictures // HELD))


def mixing(superblocks: int) -> dict[str, int]:
    """What recipes say of the order beside the number of superblocks: how many of them a deck draws from."""
    return {"mixed": 2 * REACH + 1} if superblocks > 1 else {}


class Decks:
    """The decks of one layer: as many in an epoch as there are superblocks, numbered on from one epoch to the next.

    `pictures`: of each superblock of an epoch; `tokens`: of each picture. Every token is in one deck of each epoch.
    Where all pictures are in one superblock, a deck is that superblock.
    """

    def __init__(self, pictures: Int[np.ndarray, "superblocks"], tokens: int, seed: int) -> None:
        self.pictures, self.tokens, self.seed = np.asarray(pictures, dtype=np.int64), tokens, seed
        self.superblocks, self.count = self.pictures * tokens, len(pictures)  # tokens of each superblock
        self.reach = REACH if self.count > 1 else 0
        self.deal = lru_cache(2 * REACH + 2)(self._deal)

    @cached_property
    def sizes(self) -> Int[np.ndarray, "decks"]:
        """Tokens of each deck of an epoch."""
        sizes, shares = np.zeros(self.count, dtype=np.int64), 2 * self.reach + 1
        for share in range(shares):
            np.add.at(sizes, self._deck(np.arange(self.count), share), -(-(self.superblocks - share) // shares))
        return sizes

    def _deck(self, inside: Any, share: int) -> Any:
        """The deck of an epoch that a share of a superblock goes to. Beyond an edge of the epoch, it is mirrored there:
        so all shares have a deck, and decks at the edges are as large as others.
        """
        deck = (inside + share - self.reach) % (2 * self.count)
        return np.minimum(deck, 2 * self.count - 1 - deck)

    def _deal(self, number: int) -> dict[int, Int[np.ndarray, "share"]]:
        """The decks that a superblock's tokens go to, ascending, and which tokens each is dealt.

        Tokens are dealt one by one, all those of a picture in a row and in random order: its share in each deck is the
        same, give or take one.
        """
        inside = number % self.count
        if not self.reach:
            return {number: np.arange(self.superblocks[inside])}
        generator = np.random.Generator(np.random.PCG64([self.seed & 0xFFFFFFFF, OF_SHARES, number]))
        first = np.arange(self.pictures[inside])[:, None] * self.tokens
        order = generator.permuted(first + np.arange(self.tokens), axis=1).ravel()
        found: dict[int, list[np.ndarray]] = {}
        for share in range(2 * self.reach + 1):
            deck = number - inside + int(self._deck(inside, share))
            found.setdefault(deck, []).append(order[share :: 2 * self.reach + 1])
        return {deck: np.concatenate(found[deck]) for deck in sorted(found)}

    def drawn_from(self, number: int) -> range:
        """The superblocks that a deck draws from."""
        inside = number % self.count
        first, last = max(0, inside - self.reach), min(self.count - 1, inside + self.reach)
        return range(number - inside + first, number - inside + last + 1)

    def hand(self, number: int) -> Iterator[tuple[int, Int[np.ndarray, "share"]]]:
        """A deck's tokens before it is shuffled: superblock by superblock, the places of those that it was dealt."""
        yield from ((superblock, self.deal(superblock)[number]) for superblock in self.drawn_from(number))

    def draw(self, number: int, first: int, last: int) -> Int[np.ndarray, "part"]:
        """The places in a deck's hand of the tokens first..last-1 of the shuffled deck, ascending."""
        places = np.arange(first, last, dtype=np.uint64)
        return np.sort(permute(places, int(self.sizes[number % self.count]), self.seed ^ OF_TOKENS, number))

    @property
    def most_held(self) -> int:
        """Tokens that are in memory at once, at most, while one superblock is made: of HELD superblocks."""
        if not self.reach:
            return int(self.superblocks.sum())
        number = np.arange(2 * self.count)  # of decks: two epochs, since an epoch's end may hold more
        come = np.tile(self.superblocks, 2 + self.reach + 1).cumsum()[number + self.reach + 1]
        gone = np.tile(self.sizes, 2).cumsum() - self.sizes[number % self.count]  # with the decks before
        return int((come - gone).max())

    @property
    def same_picture_pairs(self) -> float:
        """Expected share of a deck's pairs of tokens that are of one picture, where REACH decks are on both sides.

        Of a picture's T tokens it has T / shares, rounded up or down. A deck nearer to an edge of the epoch draws from
        fewer superblocks, and has up to about twice as many such pairs.
        """
        shares = 2 * self.reach + 1
        least, more = divmod(self.tokens, shares)
        pairs = (shares - more) * least * (least - 1) + more * (
            least + 1
        ) * least  # of a picture, summed over its decks
        size = self.superblocks.mean()
        return float(self.pictures.mean() * pairs / max(1.0, size * (size - 1)))
