"""Best scores under permutation, by what a scorer needs to see of the permuted images.

Each function takes the frame and returns a function from a draw and a block to that block's best score over the
vocabulary, NaN where there is none. All of them give what the scorer itself gives on the permuted evidence.
"""

import math
from collections.abc import Callable
from typing import TypeVar

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import softplus

from saelab.label.assign import contrastive, dissect, invert, whole_set
from saelab.label.assign.registry import Scorer
from saelab.label.mine import column_means
from saelab.label.nulls.frame import Block, Draw, Frame, by_rank

Best = Callable[[Draw, Block], Float[Tensor, "some"]]
T = TypeVar("T")


def family(scorer: Scorer, frame: Frame) -> Best | None:
    """How to find a scorer's best scores; None where it does not look at pooled activations, so has no such null."""
    if scorer.needs in ("decoder", "maps"):
        return None
    if scorer.name in ("semanticlens", "centred_mean", "www"):
        return positives_only(scorer)
    if scorer.name in ("csp", "csp_0.5") and by_rank(frame.evidence):
        return projected(frame, 1.0 if scorer.name == "csp" else 0.5)
    if scorer.name in ("difference_of_means", "set_projection", "falcon") and by_rank(frame.evidence):
        return ranges_only(scorer)
    if scorer.name in LINEAR:
        return LINEAR[scorer.name](frame)
    if scorer.name in ("soft_wpmi", "wpmi"):
        return likelihood(scorer, frame)
    return whole(scorer)


def once(compute: Callable[[Draw], T]) -> Callable[[Draw], T]:
    """`compute`, done once for each draw: blocks of units ask for the same draw one after the other."""
    last: list[tuple[Draw, T]] = []

    def of(draw: Draw) -> T:
        if not last or last[0][0] is not draw:
            last[:] = [(draw, compute(draw))]
        return last[0][1]

    return of


def whole(scorer: Scorer) -> Best:
    """The scorer itself on the permuted evidence: for any scorer, and the standard for the short cuts below."""
    rows_of = once(lambda draw: scorer.start(draw.evidence))

    def best(draw: Draw, block: Block) -> Tensor:
        rows = rows_of(draw)
        return best_of(torch.cat([rows(slice(u, u + 1)) for u in block.units.tolist()]))

    return best


def positives_only(scorer: Scorer) -> Best:
    """Scorers of a set of images without weights: every unit of as many positives has the same null."""

    @once
    def common(draw: Draw) -> Tensor:
        first = draw.order[None, : draw.frame.k]
        return best_of(scorer.start(draw.frame.evidence.but(positive_ids=first))(slice(0, 1)))

    return lambda draw, block: common(draw).expand(len(block.units))


def ranges_only(scorer: Scorer) -> Best:
    """Scorers of unweighted pairs: units with the same range of candidates have the same null."""

    @once
    def by_range(draw: Draw) -> Tensor:
        ranks = draw.contrasts[0].T
        distinct, place = ranks.unique(dim=0, return_inverse=True)
        ids = torch.where(distinct < 0, -1, draw.order[distinct.clamp(min=0)])
        positives = draw.order[: draw.frame.k].expand(ids.shape)
        some = draw.frame.evidence.but(positive_ids=positives, contrast_ids=ids)
        return best_of(scorer.start(some)(slice(0, len(ids))))[place]

    return lambda draw, block: by_range(draw)[draw.contrasts[1][block.units]]


def projected(frame: Frame, gamma: float) -> Best:
    """CSP: units differ in weights and in which of a positive's few possible contrasts they get.

    As the candidates of a unit are a run of ranks, a positive has only as many different contrasts over all units
    as its running maximum has steps. Each such pair's residual meets the labels once; units are weighted sums.
    """
    e = frame.evidence
    weights = contrastive.pair_weights(e.positive_values.nan_to_num(nan=0.0))

    @once
    def pairs(draw: Draw) -> tuple[Tensor, ...]:
        ranks, column = draw.contrasts
        codes = torch.arange(frame.k, device=ranks.device)[:, None] * (frame.images + 1) + ranks + 1
        distinct, pair = codes.unique(return_inverse=True)
        positive, contrast = distinct // (frame.images + 1), distinct % (frame.images + 1) - 1
        emb = draw.image_emb
        residual = contrastive.residuals(emb[positive][None], emb[contrast.clamp(min=0)][None], gamma)[0]
        residual[contrast < 0] = 0
        return residual, residual @ e.label_emb.T, pair, column, contrast >= 0

    def best(draw: Draw, block: Block) -> Tensor:
        residual, against, pair, column, there = pairs(draw)
        place = pair[:, column[block.units]].T
        share = torch.zeros(len(place), len(residual), device=residual.device)
        share.scatter_(1, place, weights[block.units] * there[place])
        norm = (share @ residual).norm(dim=1)
        scores = best_of(share @ against) / norm
        return scores.masked_fill(share.sum(dim=1) == 0, torch.nan)

    return best


