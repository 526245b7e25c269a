"""Units held against truth: what AUPRC, F1, IoU and AUROC need to know, where equal images count as one item.

A sparse unit is silent on nearly all images, and all of these share one activation: they are one item, however many
they are. So time and memory follow what is stored, not the number of images.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from saelab.acts import Acts, Columns, columns, pick, shape

AT_ONCE = 1 << 20  # items of a block of units


@dataclass(frozen=True)
class Items:
    """Some units' activations, largest first, and how often the truth holds there."""

    values: Float[Tensor, "units items"]  # descending; -inf where a unit has no more
    images: Float[Tensor, "units items"]  # how many images an item stands for; float64, 0 where a unit has no more
    true: Float[Tensor, "units items"]  # on how many of these the unit's truth holds; float64
    finite: Bool[Tensor, "units"]  # no activation is NaN or infinite

    @classmethod
    def of(
        cls,
        acts: Acts,
        member: Bool[Tensor, "images concepts"],
        concept: Int[Tensor, "units"],
        holds: Int[Tensor, "concepts"] | None = None,
    ) -> "Items":
        """Of all units of `acts`; the truth of unit u is `member[:, concept[u]]`.

        `holds`: on how many images each concept is true, where that is known already.
        """
        acts = columns(acts)
        if isinstance(acts, Columns):
            return cls._of_columns(acts, member, concept, member.sum(dim=0) if holds is None else holds)
        if not len(acts):  # an item of no image, as a sparse unit has there
            nothing = torch.zeros(acts.shape[1], 1, dtype=torch.float64, device=acts.device)
            return cls(torch.full_like(nothing, -torch.inf), nothing, nothing, nothing[:, 0] == 0)
        values, place = acts.T.sort(dim=1, descending=True)
        true = member[:, concept].T.bool().gather(1, place).double()
        return cls(values, torch.ones_like(true), true, acts.isfinite().all(dim=0))

    @classmethod
    def _of_columns(cls, acts: Columns, member: Tensor, concept: Tensor, total: Tensor) -> "Items":
        counts = acts.counts
        place = torch.arange(int(counts.max()) if len(counts) else 0, device=acts.device)
        there = place < counts[:, None]
        entry = (acts.starts[:-1, None] + place)[there]
        shown = torch.zeros(there.shape, dtype=torch.float64, device=acts.device)
        owner = concept[:, None].expand(there.shape)[there]
        shown[there] = member[acts.rows[entry], owner].double()
        values = torch.full(there.shape, -torch.inf, dtype=acts.values.dtype, device=acts.device)
        values[there] = acts.values[entry]
        finite = (values.isfinite() | ~there).all(dim=1)
        rest = (acts.images - counts).double()[:, None]  # the images that are not stored, as one item
        holds = total[concept].double()[:, None] - shown.sum(dim=1, keepdim=True)
        zero = torch.zeros_like(rest, dtype=values.dtype).masked_fill_(rest == 0, -torch.inf)
        values, order = torch.cat([values, zero], dim=1).sort(dim=1, descending=True)
        images = torch.cat([there.double(), rest], dim=1).gather(1, order)
        return cls(values, images, torch.cat([shown, holds], dim=1).gather(1, order), finite)

    @property
    def holds(self) -> Float[Tensor, "units"]:
        """On how many images the truth holds, in float64."""
        return self.true.sum(dim=1)

    def average_precision(self) -> Float[Tensor, "units"]:
        """`metrics.auprc`."""
        true, called = self.true.cumsum(dim=1), self.images.cumsum(dim=1)
        last = self._last()
        before = torch.where(last, true, 0).cummax(dim=1).values.roll(1, dims=1)
        before[:, 0] = 0
        gained = torch.where(last, true - before, 0)
        average = (gained * true / called.clamp(min=1)).sum(dim=1) / self.holds
        return average.masked_fill(self._lost(), torch.nan)

    def best_threshold(self) -> Float[Tensor, "units"]:
        """`metrics.best_f1_threshold`."""
        true, called = self.true.cumsum(dim=1), self.images.cumsum(dim=1)
        score = torch.where(self._last(), 2 * true / (called + self.holds[:, None]), -1)
        threshold = self.values.gather(1, score.argmax(dim=1, keepdim=True))[:, 0]
        return threshold.masked_fill(self._lost(), torch.nan)

    def agreement(self, threshold: Float[Tensor, "units"]) -> tuple[Float[Tensor, "units"], Float[Tensor, "units"]]:
        """Images that are called (from the threshold on) and true, and that are either; NaN, undefined, in the first.

        It is where the truth holds nowhere, where the threshold is NaN, and for a unit that is not finite.
        """
        called = (self.values >= threshold[:, None]) & (self.images > 0)
        both = (self.true * called).sum(dim=1)
        either = (self.images * called).sum(dim=1) + self.holds - both
        return both.masked_fill(self._lost() | threshold.isnan(), torch.nan), either

    def area(self) -> Float[Tensor, "units"]:
        """Area under the ROC curve, ties counting half; NaN where the truth holds nowhere, or everywhere."""
        true, seen = self.true.cumsum(dim=1), self.images.cumsum(dim=1)
        last = self._last()
        earlier = torch.stack([true, seen], dim=0).masked_fill(~last, 0).cummax(dim=2).values.roll(1, dims=2)
        earlier[:, :, 0] = 0
        hits, false = true - earlier[0], (seen - earlier[1]) - (true - earlier[0])  # of each run of equals
        holds = self.holds[:, None]
        ahead = torch.where(last, false * (earlier[0] + hits / 2), 0).sum(dim=1)
        lacks = self.images.sum(dim=1) - holds[:, 0]
        return (ahead / (holds[:, 0] * lacks)).masked_fill(~self.finite, torch.nan)

    def _last(self) -> Bool[Tensor, "units items"]:
        """Whether an item is the last of its run of equals: a threshold takes all of these or none."""
        last = torch.ones_like(self.values, dtype=torch.bool)
        last[:, :-1] = self.values[:, 1:] != self.values[:, :-1]
        return last

    def _lost(self) -> Bool[Tensor, "units"]:
        return (self.holds == 0) | ~self.finite


def alike(acts: Acts) -> Iterator[Int[Tensor, "some"]]:
    """Units of about equally many items, as many as make `AT_ONCE` numbers where each is as wide as the widest."""
    acts = columns(acts)
    images, units = shape(acts)
    if not isinstance(acts, Columns):
        yield from torch.arange(units, device=acts.device).split(max(1, AT_ONCE // max(images, 1)))
        return
    order = acts.counts.argsort(descending=True, stable=True)
    first = 0
    while first < units:
        step = max(1, AT_ONCE // (int(acts.counts[order[first]]) + 1))
        yield order[first : first + step]
        first += step


def of_blocks(
    acts: Acts,
    member: Bool[Tensor, "images concepts"],
    concept: Int[Tensor, "units"],
    holds: Int[Tensor, "concepts"] | None = None,
) -> Iterator[tuple[Int[Tensor, "some"], Items]]:
    """Which units, and their items, a block at a time. `holds` as in `Items.of`."""
    holds = member.sum(dim=0) if holds is None else holds  # once: every block asks for it
    for some in alike(acts):
        yield some, Items.of(pick(acts, some), member, concept[some], holds)
