"""INVERT's compositional labels: AND, OR and NOT of concepts, found by beam search (Bykov et al., NeurIPS 2023)."""

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from saelab.acts import Acts, blocks, columns, shape
from saelab.arrays import takes_arrays
from saelab.errors import UserError
from saelab.label.scorers.ranks import mid_ranks

OPERATORS = ("and", "and not", "or", "or not")


@dataclass(frozen=True)
class Formula:
    """A formula of concepts, read from left to right: ((first op second) op third) ..."""

    labels: tuple[int, ...]  # columns of the concepts
    operators: tuple[str, ...]  # one fewer than labels, of OPERATORS
    auc: float  # AUROC of the unit against the images on which the formula holds
    share: float  # share of images on which it holds
    p_value: float  # two-sided Mann-Whitney p of that AUROC (normal, corrected for ties); not for the search

    def text(self, names: list[str]) -> str:
        """The formula in words."""
        words = names[self.labels[0]]
        for operator, label in zip(self.operators, self.labels[1:], strict=True):
            words = f"({words} {operator} {names[label]})"
        return words

    def holds(self, concepts: Bool[Tensor, "images labels"]) -> Bool[Tensor, "images"]:
        """On which images the formula is true."""
        mask = concepts[:, self.labels[0]].bool()
        for operator, label in zip(self.operators, self.labels[1:], strict=True):
            other = concepts[:, label].bool() ^ operator.endswith("not")
            mask = mask & other if operator.startswith("and") else mask | other
        return mask


@takes_arrays
def invert_formulas(
    acts: Acts, concepts: Bool[Tensor, "images labels"], length: int = 3, beam: int = 5, least: int = 10
) -> list[Formula | None]:
    """Each unit's formula of at most `length` concepts with the largest AUROC; None for units that are not finite.

    Beam search: the `beam` best formulas are extended by each concept with each operator, as long as they hold on at
    least `least` images and fail on as many. A longer formula is given only if its AUROC is higher. None also where
    no concept holds on that many images.
    """
    acts = columns(acts)
    if concepts.ndim != 2 or len(concepts) != shape(acts)[0]:
        raise UserError("concepts", tuple(concepts.shape), f"expected [images, labels] with {shape(acts)[0]} images")
    truth = concepts.double()
    out: list[Formula | None] = []
    for _, part in blocks(acts, 1 << 22):
        for ranks in mid_ranks(part.T):
            finite = bool(ranks.isfinite().all())
            out.append(_search(ranks, truth, length, beam, least) if finite else None)
    return out


def _search(
    ranks: Float[Tensor, "images"], truth: Float[Tensor, "images labels"], length: int, beam: int, least: int
) -> Formula | None:
    images, labels = truth.shape
    held = truth.sum(dim=0)
    scores = _auc(ranks @ truth, held, images, least)
    best = scores.topk(min(beam, labels))
    frontier = [
        (float(auc), (int(l),), (), truth[:, l]) for auc, l in zip(best.values, best.indices, strict=True) if auc >= 0
    ]
    if not frontier:
        return None
    winner = frontier[0]
    for _ in range(length - 1):
        masks = torch.stack([mask for *_, mask in frontier])
        grown = _extend(ranks, truth, masks, least)  # [formulas, operators, labels]
        for i, (_, used, _, _) in enumerate(frontier):
            grown[i][:, list(used)] = -1
        best = grown.flatten().topk(min(beam, grown.numel()))
        grown_frontier = []
        for auc, place in zip(best.values.tolist(), best.indices.tolist(), strict=True):
            i, operator, label = place // (4 * labels), place // labels % 4, place % labels
            _, used, operators, mask = frontier[i]
            if auc >= 0:
                joined = _join(mask, truth[:, label], operator)
                grown_frontier.append((auc, (*used, label), (*operators, OPERATORS[operator]), joined))
        if not grown_frontier:
            break
        frontier = grown_frontier
        winner = max(winner, frontier[0], key=lambda f: (round(f[0], 12), -len(f[1])))
    auc, used, operators, mask = winner
    n1 = int(mask.sum())
    return Formula(used, operators, auc, n1 / images, _p_value(ranks, auc, n1))


def _extend(ranks: Tensor, truth: Tensor, masks: Tensor, least: int) -> Float[Tensor, "formulas 4 labels"]:
    """AUROC of every formula extended by every operator and concept, from four products."""
    images = len(ranks)
    total, sums = ranks.sum(), masks @ ranks
    inside, both = (masks * ranks) @ truth, masks @ truth  # rank sums and counts where formula and concept hold
    concept, held = ranks @ truth, truth.sum(dim=0)
    size = masks.sum(dim=1, keepdim=True)
    rank_sums = [inside, sums[:, None] - inside, sums[:, None] + concept - inside, total - concept + inside]
    counts = [both, size - both, size + held - both, images - held + both]
    return torch.stack([_auc(s, n, images, least) for s, n in zip(rank_sums, counts, strict=True)], dim=1)


def _auc(rank_sums: Tensor, counts: Tensor, images: int, least: int) -> Tensor:
    """AUROC from rank sums; -1 where the set or the rest has fewer than `least` images."""
    auc = (rank_sums - counts * (counts + 1) / 2) / (counts * (images - counts))
    return auc.masked_fill((counts < least) | (images - counts < least), -1.0)


def _join(mask: Tensor, concept: Tensor, operator: int) -> Tensor:
    other = concept if operator in (0, 2) else 1 - concept
    return mask * other if operator < 2 else torch.maximum(mask, other)


def _p_value(ranks: Tensor, auc: float, n1: int) -> float:
    from scipy.stats import norm

    n = len(ranks)
    n0 = n - n1
    ties = ranks.unique(return_counts=True)[1].double()
    variance = n1 * n0 / 12 * (n + 1 - float((ties**3 - ties).sum()) / (n * (n - 1)))
    distance = max(abs(auc - 0.5) * n1 * n0 - 0.5, 0.0)  # continuity correction, as in scipy
    return float(2 * norm.sf(distance / variance**0.5)) if variance > 0 else float("nan")
