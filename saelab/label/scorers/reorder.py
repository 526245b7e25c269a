"""CLIP-Dissect's rank reorder: do the images that fire a unit most come in the order that a label gives them?"""

from collections.abc import Callable

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn.functional import embedding_bag

from saelab.acts import Acts
from saelab.arrays import takes_arrays
from saelab.errors import UserError
from saelab.label.mine import top_images
from saelab.label.scorers.checks import similarities
from saelab.label.scorers.dissect import OIKARINEN
from saelab.label.scorers.evidence import Evidence
from saelab.label.scorers.frame import Block, Draw, Frame, once
from saelab.label.scorers.permuted import Best
from saelab.label.scorers.scorer import Rows, Scorer

AT_ONCE = 1 << 24  # errors between two ranks held at a time


@takes_arrays
def rank_reorder(
    acts: Acts,
    image_emb: Float[Tensor, "images d_text"],
    label_emb: Float[Tensor, "labels d_text"],
    top_fraction: float = 0.05,
    p: float = 3.0,
    scale_p: float = 0.5,
) -> Float[Tensor, "units labels"]:
    """CLIP-Dissect's rank reorder: how far the top images' activations are from the order that the label gives them.

    Over a unit's top int(top_fraction x images) images: minus the mean of |a - a reordered by P| ** p, over its mean
    under random orders, over (mean P) ** scale_p; at most 0. The authors estimate the mean under random orders from
    five draws; here it is exact. -inf for a label whose mean P is not positive, NaN for a unit whose top activations
    are all equal. Raises UserError if top_fraction leaves fewer than two images.
    """
    acts, sims = similarities(acts, image_emb, label_emb)
    k = int(top_fraction * len(sims))
    if k < 2:
        raise UserError("top_fraction", top_fraction, f"leaves {k} of {len(sims)} images, expected at least 2")
    return rank_reorder_rows(sims, *top_images(acts, k), p, scale_p)(slice(None))


def rank_reorder_rows(
    sims: Float[Tensor, "images labels"],
    ids: Int[Tensor, "units k"],
    values: Float[Tensor, "units k"],
    p: float = 3.0,
    scale_p: float = 0.5,
) -> Callable[[slice], Tensor]:
    """`rank_reorder` for a slice of units at a time, given similarities and top images."""

    def one(unit_ids: Int[Tensor, "k"], strongest: Float[Tensor, "k"]) -> Float[Tensor, "labels"]:
        if int(unit_ids[0]) < 0:
            return sims.new_full((sims.shape[1],), torch.nan)
        seen = sims[unit_ids]
        order = seen.argsort(dim=0, stable=True)
        # The label's r-th least similar image should have the r-th smallest activation.
        error = (strongest[order] - strongest.flip(0)[:, None]).abs().pow(p).mean(dim=0)
        chance = rank_costs(strongest[None], p).mean()
        return reorder_scores(error, chance, seen.mean(dim=0), scale_p)

    def rows(units: slice) -> Float[Tensor, "some labels"]:
        return torch.stack([one(i, v) for i, v in zip(ids[units], values[units].to(sims.dtype), strict=True)])

    return rows


def reordered_images(images: int, top_fraction: float = 0.05) -> int:
    """How many of a unit's top images rank reorder looks at, of so many images; 2 at least."""
    return max(2, int(top_fraction * images))


def rank_costs(values: Float[Tensor, "units k"], p: float = 3.0) -> Float[Tensor, "units k k"]:
    """What it costs to put the activation of one rank in the place of another: |a_i - a_j| ** p."""
    return (values[:, :, None] - values[:, None, :]).abs().pow(p)


def reorder_scores(
    error: Float[Tensor, "*units labels"], chance: Tensor, mean: Float[Tensor, "labels"], scale_p: float = 0.5
) -> Float[Tensor, "*units labels"]:
    """Rank reorder's score from a label's mean error, the unit's under random orders, and the label's mean P."""
    score = -(error / chance) / mean.clamp(min=0) ** scale_p
    return score.masked_fill((mean <= 0) & ~score.isnan(), -torch.inf)


def reordered(scorer: Scorer, frame: Frame) -> Best:
    """What the scorer gives on permuted evidence, its best over the vocabulary; NaN where there is none.

    Units with the same top images differ only in what it costs to put one rank's activation in another's place, so a
    label's error is a sum of k entries of that table, the same entries for all of them.
    """
    sims = frame.evidence.sims
    k = reordered_images(frame.images)
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
        out = sims.new_full((len(block.units),), torch.nan)
        for i, (places, mean) in enumerate(orders(draw)):
            for some in (height[block.units] == i).nonzero()[:, 0].split(max(1, AT_ONCE // k**2)):
                costs = rank_costs(values[block.units[some]])
                error = embedding_bag(places, costs.flatten(1).T.contiguous(), mode="sum") / k
                scores = reorder_scores(error.T, costs.mean(dim=(1, 2))[:, None], mean)
                out[some] = scores.nan_to_num(nan=-torch.inf).amax(dim=1)
        return out.masked_fill(out == -torch.inf, torch.nan)

    return best


def _start(e: Evidence) -> Rows:
    # Silent images take part: that a label ranks them last is what this scorer is about.
    return rank_reorder_rows(e.sims, *top_images(e.acts, reordered_images(e.n_images), e.ties))


SCORERS = (
    Scorer(
        "rank_reorder",
        "images",
        "Rank reorder",
        "How far the top images' activations are from the order that the label gives them.",
        _start,
        reordered,
        OIKARINEN,
    ),
)
