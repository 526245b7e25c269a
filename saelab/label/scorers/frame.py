"""Permuting a unit's activations over images, for all units at once.

Take a random order of the images, and let a unit's r-th largest activation fall on the r-th image of that order. For
every unit this is a uniformly random permutation of its activations over the images, so one order serves all units,
and much becomes common to them: units that fire on k images or more have the same positives, a unit's candidates for
contrasts are a run of ranks, and where a unit is 0 (or at its lowest) the ranks beyond need not be looked at. Units
that fire on fewer have fewer positives, as in mining.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import TypeVar

import torch
from jaxtyping import Float, Int
from torch import Tensor

from saelab.acts import Acts, Columns, columns, pick
from saelab.label.mine import candidate_interval, finite_units, fires_on, positive_images, top_images
from saelab.label.mine.cells import Cells
from saelab.label.mine.contrast import choose_contrasts
from saelab.label.mine.lookup import TABLE, Scores
from saelab.label.mine.status import extremes
from saelab.label.scorers.evidence import Evidence

T = TypeVar("T")


@dataclass(frozen=True)
class Block:
    """Units with about as many activations above their lowest, which are all that differs between images."""

    units: Int[Tensor, "some"]
    sorted: Float[Tensor, "some ranks"]  # activations, largest first; every rank beyond holds `lowest`
    lowest: Float[Tensor, "some"]


class Frame:
    """What of the evidence a permutation leaves alone."""

    def __init__(self, evidence: Evidence, block: int = 256) -> None:
        self.evidence = evidence
        acts = columns(evidence.acts)
        self.images = evidence.n_images
        self.k = evidence.positive_ids.shape[1]
        self.known = finite_units(acts)
        self.fires = fires_on(acts)  # images that are somebody's positives, were k large enough
        self.lowest, _ = extremes(acts)
        self.above = count_above(acts, self.lowest)  # images on which a unit is above its lowest
        order = self.above.argsort(stable=True)
        self.blocks = [self._block(acts, units) for units in order[self.known[order]].split(block) if len(units)]

    @cached_property
    def ranges(self) -> tuple[Int[Tensor, "ranges 3"], Int[Tensor, "units"]]:
        """The runs of ranks [first, last) that hold some unit's contrast candidates, and each unit's among them.

        The third number is -1, save for units whose lowest activation fires and of whose positives some are at it:
        these are taken by image id, so they lie anywhere in the run. There it is the rank from which they are.
        """
        e = self.evidence
        interval = candidate_interval(e.acts, e.rule.rule, e.rule.quantile)
        acts = columns(e.acts)
        below = torch.nextafter(interval.low, torch.full_like(interval.low, -torch.inf))
        positives = self.fires.clamp(max=self.k)
        tied = positives > self.above
        first = torch.maximum(count_above(acts, interval.high), torch.where(tied, self.above, positives))
        ends = torch.stack([first, count_above(acts, below), self.above.masked_fill(~tied, -1)], dim=1)
        ends[~self.known] = torch.tensor([self.images, self.images, -1], device=ends.device)  # an empty run
        return ends.unique(dim=0, return_inverse=True)

    def fills(self, k: int) -> tuple[Int[Tensor, "fills 2"], Int[Tensor, "units"]]:
        """How many positives units have, at most k, and on how many of these they are above their lowest.

        The pairs that occur, and each unit's place among them. (The two differ where a unit's lowest activation fires.)
        """
        fires = self.fires.clamp(max=k)
        return torch.stack([fires, torch.minimum(fires, self.above)], dim=1).unique(dim=0, return_inverse=True)

    def heights(self, k: int) -> tuple[Int[Tensor, "heights"], Int[Tensor, "units"]]:
        """On how many of its k strongest images a unit is above its lowest: the numbers that occur, and each unit's."""
        return self.above.clamp(max=k).masked_fill(~self.known, k).unique(return_inverse=True)

    @cached_property
    def near(self) -> Callable[[Int[Tensor, "images"]], Int[Tensor, "images near"]] | None:
        """The neighbours of images that mining looked through first, where it did so in cells; -1 beyond them."""
        e = self.evidence
        if not e.rule.in_cells(self.images):
            return None
        scores = Scores(e.image_emb.float(), e.groups, None)
        cells = Cells(scores.space, e.rule.seed)
        return lambda ids: cells.near(ids, TABLE, scores.strike)[1]

    @cached_property
    def sorted_acts(self) -> Float[Tensor, "images units"]:
        """All activations, each unit's largest first; written out whole, for scorers without a short cut."""
        shape, kind = (self.images, self.evidence.n_units), self.lowest.dtype
        dtype = torch.float64 if kind == torch.float64 else torch.float32
        out = torch.full(shape, torch.nan, dtype=dtype, device=self.evidence.image_emb.device)
        for block in self.blocks:
            out[:, block.units] = block.lowest.to(dtype)
            out[: block.sorted.shape[1], block.units] = block.sorted.T
        return out

    def _block(self, acts: Acts, units: Tensor) -> Block:
        ranks = int(self.above[units].max().clamp(min=1))
        return Block(units, top_images(pick(acts, units), ranks)[1], self.lowest[units])


