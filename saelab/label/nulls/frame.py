"""Permuting a unit's activations over images, for all units at once.

Take a random order of the images, and let a unit's r-th largest activation fall on the r-th image of that order. For
every unit this is a uniformly random permutation of its activations over the images, so one order serves all units,
and much becomes common to them: in the frame where activations are sorted and the *embeddings* are permuted, all
units have the same positives (the first k), a unit's candidates for contrasts are a run of ranks, and where a unit is
0 (or at its lowest) the ranks beyond need not be looked at.
"""

from dataclasses import dataclass
from functools import cached_property

import torch
from jaxtyping import Float, Int
from torch import Tensor

from saelab.columns import Acts, Columns, columns, pick
from saelab.label.assign.evidence import Evidence
from saelab.label.mine import candidate_interval, contrast_images, top_images
from saelab.label.mine.status import extremes


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
        self.known = evidence.positive_ids[:, 0] >= 0  # finite units
        low, _ = extremes(acts)
        above = count_above(acts, low)
        order = above.masked_fill(~self.known, 0).argsort(stable=True)
        order = order[self.known[order]]
        self.blocks = [self._block(acts, units, above, low) for units in order.split(block)] if len(order) else []

    @cached_property
    def ranges(self) -> tuple[Int[Tensor, "units"], Int[Tensor, "units"]]:
        """First and past-the-last rank of each unit's contrast candidates under the evidence's rule."""
        rule = self.evidence.rule
        interval = candidate_interval(self.evidence.acts, rule.rule, rule.quantile)
        acts = columns(self.evidence.acts)
        below = torch.nextafter(interval.low, torch.full_like(interval.low, -torch.inf))
        return count_above(acts, interval.high), count_above(acts, below)

    @cached_property
    def sorted_acts(self) -> Float[Tensor, "images units"]:
        """All activations, each unit's largest first; written out whole, for scorers without a short cut."""
        out = torch.full((self.images, self.evidence.n_units), torch.nan, device=self.evidence.image_emb.device)
        for block in self.blocks:
            out[:, block.units] = block.lowest
            out[: block.sorted.shape[1], block.units] = block.sorted.T
        return out

    def _block(self, acts: Acts, units: Tensor, above: Tensor, low: Tensor) -> Block:
        ranks = int(above[units].max().clamp(min=1))
        return Block(units, top_images(pick(acts, units), ranks)[1], low[units])


class Draw:
    """One random order of the images, and what follows from it for all units."""

    def __init__(self, frame: Frame, order: Int[Tensor, "images"]) -> None:
        self.frame, self.order = frame, order

    @cached_property
    def image_emb(self) -> Float[Tensor, "images d_text"]:
        """The permuted embeddings."""
        return self.frame.evidence.image_emb[self.order]

    @cached_property
    def evidence(self) -> Evidence:
        """The whole permuted evidence, mined anew by the very functions that mined the units: exact, and slow."""
        e, frame = self.frame.evidence, self.frame
        groups, host = self._permuted(e.groups), self._permuted(e.host_emb)
        first = torch.arange(frame.k, device=self.order.device)
        positives = torch.where(frame.known[:, None], first, -1)
        contrasts, _ = contrast_images(
            frame.sorted_acts, self.image_emb, positives, groups=groups, host_emb=host, **e.rule.as_arguments()
        )
        return e.but(
            acts=frame.sorted_acts,
            image_emb=self.image_emb,
            positive_ids=positives,
            contrast_ids=contrasts,
            groups=groups,
            host_emb=host,
            concepts=self._permuted(e.concepts),
        )

    @cached_property
    def contrasts(self) -> tuple[Int[Tensor, "k ranges"], Int[Tensor, "units"]]:
        """For each positive and each range of candidate ranks that occurs: the rank of its contrast, -1 if none.

        The second tensor is each unit's column. Needs a rule whose candidates depend on ranks alone (`by_rank`).
        """
        frame = self.frame
        cosines = self.image_emb[: frame.k] @ self.image_emb.T
        cosines.fill_diagonal_(-torch.inf)
        groups = self._permuted(frame.evidence.groups)
        if groups is not None:
            cosines.masked_fill_(groups[: frame.k, None] == groups, -torch.inf)
        ranges, column = torch.stack(frame.ranges, dim=1).unique(dim=0, return_inverse=True)
        if bool((ranges[:, 1] == frame.images).all()):  # candidates are the weakest images: running maxima do it
            best, rank = cosines.flip(1).cummax(dim=1)
            start = (frame.images - 1 - ranges[:, 0]).clamp(min=0)
            found = frame.images - 1 - rank[:, start]
            none = (ranges[:, 0] >= frame.images) | (best[:, start] == -torch.inf)
            return found.masked_fill(none, -1), column
        found = torch.full((frame.k, len(ranges)), -1, device=cosines.device)
        for i, (first, last) in enumerate(ranges.tolist()):
            if first < last:
                best, rank = cosines[:, first:last].max(dim=1)
                found[:, i] = (rank + first).masked_fill(best == -torch.inf, -1)
        return found, column

    def _permuted(self, rows: Tensor | None) -> Tensor | None:
        return None if rows is None else rows[self.order]


def by_rank(evidence: Evidence) -> bool:
    """Whether a positive's contrast depends only on its own cosines and on the candidates' run of ranks."""
    return evidence.rule.reuse and evidence.rule.rule in ("below_mean", "below_quantile", "zero")


def count_above(acts: Acts, threshold: Float[Tensor, "units"]) -> Int[Tensor, "units"]:
    """On how many images each unit's activation is above its threshold (none where that is NaN)."""
    if isinstance(acts, Columns):
        stored = acts.total(acts.values > threshold[acts.unit_of_entry]).long()
        return stored + (acts.images - acts.counts) * (threshold < 0)
    return (acts > threshold).sum(dim=0)
