"""Decks: how a stream mixes the tokens of neighbouring superblocks, as a pure function of seed and numbers.

The tokens of a superblock are dealt out, picture by picture, to the decks of its neighbourhood; an epoch's decks are
shuffled and used one after the other. So a deck is as large as a superblock, but its pictures are those of thirteen.
Memory holds eight superblocks' worth: what a deck has used up is gone, and what lies far ahead has yet to come.
"""

import itertools
from collections.abc import Iterator
from functools import cached_property, lru_cache
from typing import Any

import numpy as np
from jaxtyping import Float, Int

from saelab.cache.batches import permute

REACH = 6  # superblocks before its own, and after it, that a deck draws from
HELD = REACH + 2  # superblocks' worth of tokens in memory, the one that is made included
LEAST = HELD // 2  # pictures, of which twice as many are HELD superblocks of one picture
OF_TOKENS = 0x5EED  # sets the order of a deck apart from the order of pictures
OF_SHARES = 0xDEA1  # ... and from which of a picture's tokens go to which deck


def count_superblocks(images: int, pictures: int, anew: bool = False) -> int:
    """Into how many superblocks an epoch of so many images is cut, where twice `pictures` are to be in memory.

    `anew`: each epoch has tokens of its own, so its superblocks follow those of the last one even where all fit.
    """
    if images <= 2 * pictures:
        return HELD if anew else 1
    return -(-images // (2 * pictures // HELD))


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

    def same_picture_pairs(self, batch: int) -> float:
        """Expected share of a batch's pairs of tokens that are of one picture: mean over the batches of an epoch.

        Tokens of a deck are in random order, so a batch with n of a deck's D tokens has n (n - 1) / D (D - 1) of that
        deck's pairs, and of those between two decks the product of its shares in them.
        """
        ends, sizes, pairs = self.sizes.cumsum(), self.sizes.astype(np.float64), 0.0
        starts = np.arange(ends[-1] // batch) * batch
        first, last = (np.searchsorted(ends, starts + token, side="right") for token in (0, batch - 1))
        for start, deck, stop in zip(starts, first, last + 1, strict=True):
            size, end = sizes[deck:stop], ends[deck:stop]
            taken = np.minimum(end, start + batch) - np.maximum(end - size, start)
            pairs += (taken * (taken - 1) / np.maximum(1, size * (size - 1)) * self._pairs[deck:stop, 0]).sum()
            share = taken / size
            for gap in range(1, min(len(size), 2 * self.reach + 1)):
                pairs += 2 * (share[:-gap] * share[gap:] * self._pairs[deck : stop - gap, gap]).sum()
        return float(pairs / max(1, len(starts) * batch * (batch - 1)))

    @cached_property
    def _pairs(self) -> Float[np.ndarray, "decks offsets"]:
        """Pairs of tokens of one picture, of which one is in a deck and the other in it, the next one, the one after
        that, ...; within a deck each counts in both orders.
        """
        shares = 2 * self.reach + 1
        found = np.zeros((self.count, shares))
        for size in np.unique(self.pictures):
            own = np.flatnonzero(self.pictures == size)
            before = (np.arange(shares) - np.arange(size)[:, None] * self.tokens) % shares  # dealt to others
            dealt = (self.tokens - before + shares - 1) // shares  # [pictures, shares]
            pairs = dealt.T @ dealt - np.diag(dealt.sum(0))
            for one, other in itertools.product(range(shares), repeat=2):
                deck, later = self._deck(own, one), self._deck(own, other)
                ordered = later >= deck
                np.add.at(found, (deck[ordered], (later - deck)[ordered]), pairs[one, other])
        return found