class Draw:
    """One random order of the images, and what follows from it for all units."""

    def __init__(self, frame: Frame, order: Int[Tensor, "images"]) -> None:
        self.frame, self.order = frame, order

    @cached_property
    def rank(self) -> Int[Tensor, "images"]:
        """Each image's place in the order."""
        return torch.empty_like(self.order).scatter_(0, self.order, torch.arange(len(self.order)).to(self.order))

    @cached_property
    def evidence(self) -> Evidence:
        """The evidence with permuted activations, mined anew by the functions that mined the units: exact and slow."""
        e = self.frame.evidence
        more = {name: getattr(e, name) for name in ("host_emb", "concepts", "filled_emb", "template_emb")}
        acts = self.frame.sorted_acts[self.rank]
        ids, values = positive_images(acts, self.frame.k, self.rank)
        given = (acts, e.image_emb, ids, e.rule, e.groups, e.host_emb)
        contrasts = choose_contrasts(*given, apart=True, check=False)[0]
        return Evidence(
            acts, e.image_emb, e.label_emb, ids, values, contrasts, e.rule, e.groups, ties=self.rank, **more
        )

    def positives(self, fills: Int[Tensor, "fills 2"], k: int) -> Int[Tensor, "fills k"]:
        """The positives of units of each of `Frame.fills`, -1 where there are none left."""
        ranks = torch.arange(k, device=self.order.device)
        return self.strongest(fills[:, 1], k).masked_fill(ranks >= fills[:, :1], -1)

    def strongest(self, heights: Int[Tensor, "heights"], k: int) -> Int[Tensor, "heights k"]:
        """The k strongest images of units above their lowest on so many: by rank, then the lowest ids of the others."""
        ids = torch.arange(k, device=self.order.device)
        free = torch.where(self.rank[:k] >= heights[:, None], ids, k).sort(dim=1).values  # k of them are enough
        tail = free.gather(1, (ids - heights[:, None]).clamp(min=0))
        return torch.where(ids < heights[:, None], self.order[:k], tail)

    def contrasts(self, ids: Int[Tensor, "images"]) -> Int[Tensor, "images ranges"]:
        """The contrast (image id) of each given image (-1: none) for each run of candidate ranks; -1 if none.

        Needs a rule whose candidates depend on ranks alone (`by_rank`). Where mining looked in cells, so does this: an
        exact search would give the null better contrasts than the unit had.
        """
        found = self._among_all(ids)
        return found if self.frame.near is None else self._in_cells(ids, found)

    def _in_cells(
        self, ids: Int[Tensor, "images"], exact: Int[Tensor, "images ranges"]
    ) -> Int[Tensor, "images ranges"]:
        """The nearest candidate among an image's neighbours in cells; the exact one where none of them is one."""
        assert self.frame.near is not None
        near = self.frame.near(ids.clamp(min=0))
        (first, last, tied), found = self.frame.ranges[0].T, exact.clone()
        uneven = (tied >= 0).nonzero()[:, 0]
        taken = self.strongest(tied[uneven], self.frame.k)
        for column in near.T.flip(0)[..., None]:  # nearest last, so that it stays
            rank = self.rank[column]
            allowed = (rank >= first) & (rank < last) & (column >= 0)
            allowed[:, uneven] &= ~(column[..., None] == taken).any(dim=2)
            found = torch.where(allowed, column, found)
        return found.masked_fill_((ids < 0)[:, None], -1)

    def _among_all(self, ids: Int[Tensor, "images"]) -> Int[Tensor, "images ranges"]:
        """The exact contrasts."""
        frame, e = self.frame, self.frame.evidence
        ranges, _ = frame.ranges
        cosines = e.image_emb[ids] @ e.image_emb.T
        own = ids[:, None] == torch.arange(frame.images, device=ids.device)
        if e.groups is not None:
            own = own | (e.groups[ids, None] == e.groups)
        cosines = cosines.masked_fill_(own | (ids < 0)[:, None], -torch.inf)[:, self.order]
        if bool((ranges[:, 1:] == torch.tensor([frame.images, -1]).to(ranges)).all()):  # running maxima do it
            best, rank = cosines.flip(1).cummax(dim=1)
            start = (frame.images - 1 - ranges[:, 0]).clamp(min=0)
            found = frame.images - 1 - rank[:, start]
            none = (ranges[:, 0] >= frame.images) | (best[:, start] == -torch.inf)
            return self.order[found].masked_fill(none, -1)
        out = torch.full((len(ids), len(ranges)), -1, device=cosines.device)
        for i, (first, last, tied) in enumerate(ranges.tolist()):
            if first < last:
                candidates = cosines[:, first:last]
                if tied >= 0:
                    taken = self.rank[self.strongest(ranges[i : i + 1, 2], frame.k)[0]] - first
                    candidates = candidates.clone()
                    candidates[:, taken[(taken >= 0) & (taken < last - first)]] = -torch.inf
                best, rank = candidates.max(dim=1)
                out[:, i] = self.order[rank + first].masked_fill(best == -torch.inf, -1)
        return out


def once(compute: Callable[[Draw], T]) -> Callable[[Draw], T]:
    """`compute`, done once for each draw: blocks of units ask for the same draw one after the other."""
    last: list[tuple[Draw, T]] = []

    def of(draw: Draw) -> T:
        if not last or last[0][0] is not draw:
            last[:] = [(draw, compute(draw))]
        return last[0][1]

    return of


def by_rank(evidence: Evidence) -> bool:
    """Whether a positive's contrast depends only on its own cosines and on the candidates' run of ranks."""
    return evidence.rule.reuse and evidence.rule.rule in ("below_mean", "below_quantile", "zero")


def count_above(acts: Acts, threshold: Float[Tensor, "units"]) -> Int[Tensor, "units"]:
    """On how many images each unit's activation is above its threshold (none where that is NaN)."""
    if isinstance(acts, Columns):
        stored = acts.total(acts.values > threshold[acts.unit_of_entry]).long()
        return stored + (acts.images - acts.counts) * (threshold < 0)
    return (acts > threshold).sum(dim=0)
