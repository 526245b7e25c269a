"""Several meanings of one unit: clusters of its positives, a label for each, and how much of it each explains."""

import random
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float
from torch import Tensor
from torch.nn.functional import normalize

from saelab.label.assign import csp, semanticlens
from saelab.metrics.two_means import two_means

BEST_SHARE = 0.1  # of the labels: a label among so many best of the other side says much of that side too
SETS, LEVEL = 400, 0.95  # sets of random images that a split is held against, and the share of them it has to beat
BLOCK = 1 << 24  # numbers held at a time


@dataclass(frozen=True)
class Meaning:
    """One cluster of a unit's positives."""

    members: tuple[int, ...]  # places among the unit's positives, strongest first
    share: float  # share of the activation of the unit's positives that it covers; 0 to 1
    label: int  # its own best label
    score: float  # that label's score for this cluster alone


class Chance:
    """How much of one thing each side of a split is, and what splits of images drawn at random reach.

    A side's evidence is that of the label that fits it best: the sum over its images of their similarity, standardised
    per label over all images, over the square root of their number.
    """

    def __init__(
        self, image_emb: Float[Tensor, "images d_text"], label_emb: Float[Tensor, "labels d_text"], seed: int = 0
    ) -> None:
        self.images, self.seed = image_emb, seed
        self._centre = image_emb.mean(dim=0)
        rest = image_emb - self._centre
        spread = ((label_emb @ (rest.T @ rest / len(rest))) * label_emb).sum(dim=1).clamp(min=0).sqrt()
        constant = spread <= 1e-6 * label_emb.norm(dim=1)
        self._labels = label_emb / spread.masked_fill(constant, torch.inf)[:, None]
        self._bars: dict[int, float] = {}

    def evidence(
        self, pos_emb: Float[Tensor, "units k d_text"], second: Tensor, valid: Tensor
    ) -> Float[Tensor, "units"]:
        """That of the weaker side; `second`: which positives are on the other side than the first."""
        sides = [self._evidence(pos_emb, part) for part in (second & valid, ~second & valid)]
        return torch.minimum(*sides)

    def bar(self, images: int) -> float:
        """What 95 % of the splits of so many random images stay below."""
        if images not in self._bars:
            draw = random.Random(f"{self.seed}/{images}")
            ids = torch.tensor([draw.sample(range(len(self.images)), images) for _ in range(SETS)])
            drawn = self.images[ids.to(self.images.device)]
            second = two_means(normalize(drawn, dim=2))
            found = self.evidence(drawn, second, torch.ones_like(second))
            self._bars[images] = float(found.quantile(LEVEL))
        return self._bars[images]

    def _evidence(self, pos_emb: Tensor, part: Bool[Tensor, "units k"]) -> Float[Tensor, "units"]:
        count = part.sum(dim=1, keepdim=True)
        total = torch.einsum("ukd,uk->ud", pos_emb, part.to(pos_emb.dtype)) - count * self._centre
        return (total / count.clamp(min=1).sqrt() @ self._labels.T).amax(dim=1)


def meanings(
    pos_emb: Float[Tensor, "units k d_text"],
    weights: Float[Tensor, "units k"],
    label_emb: Float[Tensor, "labels d_text"],
    chance: Chance,
    neg_emb: Float[Tensor, "units k d_text"] | None = None,
    valid: Bool[Tensor, "units k"] | None = None,
) -> list[tuple[Meaning, ...]]:
    """One meaning for each unit, or two where its positives fall apart; by activation covered, the larger first.

    The positives are split by 2-means (as polysemanticity is measured; PRISM, 2025, clusters a unit's images in the
    same way), and each side gets its own best label. 2-means splits any set, so the split stands only if
    * neither label says much of the other side: it is not among the best tenth of the labels there;
    * each side is of one thing: the weaker one's evidence is above that of 95 % of as many random images split alike
      (`chance`), so that images with nothing in common are not taken for two meanings;
    * each side has two images or more.
    docs/scorers.md has what this rule was chosen on. A unit of two tuples is polysemantic. Labels by CSP (gamma 1)
    where contrasts are given, else by SemanticLens. A unit without a valid positive of positive weight has no meaning.
    """
    valid = torch.ones(weights.shape, dtype=torch.bool, device=weights.device) if valid is None else valid
    weights = weights.clamp(min=0).masked_fill(~valid, 0.0)
    step = max(1, BLOCK // max(len(label_emb), pos_emb.shape[1] * pos_emb.shape[2], 1))
    out: list[tuple[Meaning, ...]] = []
    for first in range(0, len(pos_emb), step):
        block = slice(first, first + step)
        neg = None if neg_emb is None else neg_emb[block]
        out += _of_block(pos_emb[block], weights[block], label_emb, chance, neg)
    return out


def _of_block(
    pos: Tensor, weights: Tensor, label_emb: Tensor, chance: Chance, neg: Tensor | None
) -> list[tuple[Meaning, ...]]:
    """Each unit's whole and, where its positives fall apart, both sides; their labels in three products."""
    there = weights > 0
    second = two_means(normalize(pos, dim=2), there) & there
    parts = [there, second, there & ~second]
    scores = [_scores(pos, part, weights, label_emb, neg) for part in parts]
    labels = [own.argmax(dim=1, keepdim=True) for own in scores]
    apart = (_beaten_by(scores[1], labels[2]) > BEST_SHARE) & (_beaten_by(scores[2], labels[1]) > BEST_SHARE)
    apart &= (parts[1].sum(dim=1) > 1) & (parts[2].sum(dim=1) > 1)
    evidence = chance.evidence(pos, second, there).tolist()
    for unit in apart.nonzero()[:, 0].tolist():
        apart[unit] = evidence[unit] > chance.bar(int(there[unit].sum()))
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
