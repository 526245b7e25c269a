"""The tokens of a stream that are in memory: one tensor a layer, whose rows pass from used decks to new superblocks."""

from collections.abc import Iterator, Mapping, Sequence
from itertools import pairwise

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from saelab.cache.decks import Decks
from saelab.cache.ranks import Ranks

EXCHANGED = 1 << 20  # bytes that a process gives the others at once


class Buffer:
    """Rows for the tokens of some superblocks, for the decks from `at` on.

    `reserve`, `exchange` and `advance` are called by the thread that trains. Between them, the thread of the host may
    write to the rows of the superblock that was reserved last.
    """

    def __init__(self, decks: Mapping[str, Decks], widths: Mapping[str, tuple[int, torch.dtype]], device: torch.device):
        """`widths`: each layer's d_in and dtype."""
        self.decks, self.device = decks, device
        self.any = next(iter(decks.values()))  # superblocks have the same numbers in all layers
        # One row more: what no deck will want is written there.
        self.tokens = {
            layer: torch.empty(decks[layer].most_held + 1, d_in, dtype=kind, device=device)
            for layer, (d_in, kind) in widths.items()
        }
        self.restart(0)

    def restart(self, at: int, cropped: bool = False) -> None:
        """Forget everything, for the decks from `at` on; `cropped`: of crops of the pictures, not of whole ones."""
        self.at, self.cropped = at, cropped
        self.ready = self.any.drawn_from(at).start if self.any.reach else 0  # the first superblock that isn't made
        self._free = {layer: np.arange(own.most_held) for layer, own in self.decks.items()}
        self._rows: dict[int, dict[str, np.ndarray]] = {}
        self._hands: dict[str, np.ndarray] = {}

    def move(self, to: int) -> bool:
        """Whether a deck is drawn from what is here, after one step forward at most."""
        if not self.any.reach:
            self.at = to  # one superblock, which every deck is
        elif self.at + 1 == to and self.ready >= self.any.drawn_from(self.at).stop:
            self.advance()
        return self.at == to

    def reserve(self, number: int) -> None:
        """Give rows to those tokens of a superblock that decks from `at` on will want."""
        self._rows[self._key(number)] = {}
        for layer, decks in self.decks.items():
            waste = decks.most_held
            rows = np.full(int(decks.superblocks[number % decks.count]), waste, dtype=np.int64)
            for deck, places in decks.deal(number).items():
                if deck >= self.at or not decks.reach:
                    rows[places], self._free[layer] = np.split(self._free[layer], [len(places)])
            self._rows[self._key(number)][layer] = rows

    def rows(self, number: int, layer: str) -> Int[np.ndarray, "tokens"]:
        """Where the tokens of a superblock are, in their order."""
        return self._rows[self._key(number)][layer]

    def write(self, layer: str, number: int, first: int, rows: Float[Tensor, "tokens d_in"]) -> None:
        """Tokens of a superblock, from its `first` on."""
        where = torch.from_numpy(self.rows(number, layer)[first : first + len(rows)]).to(rows.device)
        self.tokens[layer].index_copy_(0, where, rows)

    def exchange(self, layer: str, number: int, edges: Sequence[int], ranks: Ranks) -> None:
        """Write the superblock's tokens that the other processes have, and give them those that this one has.

        `edges`: process r has the tokens edges[r]..edges[r + 1] - 1. All processes are at one deck, so they keep the
        same tokens.
        """
        tokens, rows = self.tokens[layer], self.rows(number, layer)
        at_once = max(1, EXCHANGED // tokens[0].nbytes)
        kept = tokens.new_empty(at_once, tokens.shape[1])
        for rank, (first, last) in enumerate(pairwise(edges)):
            for at in range(first, last, at_once):
                where = torch.from_numpy(rows[at : min(at + at_once, last)]).to(tokens.device)
                sent = ranks.copy_from(rank, torch.index_select(tokens, 0, where, out=kept[: len(where)]))
                if rank != ranks.rank:
                    tokens.index_copy_(0, where, sent)

    def take(self, layer: str, places: Int[np.ndarray, "batch"]) -> Float[Tensor, "batch d_in"]:
        """Tokens of the deck `at` by their places in its hand."""
        if layer not in self._hands:
            self._hands[layer] = self._hand(layer)
        return self._read(layer, self._hands[layer][places])

    def superblock(self, layer: str, number: int, chunk: int) -> Iterator[Float[Tensor, "chunk d_in"]]:
        """The tokens of a superblock of which no deck has been used yet, in their order, `chunk` at once."""
        rows = self.rows(number, layer)
        yield from (self._read(layer, rows[i : i + chunk]) for i in range(0, len(rows), chunk))

    def advance(self) -> None:
        """Go on to the next deck: the rows of the deck `at` are free."""
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)  # the stream that will write to them is another than the one that reads
        for layer in self.decks:
            self._free[layer] = np.concatenate([self._free[layer], self._hand(layer)])
        self._hands.clear()
        self.at += 1
        for number in [number for number in self._rows if number < self.any.drawn_from(self.at).start]:
            del self._rows[number]

    def _hand(self, layer: str) -> Int[np.ndarray, "hand"]:
        hand = self.decks[layer].hand(self.at)
        return np.concatenate([self.rows(number, layer)[places] for number, places in hand])

    def _read(self, layer: str, rows: np.ndarray) -> Float[Tensor, "rows d_in"]:
        tokens = self.tokens[layer]
        return tokens[torch.from_numpy(rows).to(tokens.device)].float()

    def _key(self, number: int) -> int:
        return number if self.any.reach else 0
