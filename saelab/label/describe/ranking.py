"""Candidates in the order in which pictures of them fire a unit: the last step of Describe-and-Dissect."""

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

BEST, TOP = 5, 10  # of the original


@dataclass(frozen=True)
class Reranked:
    """The order, best first, and what it comes from."""

    order: Int[Tensor, "candidates"]
    squares: Float[Tensor, "candidates"]  # A: mean squared rank of a candidate's best pictures; small is good
    places: Int[Tensor, "candidates"]  # R: its place by A, counted from the worst: best = number of candidates
    similarity: Float[Tensor, "candidates"]  # B: of its pictures among the strongest of all; -1 without one
    score: Float[Tensor, "candidates"]  # R x B


def rerank(
    activations: Float[Tensor, "candidates pictures"],
    similarity: Float[Tensor, "candidates pictures"],
    shown: Bool[Tensor, "candidates pictures"] | None = None,
    best: int = BEST,
    top: int = TOP,
    parity: bool = False,
) -> Reranked:
    """Order candidates by what the unit does on pictures of each (Describe-and-Dissect: Bai et al., TMLR 2025, eq. 4).

    activations: the unit's on each picture of each candidate. similarity: of each picture with the unit's exemplars,
    mean cosine. shown: where there is a picture; None: everywhere. All pictures are ranked together, 0 the strongest
    (ties to the lower candidate). A candidate without a picture gets A = candidates + 1, as in the original.

    With `parity` candidates come in the order of the score, as in the original; there a candidate of which no picture
    is among the `top` has B = -1, so that it falls the lower the better it ranked. Without it, such candidates come
    last, in the order of A.
    """
    there = torch.ones_like(activations, dtype=torch.bool) if shown is None else shown
    count, flat = len(activations), there.flatten()
    order = torch.where(flat, activations.double().flatten(), -torch.inf).argsort(descending=True, stable=True)
    ranks = torch.empty(flat.numel(), dtype=torch.int64)
    ranks[order] = torch.arange(flat.numel())
    ranks = ranks.unflatten(0, activations.shape)
    means = [_mean_square(own[on], best, count + 1) for own, on in zip(ranks, there)]
    squares = torch.tensor(means, dtype=torch.float64)
    places = torch.empty(count, dtype=torch.int64)
    places[squares.argsort(stable=True)] = torch.arange(count, 0, -1)
    strongest = there & (ranks < top)
    summed = torch.where(strongest, similarity.double(), 0.0).sum(1)
    mean = torch.where(strongest.any(1), summed / strongest.sum(1).clamp(min=1), -1.0)
    score = places * mean
    key = score if parity else torch.where(strongest.any(1), score, places - 2.0 * count - 1)
    return Reranked(key.argsort(descending=True, stable=True), squares, places, mean, score)


def _mean_square(ranks: Tensor, best: int, without: float) -> float:
    if not len(ranks):
        return without
    return float(ranks.sort().values[:best].double().square().mean())
