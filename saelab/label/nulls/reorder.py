"""Best scores of `rank_reorder` under permutation, for all units that share their top images at once."""

from collections.abc import Callable

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import embedding_bag

from saelab.label.assign import dissect
from saelab.label.mine import top_images
from saelab.label.nulls.frame import Block, Draw, Frame, once

AT_ONCE = 1 << 24  # errors between two ranks held at a time


def reordered(frame: Frame) -> Callable[[Draw, Block], Float[Tensor, "some"]]:
    """What the scorer gives on permuted evidence, its best over the vocabulary; NaN where there is none.

    Units with the same top images differ only in what it costs to put one rank's activation in another's place, so a
    label's error is a sum of k entries of that table, the same entries for all of them.
    """
    sims = frame.evidence.sims
    k = dissect.reordered_images(frame.images)
    values = top_images(frame.evidence.acts, k)[1].to(sims.dtype)
    heights, height = frame.heights(k)
    # The rank that the activation at a label's r-th least similar image ought to have.
    ought = torch.arange(k - 1, -1, -1, device=sims.device)

    @once
    def orders(draw: Draw) -> list[tuple[Tensor, Tensor]]:
        """For each height the table's entries that each label sums, and the label's mean similarity."""
        seen = [sims.index_select(0, images).T.contiguous() for images in draw.strongest(heights, k)]
        return [(own.argsort(dim=1, stable=True) * k + ought, own.mean(dim=1)) for own in seen]

    def best(draw: Draw, block: Block) -> Tensor:
        out = torch.full((len(block.units),), torch.nan, device=sims.device)
        for i, (places, mean) in enumerate(orders(draw)):
            for some in (height[block.units] == i).nonzero()[:, 0].split(max(1, AT_ONCE // k**2)):
                costs = dissect.rank_costs(values[block.units[some]])
                error = embedding_bag(places, costs.flatten(1).T.contiguous(), mode="sum") / k
                scores = dissect.reorder_scores(error.T, costs.mean(dim=(1, 2))[:, None], mean)
                out[some] = scores.nan_to_num(nan=-torch.inf).amax(dim=1)
        return out.masked_fill(out == -torch.inf, torch.nan)

    return best
