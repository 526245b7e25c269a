"""Best scores of `linear_explanations` under permutation: exact elastic nets, each begun from one of its like.

Under one order of the images units differ only in the heights of their ranked activations, so what they are made to
look like is much the same, and so are their nets. The net of a block's mean starts those of its groups' means, and
these start the units'.
"""

from collections.abc import Callable

import torch
from jaxtyping import Float
from torch import Tensor

from saelab.label.assign import linear
from saelab.label.assign.elastic import ElasticNet
from saelab.label.nulls.frame import Block, Draw, Frame

GROUP = 32  # units that start from their mean's net


def coefficients(frame: Frame) -> Callable[[Draw, Block], Float[Tensor, "some"]]:
    """What the scorer gives on permuted evidence, its best over the vocabulary; NaN where there is none."""
    train, _, _ = linear.splits(frame.images)
    sims = frame.evidence.sims
    net, usable = linear.training_net(linear.concept_activations(sims)[train.to(sims.device)])
    others = not bool(usable.all())  # concepts that can't be used have the coefficient 0

    def best(draw: Draw, block: Block) -> Tensor:
        y = linear.standardised(_permuted(draw, block).cpu()[train]).T
        known = y.isfinite().all(dim=1)
        out = torch.full((len(y),), torch.nan)
        if not net.columns:
            out[known] = 0.0
        elif bool(known.any()):
            largest = net.solve(y[known], _near(net, y[known])).amax(dim=1)
            out[known] = (largest.clamp(min=0) if others else largest).float()
        return out.to(sims.device)

    return best


def _permuted(draw: Draw, block: Block) -> Float[Tensor, "images some"]:
    """The block's activations as the draw deals them out."""
    ranks = block.sorted.shape[1]
    padded = torch.cat([block.sorted, block.lowest[:, None]], dim=1)
    return padded.T[draw.rank.clamp(max=ranks)]


def _near(net: ElasticNet, y: Float[Tensor, "units n"]) -> Float[Tensor, "units columns"]:
    """Nets of groups of units that stand side by side, which fire on about as many images."""
    mean = y.mean(dim=0, keepdim=True)
    first = net.solve(mean, net.descend(mean))
    groups = y.split(GROUP)
    means = torch.stack([group.mean(dim=0) for group in groups])
    found = net.solve(means, first.expand(len(means), -1))
    return torch.cat([row.expand(len(group), -1) for row, group in zip(found, groups, strict=True)])
