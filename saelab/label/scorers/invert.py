"""INVERT: which concept, or formula of concepts, a unit tells from the rest (NeurIPS 2023)."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from saelab.acts import Acts, blocks, columns, part, shape
from saelab.arrays import takes_arrays
from saelab.errors import UserError
from saelab.label.scorers.evidence import Evidence
from saelab.label.scorers.formulas import invert_formulas
from saelab.label.scorers.frame import Block, Draw, Frame
from saelab.label.scorers.permuted import Best, best_of
from saelab.label.scorers.ranks import mid_ranks
from saelab.label.scorers.scorer import Citation, Scorer


@takes_arrays
def invert_auc(acts: Acts, concepts: Bool[Tensor, "images labels"]) -> Float[Tensor, "units labels"]:
    """AUROC of each unit against each binary concept, from mid-ranks: P(in > out) + P(in = out) / 2.

    Source: Bykov et al., INVERT (NeurIPS 2023), without upstream's sigmoid, which makes ties. NaN where a concept
    holds on no or on every image and for units that are not finite.
    """
    return invert_rows(acts, concepts)(slice(None))


def invert_rows(acts: Acts, concepts: Bool[Tensor, "images labels"]) -> Callable[[slice], Tensor]:
    """`invert_auc` for a slice of units at a time."""
    acts = columns(acts)
    images = shape(acts)[0]
    if concepts.ndim != 2 or len(concepts) != images:
        raise UserError("concepts", tuple(concepts.shape), f"expected [images, labels] with {images} images")
    inside = concepts.double()
    n1 = inside.sum(dim=0)

    def rows(units: slice) -> Float[Tensor, "some labels"]:
        parts = []
        for _, block in blocks(part(acts, units), 1 << 22):
            sums = mid_ranks(block.T) @ inside
            parts.append(((sums - n1 * (n1 + 1) / 2) / (n1 * (images - n1))).float())
        return torch.cat(parts)

    return rows


def ranked(scorer: Scorer, frame: Frame) -> Best:
    """INVERT under permutation: the sum of ranks inside a concept, in float64 because equal areas are common.

    Concepts of no image or of all have no score, so they are left out from the start.
    """
    concepts = frame.evidence.need("concepts")
    count = concepts.sum(dim=0)
    inside = concepts[:, (count > 0) & (count < frame.images)].double()
    n1 = inside.sum(dim=0)
    state: dict[int, tuple[Tensor, Tensor]] = {}

    def entries(block: Block) -> tuple[Tensor, Tensor]:
        beyond = frame.images - block.sorted.shape[1]
        padded = torch.cat([block.sorted, block.lowest[:, None].expand(-1, beyond)], dim=1)
        ranks = mid_ranks(padded)
        return (ranks - ranks[:, -1:])[:, : block.sorted.shape[1]], ranks[:, -1:]

    def best(draw: Draw, block: Block) -> Tensor:
        if id(block) not in state:
            state[id(block)] = entries(block)
        high, low = state[id(block)]
        sums = high @ inside[draw.order[: high.shape[1]]] + low * n1
        if not len(n1):
            return torch.full((len(sums),), torch.nan, device=sums.device)
        return best_of(((sums - n1 * (n1 + 1) / 2) / (n1 * (frame.images - n1))).float())

    return best


def _formulas(scores: Float[Tensor, "units labels"], evidence: Evidence, labels: Sequence[str]) -> list[dict[str, Any]]:
    """`formula`, of up to three concepts, with its `formula_auc` and `formula_share` of images."""
    concepts = evidence.need("concepts").bool()
    there = concepts.any(dim=0).nonzero()[:, 0]  # what holds nowhere would only fill the beam
    names = [labels[i] for i in there.tolist()]
    return [
        {}
        if formula is None
        else {"formula": formula.text(names), "formula_auc": formula.auc, "formula_share": formula.share}
        for formula in invert_formulas(evidence.acts, concepts[:, there])
    ]


BYKOV = Citation(
    "Bykov et al., NeurIPS 2023",
    """@inproceedings{bykov2023invert,
  title = {Labeling Neural Representations with Inverse Recognition},
  author = {Bykov, Kirill and Kopf, Laura and Nakajima, Shinichi and Kloft, Marius and H{\\"o}hne, Marina M.-C.},
  booktitle = {Advances in Neural Information Processing Systems},
  year = {2023}
}""",
)
SCORERS = (
    Scorer(
        "invert",
        "concepts",
        "INVERT",
        "AUROC of the unit against binary concepts.",
        lambda e: invert_rows(e.acts, e.need("concepts").bool()),
        ranked,
        BYKOV,
        explain=_formulas,
    ),
)
