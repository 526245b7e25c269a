"""Best scores of `contrast_evidence` under permutation, from ranks, for all units at once."""

from collections.abc import Callable

import torch
from jaxtyping import Float
from torch import Tensor

from saelab.label.assign import combined
from saelab.label.mine import column_means
from saelab.label.nulls.frame import Block, Draw, Frame, once


def evidence(frame: Frame) -> Callable[[Draw, Block], Float[Tensor, "some"]]:
    """What the scorer gives on permuted evidence, its best over the vocabulary; NaN where there is none.

    Needs contrasts that depend on ranks alone (`frame.by_rank`). Ranks beyond those at which a unit is above its
    lowest all hold the same entry, so only the ranks before them meet the labels.
    """
    e = frame.evidence
    z, constant, spread = combined.standard(e.sims)
    readings, worth = combined.memberships(z), combined.discount(spread)
    means, bases = column_means(e.acts), combined.baselines(e.acts)
    _, column = frame.ranges
    entries: dict[int, dict[bool, tuple[Tensor, ...]]] = {}

    @once
    def pairs(draw: Draw) -> tuple[Tensor, ...]:
        """Positives, each one's contrasts by runs of ranks, and z of both, each image once."""
        positives = draw.order[: frame.k]
        found = draw.contrasts(positives)
        distinct, place = torch.cat([positives[:, None], found], dim=1).unique(return_inverse=True)
        return place[:, :1], place[:, 1:], found >= 0, z.index_select(0, distinct.clamp(min=0))

    @once
    def permuted(draw: Draw) -> list[tuple[Tensor, Tensor]]:
        return [(m.values.index_select(0, draw.order), m.squares.index_select(0, draw.order)) for m in readings]

    def paired(draw: Draw, block: Block, firing: Tensor) -> Tensor:
        """`combined.paired` as one product: the units share their positives and most of their contrasts."""
        positive, contrast, there, seen = pairs(draw)
        runs = column[block.units]
        valid = (firing & there[:, runs].T).to(z.dtype)
        weight = valid / (2 * valid.sum(dim=1, keepdim=True).clamp(min=1)).sqrt()
        places = torch.cat([positive.T.expand(len(runs), -1), contrast[:, runs].T], dim=1)
        return z.new_zeros(len(runs), len(seen)).scatter_add_(1, places, torch.cat([weight, -weight], dim=1)) @ seen

    def best(draw: Draw, block: Block) -> Tensor:
        if id(block) not in entries:
            entries[id(block)] = {clear: _entries(block, base[block.units], frame) for clear, base in bases.items()}
        total = paired(draw, block, _firing(block, means[block.units], frame))
        for reading, (values, squares) in zip(readings, permuted(draw)):
            high, squared, common = entries[id(block)][reading.clear]
            ranks = high.shape[1]
            r = high @ values[:ranks]
            within = torch.addmm(common[:, None], squared, squares[:ranks])
            total.add_(combined.cautious(r, within, frame.images), alpha=reading.weight)
        total = combined.discounted(total, worth)
        total = total.masked_fill_(constant, -torch.inf).nan_to_num_(nan=-torch.inf).amax(dim=1)
        return total.masked_fill(total == -torch.inf, torch.nan)

    return best


def _entries(block: Block, base: Tensor, frame: Frame) -> tuple[Tensor, ...]:
    """By rank: entries of r and of its spread beyond what every image has, and that common part."""
    beyond = frame.images - block.sorted.shape[1]
    fires = (block.sorted - base[:, None]).clamp(min=0)
    rest = (block.lowest - base).clamp(min=0)[:, None]
    centre = (fires.sum(dim=1, keepdim=True) + beyond * rest) / frame.images
    norm2 = (fires - centre).square().sum(dim=1, keepdim=True) + beyond * (rest - centre).square()
    norm2 = norm2.masked_fill(norm2 == 0, torch.nan)
    common = (rest - centre).square() / norm2
    squared = (fires - centre).square() / norm2 - common
    dtype = frame.evidence.sims.dtype
    return ((fires - rest) / norm2.sqrt()).to(dtype), squared.to(dtype), common[:, 0].to(dtype)


def _firing(block: Block, means: Tensor, frame: Frame) -> Tensor:
    """Which of a unit's first k images are positives above its mean: [some, k]."""
    firing = torch.zeros(len(block.units), frame.k, dtype=torch.bool, device=block.sorted.device)
    width = min(frame.k, block.sorted.shape[1])
    firing[:, :width] = block.sorted[:, :width] > means[:, None]
    return firing & (torch.arange(frame.k, device=firing.device) < frame.fires[block.units, None])
