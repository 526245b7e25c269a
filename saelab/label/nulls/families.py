"""Best scores under permutation, by what a scorer needs to see of the permuted images.

Each function takes the frame and returns a function from a draw and a block to that block's best score over the
vocabulary, NaN where there is none. All of them give what the scorer itself gives on the permuted evidence.
"""

import math
from collections.abc import Callable

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import softplus

from saelab.label.assign import contrastive, dissect, invert, several, whole_set
from saelab.label.assign.evidence import Evidence
from saelab.label.assign.registry import Scorer
from saelab.label.mine import column_means
from saelab.label.nulls import combined, linear, reorder
from saelab.label.nulls.frame import Block, Draw, Frame, by_rank, once

Best = Callable[[Draw, Block], Float[Tensor, "some"]]


def family(scorer: Scorer, frame: Frame) -> Best | None:
    """How to find a scorer's best scores; None where it does not look at pooled activations, so has no such null."""
    if scorer.needs in ("decoder", "maps"):
        return None
    if scorer.name in ("semanticlens", "semanticlens_package", "centred_mean", "www"):
        return positives_only(scorer, frame)
    if scorer.name in ("csp", "csp_0.5") and by_rank(frame.evidence):
        return projected(frame, 1.0 if scorer.name == "csp" else 0.5)
    if scorer.name in ("difference_of_means", "set_projection") and by_rank(frame.evidence):
        return ranges_only(lambda some: scorer.start(some)(slice(0, len(some.positive_ids))), frame)
    if scorer.name == "falcon" and by_rank(frame.evidence):
        support = several.support(frame.evidence.sims)
        return ranges_only(lambda some: several.supported(support, some.positive_ids, some.contrast_ids), frame)
    if scorer.name == "contrast_evidence" and by_rank(frame.evidence):
        return combined.evidence(frame)
    if scorer.name in LINEAR:
        return LINEAR[scorer.name](frame)
    if scorer.name in ("soft_wpmi", "wpmi"):
        return likelihood(scorer, frame)
    return whole(scorer)


def whole(scorer: Scorer) -> Best:
    """The scorer itself on the permuted evidence: for any scorer, and the standard for the short cuts below."""
    rows_of = once(lambda draw: scorer.start(draw.evidence))

    def best(draw: Draw, block: Block) -> Tensor:
        rows = rows_of(draw)
        return best_of(torch.cat([rows(slice(u, u + 1)) for u in block.units.tolist()]))

    return best


def positives_only(scorer: Scorer, frame: Frame) -> Best:
    """Scorers of a set of images without weights: units of as many firing images have the same null."""
    fills, fill = frame.fills(frame.k)

    @once
    def by_fill(draw: Draw) -> Tensor:
        some = frame.evidence.but(positive_ids=draw.positives(fills, frame.k))
        return best_of(scorer.start(some)(slice(0, len(fills))))

    return lambda draw, block: by_fill(draw)[fill[block.units]]


def ranges_only(scores_of: Callable[[Evidence], Tensor], frame: Frame) -> Best:
    """Scorers of unweighted pairs: units of as many firing images and of the same candidates have the same null."""
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


def projected(frame: Frame, gamma: float) -> Best:
    """CSP: units differ in weights and in which of a positive's few possible contrasts they get.

    As the candidates of a unit are a run of ranks, a positive has only as many different contrasts over all units
    as its running maximum has steps. Each such pair's residual meets the labels once; units are weighted sums.
    """
    e = frame.evidence
    weights = contrastive.pair_weights(e.positive_values.nan_to_num(nan=0.0))
    fills, fill = frame.fills(frame.k)
    _, column = frame.ranges

    @once
    def pairs(draw: Draw) -> tuple[Tensor, ...]:
        images, place = draw.positives(fills, frame.k).unique(return_inverse=True)
        contrasts = draw.contrasts(images)
        codes = images.clamp(min=0)[:, None] * (frame.images + 1) + contrasts + 1
        distinct, pair = codes.unique(return_inverse=True)
        positive, contrast = distinct // (frame.images + 1), distinct % (frame.images + 1) - 1
        residual = contrastive.residuals(e.image_emb[positive][None], e.images_of(contrast)[None], gamma)[0]
        return residual, residual @ e.label_emb.T, pair, place, contrast >= 0

    def best(draw: Draw, block: Block) -> Tensor:
        residual, against, pair, place, there = pairs(draw)
        own = pair[place[fill[block.units]], column[block.units, None]]
        share = torch.zeros(len(own), len(residual), device=residual.device)
        share.scatter_(1, own, weights[block.units] * there[own])
        norm = (share @ residual).norm(dim=1)
        scores = best_of(share @ against) / norm
        return scores.masked_fill(share.sum(dim=1) == 0, torch.nan)

    return best