def correlated(frame: Frame, right: Tensor, power: int, floor: float) -> Best:
    """Pearson and its cube: each draw is one product, over the ranks at which units are above their lowest."""
    means = column_means(frame.evidence.acts)
    sums = right.sum(dim=0, dtype=torch.float64).to(right.dtype)
    state: dict[int, tuple[Tensor, Tensor]] = {}

    def entries(block: Block) -> tuple[Tensor, Tensor]:
        centres = means[block.units, None]
        high, low = (block.sorted - centres) ** power, (block.lowest[:, None] - centres) ** power
        beyond = frame.images - block.sorted.shape[1]
        norm = ((high**2).sum(dim=1, keepdim=True) + beyond * low**2).sqrt().clamp(min=floor)
        constant = block.sorted[:, 0] == block.lowest
        low = low.masked_fill(constant[:, None], torch.nan) if floor == 0 else low
        return ((high - low) / norm).to(right.dtype), (low / norm).to(right.dtype)

    def best(draw: Draw, block: Block) -> Tensor:
        if id(block) not in state:
            state[id(block)] = entries(block)
        high, low = state[id(block)]
        return best_of(torch.addmm(low * sums, high, right[draw.order[: high.shape[1]]]))

    return best


def ranked(frame: Frame) -> Best:
    """INVERT: the sum of ranks inside a concept, in float64 because equal areas are common."""
    inside = frame.evidence.need("concepts").double()
    n1 = inside.sum(dim=0)
    state: dict[int, tuple[Tensor, Tensor]] = {}

    def entries(block: Block) -> tuple[Tensor, Tensor]:
        beyond = frame.images - block.sorted.shape[1]
        padded = torch.cat([block.sorted, block.lowest[:, None].expand(-1, beyond)], dim=1)
        ranks = invert.mid_ranks(padded)
        return (ranks - ranks[:, -1:])[:, : block.sorted.shape[1]], ranks[:, -1:]

    def best(draw: Draw, block: Block) -> Tensor:
        if id(block) not in state:
            state[id(block)] = entries(block)
        high, low = state[id(block)]
        sums = high @ inside[draw.order[: high.shape[1]]] + low * n1
        return best_of(((sums - n1 * (n1 + 1) / 2) / (n1 * (frame.images - n1))).float())

    return best


def weighted(frame: Frame) -> Best:
    """The CSP authors' CLIP-Dissect: one product of weights and the first images' probabilities."""
    ids, values = frame.evidence.top(dissect.NEUROLENS_K)
    q = (frame.evidence.sims / 10.0).softmax(dim=1)
    mean = q.mean(dim=0)
    values = values.clamp(min=0)
    total = values.sum(dim=1, keepdim=True)
    weights = (values / total).masked_fill(total <= 0, torch.nan)

    def best(draw: Draw, block: Block) -> Tensor:
        seen = weights[block.units] @ (q[draw.order[: ids.shape[1]]] / mean)
        return best_of(seen + 1e-6 / mean).log()

    return best


def likelihood(scorer: Scorer, frame: Frame) -> Best:
    """WPMI and soft-WPMI: a unit's permuted likelihood against the prior of the other units as they are."""
    e = frame.evidence
    soft = scorer.name == "soft_wpmi"
    of = dissect.soft_log_likelihood if soft else dissect.log_likelihood
    k = min(dissect.SOFT_K if soft else dissect.WPMI_K, frame.images)
    weight = 1.0 if soft else 0.6
    others = others_logsumexp(of(e.sims, e.top(k)[0]))
    count = math.log(max(int(frame.known.sum()), 1))
    likelihoods = once(lambda draw: of(e.sims[draw.order[:k]], torch.arange(k, device=draw.order.device)[None]))

    def best(draw: Draw, block: Block) -> Tensor:
        ll = likelihoods(draw)
        if weight == 1:  # then the score falls with others - ll, and one logarithm a unit is enough
            return count - softplus((others[block.units] - ll).nan_to_num(nan=torch.inf).amin(dim=1))
        return best_of(ll - weight * (torch.logaddexp(others[block.units], ll) - count))

    return best


def others_logsumexp(ll: Float[Tensor, "units labels"]) -> Float[Tensor, "units labels"]:
    """For each unit and label: log of the sum of exp(ll) over the other units (NaN units count for nothing).

    A difference of sums loses nothing unless one unit makes up most of a sum: each label's largest is summed anew.
    """
    filled = ll.double().nan_to_num(nan=-torch.inf)
    total = filled.logsumexp(dim=0)
    out = total + torch.log1p(-(filled - total).exp().clamp(max=1.0))
    top = filled.argmax(dim=0, keepdim=True)
    without = filled.scatter(0, top, -torch.inf).logsumexp(dim=0, keepdim=True)
    return out.scatter_(0, top, without).to(ll.dtype)


def best_of(scores: Float[Tensor, "some labels"]) -> Float[Tensor, "some"]:
    """The largest score of each row, NaN only where all are."""
    best = scores.nan_to_num(nan=-torch.inf).amax(dim=1)
    return best.masked_fill(best == -torch.inf, torch.nan)


LINEAR: dict[str, Callable[[Frame], Best]] = {
    "pearson": lambda frame: correlated(frame, whole_set.standardised(frame.evidence.sims), 1, 0.0),
    "cos_cubed": lambda frame: correlated(frame, whole_set.cubed(frame.evidence.sims), 3, whole_set.FLOOR),
    "invert": ranked,
    "clip_dissect_neurolens": weighted,
}
