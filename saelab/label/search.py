"""Search over units, both ways: a text to the units that it describes, a picture to the units that it fires."""

from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from saelab.acts import Acts, blocks
from saelab.errors import UserError
from saelab.label import assign
from saelab.label.assign import Evidence
from saelab.label.scorers.registry import chosen

# Scorers whose score of a label does not depend on which other labels there are.
ALONE = tuple(scorer.name for scorer in assign.SCORERS.values() if scorer.alone)


@dataclass(frozen=True)
class Hits:
    """Units, best first."""

    units: Int[Tensor, "top"]  # unit numbers
    scores: Float[Tensor, "top"]  # what they were ranked by


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


def image_to_units(activations: Float[Tensor, "units"], acts: Acts, top: int = 20) -> Hits:
    """Units that a picture fires unusually: by its activation's rank among `acts` [images, units].

    `activations`: the picture's, of every unit (`units.Projection` and `units.pool_units`). A unit that the picture
    doesn't fire is never named. The score is the share of images that fire the unit less (ties count half), so a unit
    that everything fires does not crowd out the others; ties go to the larger share of the unit's maximum.
    """
    below = torch.zeros(len(activations), dtype=torch.float64)
    share = torch.zeros(len(activations), dtype=torch.float64)
    for block, columns in blocks(acts):
        own = activations[block].to(columns.device)
        below[block] = ((columns < own).double() + 0.5 * (columns == own).double()).mean(0).cpu()
        share[block] = (own / columns.amax(0).clamp(min=1e-12)).double().cpu()
    score = below.masked_fill(activations <= 0, torch.nan)
    order = torch.argsort(share.nan_to_num(), descending=True, stable=True)
    ranked = order[torch.argsort(score[order].nan_to_num(nan=-1), descending=True, stable=True)]
    known = ranked[~score[ranked].isnan()][:top]
    return Hits(known, score[known].float())


def _best(scores: Float[Tensor, "units"], top: int) -> Hits:
    known = (~scores.isnan()).nonzero()[:, 0]
    order = known[torch.argsort(scores[known], descending=True, stable=True)][:top]
    return Hits(order, scores[order])