def correlated(frame: Frame, right: Tensor, power: int, floor: float) -> Best:
    """Pearson and its cube: each draw is one product, over the ranks at which units are above their lowest."""
    means = column_means(frame.evidence.acts)
    sums = right.sum(dim=0, dtype=torch.float64).to(right.dtype)
    state: dict[int, tuple[Tensor, Tensor]] = {}
    permuted = once(lambda draw: right.index_select(0, draw.order))

    def entries(block: Block) -> tuple[Tensor, Tensor]:
        centres = means[block.units, None]
        high, low = (block.sorted - centres) ** power, (block.lowest[:, None] - centres) ** power
        beyond = frame.images - block.sorted.shape[1]
        norm = ((high**2).sum(dim=1, keepdim=True) + beyond * low**2).sqrt().clamp(min=floor)
        constant = block.sorted[:, 0] == block.lowest
        low = low.masked_fill(constant[:, None], torch.nan)
        return ((high - low) / norm).to(right.dtype), (low / norm).to(right.dtype)

    def best(draw: Draw, block: Block) -> Tensor:
        if id(block) not in state:
            state[id(block)] = entries(block)
        high, low = state[id(block)]
        return best_of(torch.addmm(low * sums, high, permuted(draw)[: high.shape[1]]))

    return best


def ranked(frame: Frame) -> Best:
    """INVERT: the sum of ranks inside a concept, in float64 because equal areas are common.

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
        ranks = invert.mid_ranks(padded)
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


def weighted(frame: Frame) -> Best:
    """The CSP authors' CLIP-Dissect: one product of weights and the first images' probabilities."""
    ids, values = frame.evidence.positives(dissect.NEUROLENS_K)
    q = (frame.evidence.sims / 10.0).softmax(dim=1)
    mean = q.mean(dim=0)
    total = values.sum(dim=1, keepdim=True)
    weights = (values / total).masked_fill(total <= 0, torch.nan)  # 0 where no image is left
    fills, fill = frame.fills(ids.shape[1])

    def best(draw: Draw, block: Block) -> Tensor:
        out = torch.empty(len(block.units), device=q.device)
        for i, images in enumerate(draw.positives(fills, ids.shape[1]).clamp(min=0)):
            some = fill[block.units] == i
            if bool(some.any()):
                out[some] = best_of(weights[block.units[some]] @ (q[images] / mean) + 1e-6 / mean).log()
        return out

    return best


def likelihood(scorer: Scorer, frame: Frame) -> Best:
    """WPMI and soft-WPMI: a unit's permuted likelihood against the prior of the other units as they are."""
    e = frame.evidence
    soft = scorer.name == "soft_wpmi"
    of = dissect.soft_likelihoods(e.sims) if soft else dissect.likelihoods(e.sims)
    k = min(dissect.SOFT_K if soft else dissect.WPMI_K, frame.images)
    weight = 1.0 if soft else 0.6
    ids = e.positives(k)[0]
    others = dissect.others_logsumexp(of(ids), (ids >= 0).sum(dim=1))
    count = math.log(max(int((ids[:, 0] >= 0).sum()), 1))
    fills, fill = frame.fills(k)
    likelihoods = once(lambda draw: of(draw.positives(fills, k)))

    def best(draw: Draw, block: Block) -> Tensor:
        ll = likelihoods(draw)[fill[block.units]]
        if weight == 1:  # then the score falls with others - ll, and one logarithm a unit is enough
            return count - softplus((others[block.units] - ll).amin(dim=1))
        return best_of(ll - weight * (torch.logaddexp(others[block.units], ll) - count))

    return best


def best_of(scores: Float[Tensor, "some labels"]) -> Float[Tensor, "some"]:
    """The largest score of each row, NaN only where all are."""
    best = scores.nan_to_num(nan=-torch.inf).amax(dim=1)
    return best.masked_fill(best == -torch.inf, torch.nan)


LINEAR: dict[str, Callable[[Frame], Best]] = {
    "pearson": lambda frame: correlated(frame, whole_set.standardised(frame.evidence.sims), 1, 0.0),
    "cos_cubed": lambda frame: correlated(frame, whole_set.cubed(frame.evidence.sims), 3, whole_set.FLOOR),
    "invert": ranked,
    "clip_dissect_neurolens": weighted,
    "rank_reorder": reorder.reordered,
    "linear_explanations": linear.coefficients,
}
