"""Search over units, both ways: a text to the units that it describes, a picture to the units that it fires."""

import math
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from saelab.acts import Acts, blocks
from saelab.errors import UserError
from saelab.label import assign
from saelab.label.assign import Evidence
from saelab.label.scorers.registry import chosen

LEAST = 0.2  # share of a unit's highest activation under which a picture is not said to fire it

# Scorers whose score of a label does not depend on which other labels there are.
ALONE = tuple(scorer.name for scorer in assign.SCORERS.values() if scorer.alone)


@dataclass(frozen=True)
class Hits:
    """Units, best first."""

    units: Int[Tensor, "top"]  # unit numbers
    scores: Float[Tensor, "top"]  # what they were ranked by


@dataclass(frozen=True)
class Fired(Hits):
    """Units that a picture fires, by how unusual that is for each times how strong it is."""

    below: Float[Tensor, "top"]  # share of images that fire the unit less, ties half
    shares: Float[Tensor, "top"]  # of the unit's highest activation on the images; above 1 where it was never as high


def text_to_units(
    text_emb: Float[Tensor, "d_text"], evidence: Evidence, scorer: str = "pearson", top: int = 20
) -> Hits:
    """Units for which `scorer` gives the text the highest score; units without a score (NaN) are left out.

    Any text will do, in the vocabulary or not: the scorer sees it as its only label. So scorers that let labels
    compete (soft_wpmi, wpmi, falcon ...) are refused: a single label always wins.
    """
    (row,) = chosen([scorer])
    if not row.alone:
        raise UserError("scorer", scorer, "lets labels compete, so it can't judge one text", f"use {', '.join(ALONE)}")
    scores = assign.score([scorer], evidence.but(label_emb=text_emb[None]))[scorer][:, 0]
    return _best(scores, top)


def image_to_units(activations: Float[Tensor, "units"], acts: Acts, top: int = 20) -> Fired:
    """Units that a picture fires unusually *and* strongly, against what images do, `acts` [images, units].

    `activations`: the picture's, of every unit (`units.Projection` and `units.pool_units`); or those of one place in
    it. The score of a unit is

        log((n + 1) / (1 + images that fire it as much)) / log(n + 1)  x  min(1, activation / its highest on the images)

    so 1 is for what no image fires as much, and 0 for what every image does. The first factor alone would put a rare
    unit that fires faintly before all others, the second one that always fires. Not named: units under `LEAST` of
    their highest, and units that no image fires, for which nothing is usual. Ties go to the larger share.
    """
    n = len(activations)
    unusual, below, share = (torch.full((n,), torch.nan, dtype=torch.float64) for _ in range(3))
    for block, columns in blocks(acts):
        own, highest = activations[block].to(columns.device), columns.amax(0)
        as_much, more = (columns >= own).sum(0).double(), (columns > own).sum(0).double()
        unusual[block] = (1 - torch.log1p(as_much) / math.log(len(columns) + 1)).cpu()
        below[block] = (1 - (as_much + more) / (2 * len(columns))).cpu()
        share[block] = torch.where(highest > 0, own / highest, torch.nan).double().cpu()
    score = (unusual * share.clamp(max=1)).masked_fill(~(share >= LEAST), torch.nan)
    order = torch.argsort(share.nan_to_num(), descending=True, stable=True)
    ranked = order[torch.argsort(score[order].nan_to_num(nan=-1), descending=True, stable=True)]
    known = ranked[~score[ranked].isnan()][:top]
    return Fired(known, score[known].float(), below[known].float(), share[known].float())


def _best(scores: Float[Tensor, "units"], top: int) -> Hits:
    known = (~scores.isnan()).nonzero()[:, 0]
    order = known[torch.argsort(scores[known], descending=True, stable=True)][:top]
    return Hits(order, scores[order])
