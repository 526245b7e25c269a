"""Several meanings of one unit: clusters of its positives, a label for each, and how much of it each explains."""

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float
from torch import Tensor
from torch.nn.functional import normalize

from saelab.label.assign.contrastive import csp, semanticlens
from saelab.metrics.coherence import one_thread, two_means

LEAST_GAIN = 0.1  # default of `meanings`: silhouette above which a unit counts as having two meanings


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
    least: float = LEAST_GAIN,
) -> list[tuple[Meaning, ...]]:
    """One meaning for each unit, or two where its positives fall apart; by activation covered, the larger first.

    The positives are split by 2-means (as polysemanticity is measured; PRISM, 2025, clusters a unit's images in the
    same way). The split stands if its mean silhouette (cosine distance) is at least `least`, each side has two images
    or more, and the sides get different labels: a unit of two tuples is polysemantic. Labels by CSP (gamma 1) where
    contrasts are given, else by SemanticLens. A unit without a valid positive of positive weight has no meaning.
    """
    valid = torch.ones(weights.shape, dtype=torch.bool, device=weights.device) if valid is None else valid
    weights = weights.clamp(min=0).masked_fill(~valid, 0.0)
    out = []
    with one_thread():
        for unit in range(len(pos_emb)):
            ids = (valid[unit] & (weights[unit] > 0)).nonzero()[:, 0]
            rest = None if neg_emb is None else neg_emb[unit, ids]
            out.append(_of_unit(pos_emb[unit, ids], weights[unit, ids], label_emb, rest, ids, least))
    return out


def silhouette(rows: Float[Tensor, "k d_text"], second: Bool[Tensor, "k"]) -> float:
    """Mean silhouette of a split in two by cosine distance: -1 to 1, 0 where the split says nothing."""
    from sklearn.metrics import silhouette_score

    return float(silhouette_score(rows.double().cpu().numpy(), second.cpu().numpy(), metric="cosine"))


def _of_unit(
    pos: Tensor, weights: Tensor, label_emb: Tensor, neg: Tensor | None, ids: Tensor, least: float
) -> tuple[Meaning, ...]:
    if not len(ids):
        return ()
    whole = torch.ones(len(ids), dtype=torch.bool, device=ids.device)
    one = (_meaning(whole, pos, weights, label_emb, neg, ids),)
    if len(ids) < 4:
        return one
    rows = normalize(pos, dim=1)
    second = two_means(rows.double().cpu()).to(ids.device)
    if min(int(second.sum()), int((~second).sum())) < 2 or silhouette(rows, second) < least:
        return one
    two = [_meaning(part, pos, weights, label_emb, neg, ids) for part in (second, ~second)]
    if two[0].label == two[1].label:
        return one
    return tuple(sorted(two, key=lambda m: -m.share))


def _meaning(part: Tensor, pos: Tensor, weights: Tensor, label_emb: Tensor, neg: Tensor | None, ids: Tensor) -> Meaning:
    if neg is None:
        scores = semanticlens(pos[part][None], label_emb)[0]
    else:
        scores = csp(pos[part][None], neg[part][None], weights[part][None], label_emb)[0]
    label = int(scores.argmax())
    share = float(weights[part].sum() / weights.sum())
    return Meaning(tuple(ids[part].tolist()), share, label, float(scores[label]))
