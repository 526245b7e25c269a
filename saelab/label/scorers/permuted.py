"""Best scores under permutation, by what a scorer needs to see of the permuted images.

Each function takes a scorer and the frame, and returns a function from a draw and a block to that block's best scores
over the vocabulary, NaN where there is none. All give what the scorer itself gives on the permuted evidence.
"""

from collections.abc import Callable
from typing import TYPE_CHECKING

import torch
from jaxtyping import Float
from torch import Tensor

from saelab.label.scorers.evidence import Evidence
from saelab.label.scorers.frame import Block, Draw, Frame, by_rank, once

if TYPE_CHECKING:
    from saelab.label.scorers.scorer import Scorer

Best = Callable[[Draw, Block], Float[Tensor, "some"]]


def whole(scorer: "Scorer", frame: Frame) -> Best:
    """The scorer itself on the permuted evidence: for any scorer, and the standard for the short cuts below."""
    rows_of = once(lambda draw: scorer.start(draw.evidence))

    def best(draw: Draw, block: Block) -> Tensor:
        rows = rows_of(draw)
        return best_of(torch.cat([rows(slice(u, u + 1)) for u in block.units.tolist()]))

    return best


def where_ranked(short_cut: Callable[["Scorer", Frame], Best]) -> Callable[["Scorer", Frame], Best]:
    """A short cut for contrasts that depend on ranks alone (`by_rank`), the scorer itself for those that do not."""
    return lambda scorer, frame: short_cut(scorer, frame) if by_rank(frame.evidence) else whole(scorer, frame)


def positives_only(scorer: "Scorer", frame: Frame) -> Best:
    """Scorers of a set of images without weights: units of as many firing images have the same null."""
    fills, fill = frame.fills(frame.k)

    @once
    def by_fill(draw: Draw) -> Tensor:
        some = frame.evidence.but(positive_ids=draw.positives(fills, frame.k))
        return best_of(scorer.start(some)(slice(0, len(fills))))

    return lambda draw, block: by_fill(draw)[fill[block.units]]


@where_ranked
def unweighted_pairs(scorer: "Scorer", frame: Frame) -> Best:
    """Scorers of pairs without weights: see `by_ranges`."""
    return by_ranges(frame, lambda some: scorer.start(some)(slice(0, len(some.positive_ids))))


def by_ranges(frame: Frame, scores_of: Callable[[Evidence], Tensor]) -> Best:
    """Units of as many firing images and of the same candidates have the same null; `scores_of` scores their pairs."""
    fills, fill = frame.fills(frame.k)
    kinds, kind = torch.stack([fill, frame.ranges[1]], dim=1).unique(dim=0, return_inverse=True)

    @once
    def by_kind(draw: Draw) -> Tensor:
        positives = draw.positives(fills, frame.k)
        images, place = positives.unique(return_inverse=True)
        contrasts = draw.contrasts(images)[place[kinds[:, 0]], kinds[:, 1:]]
        pairs = torch.stack([positives[kinds[:, 0]], contrasts], dim=1)
        distinct, same = pairs.unique(dim=0, return_inverse=True)
        some = frame.evidence.but(positive_ids=distinct[:, 0], contrast_ids=distinct[:, 1])
        return best_of(scores_of(some))[same]

    return lambda draw, block: by_kind(draw)[kind[block.units]]


def best_of(scores: Float[Tensor, "some labels"]) -> Float[Tensor, "some"]:
    """The largest score of each row, NaN only where all are; infinite ones as the dtype's largest number."""
    best = scores.amax(dim=1).nan_to_num_(nan=torch.nan)
    holed = best.isnan()
    if bool(holed.any()):  # only these rows are gone through again: a copy of all takes as long as finding the largest
        rest = scores[holed].nan_to_num_(nan=-torch.inf).amax(dim=1)
        best[holed] = rest.masked_fill_(rest == -torch.inf, torch.nan)
    return best
