"""Several meanings of one unit: clusters of its positives, a label for each, and how much of it each explains."""

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float
from torch import Tensor
from torch.nn.functional import normalize

from saelab.label.assign.contrastive import csp, semanticlens
from saelab.metrics.two_means import two_means

BEST_SHARE = 0.1  # of the labels: a label among so many best of the other side says much of that side too
BLOCK = 1 << 24  # numbers held at a time


@dataclass(frozen=True)
class Meaning:
    """One cluster of a unit's positives."""

    members: tuple[int, ...]  # places among the unit's positives, strongest first
    share: float  # share of the activation of the unit's positives that it covers; 0 to 1
    label: int  # its own best label
    score: float  # that label's score for this cluster alone


def meanings(
    pos_emb: Float[Tensor, "units k d_text"],
    weights: Float[Tensor, "units k"],
    label_emb: Float[Tensor, "labels d_text"],
    neg_emb: Float[Tensor, "units k d_text"] | None = None,
    valid: Bool[Tensor, "units k"] | None = None,
) -> list[tuple[Meaning, ...]]:
    """One meaning for each unit, or two where its positives fall apart; by activation covered, the larger first.

    The positives are split by 2-means (as polysemanticity is measured; PRISM, 2025, clusters a unit's images in the
    same way), and each side gets its own best label. 2-means splits any set, so the split stands only if neither label
    says much of the other side: it is not among the best tenth of the labels there (docs/scorers.md has what this rule
    was chosen on), and each side has two images or more. A unit of two tuples is polysemantic. Labels by CSP (gamma 1)
    where contrasts are given, else by SemanticLens. A unit without a valid positive of positive weight has no meaning.
    """
    valid = torch.ones(weights.shape, dtype=torch.bool, device=weights.device) if valid is None else valid
    weights = weights.clamp(min=0).masked_fill(~valid, 0.0)
    step = max(1, BLOCK // max(len(label_emb), pos_emb.shape[1] * pos_emb.shape[2], 1))
    out: list[tuple[Meaning, ...]] = []
    for first in range(0, len(pos_emb), step):
        block = slice(first, first + step)
        neg = None if neg_emb is None else neg_emb[block]
        out += _of_block(pos_emb[block], weights[block], label_emb, neg)
    return out


def _of_block(pos: Tensor, weights: Tensor, label_emb: Tensor, neg: Tensor | None) -> list[tuple[Meaning, ...]]:
    """Each unit's whole and, where its positives fall apart, both sides; their labels in three products."""
    there = weights > 0
    second = two_means(normalize(pos, dim=2), there) & there
    parts = [there, second, there & ~second]
    scores = [_scores(pos, part, weights, label_emb, neg) for part in parts]
    labels = [own.argmax(dim=1, keepdim=True) for own in scores]
    apart = (_beaten_by(scores[1], labels[2]) > BEST_SHARE) & (_beaten_by(scores[2], labels[1]) > BEST_SHARE)
    apart &= (parts[1].sum(dim=1) > 1) & (parts[2].sum(dim=1) > 1)
    shares = [weights.masked_fill(~part, 0.0).sum(dim=1) / weights.sum(dim=1) for part in parts]
    best = [own.gather(1, label)[:, 0] for own, label in zip(scores, labels, strict=True)]
    found = []
    for unit in range(len(pos)):
        whole, *two = (
            Meaning(
                tuple(part[unit].nonzero()[:, 0].tolist()), float(share[unit]), int(label[unit]), float(score[unit])
            )
            for part, share, label, score in zip(parts, shares, labels, best, strict=True)
        )
        one = (whole,) if whole.members else ()
        found.append(tuple(sorted(two, key=lambda m: -m.share)) if apart[unit] else one)
    return found


def _beaten_by(scores: Float[Tensor, "units labels"], label: Tensor) -> Float[Tensor, "units"]:
    """Share of the labels that score higher than the given one."""
    return (scores > scores.gather(1, label)).float().mean(dim=1)


def _scores(pos: Tensor, part: Tensor, weights: Tensor, label_emb: Tensor, neg: Tensor | None) -> Tensor:
    """Scores of all labels for a part of each unit's positives; -inf where there is none."""
    if neg is None:
        scores = semanticlens(pos, label_emb, part)
    else:
        scores = csp(pos, neg, weights, label_emb, valid=part)
    return scores.nan_to_num(nan=-torch.inf)
