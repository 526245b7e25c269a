"""Best scores of `contrast_evidence` under permutation, from ranks, for all units at once."""

from collections.abc import Callable

import torch
from jaxtyping import Float
from torch import Tensor

from saelab.label.assign import combined
from saelab.label.mine import column_means
from saelab.label.nulls.frame import Block, Draw, Frame


def evidence(frame: Frame) -> Callable[[Draw, Block], Float[Tensor, "some"]]:
    """What the scorer gives on permuted evidence, its best over the vocabulary; NaN where there is none.

    Needs contrasts that depend on ranks alone (`frame.by_rank`). Ranks beyond those at which a unit is above its
    lowest all hold the same entry, so only the ranks before them meet the labels.
    """
    e = frame.evidence
    z, constant = combined.standard(e.sims)
    readings = combined.memberships(z)
    means, base = column_means(e.acts), combined.baseline(e.acts)
    _, column = frame.ranges
    entries: dict[int, tuple[Tensor, ...]] = {}
    drawn: list[tuple[Draw, Tensor]] = []

    def contrasts(draw: Draw) -> Tensor:
        if not drawn or drawn[0][0] is not draw:
            drawn[:] = [(draw, draw.contrasts(draw.order[: frame.k]))]
        return drawn[0][1]

    def best(draw: Draw, block: Block) -> Tensor:
        if id(block) not in entries:
            entries[id(block)] = _entries(block, means[block.units], base[block.units], frame)
        high, squared, common, firing = entries[id(block)]
        found = contrasts(draw)[:, column[block.units]].T
        positives = draw.order[: frame.k].expand(len(found), -1)
        total = combined.paired(z, positives, found, firing & (found >= 0))
        images = draw.order[: high.shape[1]]
        for reading in readings:
            r = high @ reading.values[images]
            spread = torch.addmm(common[:, None], squared, reading.squares[images])
            total += combined.cautious(r, spread, frame.images) / len(readings)
        total = total.masked_fill(constant | total.isnan(), -torch.inf).amax(dim=1)
        return total.masked_fill(total == -torch.inf, torch.nan)

    return best


def _entries(block: Block, means: Tensor, base: Tensor, frame: Frame) -> tuple[Tensor, ...]:
    """By rank: entries of r and of its spread beyond what every image has, that common part, and who fires."""
    beyond = frame.images - block.sorted.shape[1]
    fires = (block.sorted - base[:, None]).clamp(min=0)
    rest = (block.lowest - base).clamp(min=0)[:, None]
    centre = (fires.sum(dim=1, keepdim=True) + beyond * rest) / frame.images
    norm2 = (fires - centre).square().sum(dim=1, keepdim=True) + beyond * (rest - centre).square()
    norm2 = norm2.masked_fill(norm2 == 0, torch.nan)
    common = (rest - centre).square() / norm2
    squared = (fires - centre).square() / norm2 - common
    firing = torch.zeros(len(fires), frame.k, dtype=torch.bool, device=fires.device)
    width = min(frame.k, fires.shape[1])
    firing[:, :width] = block.sorted[:, :width] > means[:, None]
    dtype = frame.evidence.sims.dtype
    return ((fires - rest) / norm2.sqrt()).to(dtype), squared.to(dtype), common[:, 0].to(dtype), firing
