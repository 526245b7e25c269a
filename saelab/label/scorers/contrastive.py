"""Contrastive Semantic Projection: labels against what sets each positive apart from its own contrast."""

from collections.abc import Callable

import torch
from jaxtyping import Bool, Float
from torch import Tensor
from torch.nn.functional import embedding_bag, normalize

from saelab.arrays import takes_arrays
from saelab.errors import UserError
from saelab.label.scorers.checks import promoted
from saelab.label.scorers.evidence import Evidence
from saelab.label.scorers.frame import Block, Draw, Frame, once
from saelab.label.scorers.means import check_sets, weighted_sum
from saelab.label.scorers.permuted import Best, best_of, where_ranked
from saelab.label.scorers.scorer import Citation, Moved, Null, Rows, Scorer


@takes_arrays
def csp(
    pos_emb: Float[Tensor, "units k d_text"],
    neg_emb: Float[Tensor, "units k d_text"],
    weights: Float[Tensor, "units k"],
    label_emb: Float[Tensor, "labels d_text"],
    gamma: float = 1.0,
    valid: Bool[Tensor, "units k"] | None = None,
) -> Float[Tensor, "units labels"]:
    """Contrastive Semantic Projection: labels against what sets the positives apart from their contrasts.

    With r_i = p_i - gamma <p_i, n_i> n_i and c = sum_i w_i r_i / (sum w + 1e-8), the score is <c / |c|, t>
    (arXiv 2604.22477 and the authors' code; neither r_i nor t is renormalised). gamma 1 projects each positive off
    its own contrast; gamma 0 with equal weights is SemanticLens. Cosines where labels have unit length.

    pos_emb, neg_emb: unit-length embeddings of the positives and of each one's contrast. weights: the positives'
    activations, or any other weights that are not negative. valid: False leaves a pair out (no contrast found, no
    positive). A unit without a valid pair of positive weight gets NaN.
    Raises UserError for negative weights (signed units would cancel: use relu, abs or rank weights).
    """
    pos_emb, neg_emb, weights, label_emb = promoted(pos_emb, neg_emb, weights, label_emb)
    check_sets(pos_emb, label_emb, weights, valid)
    if neg_emb.shape != pos_emb.shape:
        raise UserError(
            "neg_emb", tuple(neg_emb.shape), f"expected a contrast for each positive {tuple(pos_emb.shape)}"
        )
    centre = weighted_sum(residuals(pos_emb, neg_emb, gamma), weights, valid)
    return normalize(centre, dim=1) @ label_emb.T


@takes_arrays
def pair_weights(values: Float[Tensor, "units k"], kind: str = "relu") -> Float[Tensor, "units k"]:
    """Weights for CSP from the positives' activations, none negative.

    `relu` (negative activations weigh 0), `abs`, `rank` (k, k-1, ..., 1), `equal`, `raw` (as they are).
    Raises UserError for `raw` with a negative activation, under which weights would cancel.
    """
    if kind == "raw" and bool((values < 0).any()):
        raise UserError("weights", kind, "some positives have negative activations", "use relu, abs or rank")
    ramp = torch.arange(values.shape[1], 0, -1, dtype=values.dtype, device=values.device).expand_as(values)
    kinds = {
        "raw": values,
        "relu": values.clamp(min=0),
        "abs": values.abs(),
        "rank": ramp,
        "equal": torch.ones_like(values),
    }
    if kind not in kinds:
        raise UserError("weights", kind, f"expected one of {', '.join(kinds)}")
    return kinds[kind]


def residuals(
    pos_emb: Float[Tensor, "units k d_text"], neg_emb: Float[Tensor, "units k d_text"], gamma: float
) -> Float[Tensor, "units k d_text"]:
    """Each positive less gamma times its projection on its own contrast: p - gamma <p, n> n."""
    along = (pos_emb * neg_emb).sum(dim=2, keepdim=True)
    return pos_emb - gamma * along * neg_emb


def projected(frame: Frame, gamma: float) -> Best:
    """CSP under permutation: units differ in weights and in which of a positive's few possible contrasts they get.

    As the candidates of a unit are a run of ranks, a positive has only as many different contrasts over all units
    as its running maximum has steps. Each such pair's residual meets the labels once; units are weighted sums.
    """
    e = frame.evidence
    weights = pair_weights(e.positive_values.nan_to_num(nan=0.0))
    fills, fill = frame.fills(frame.k)
    _, column = frame.ranges

    @once
    def pairs(draw: Draw) -> tuple[Tensor, ...]:
        images, place = draw.positives(fills, frame.k).unique(return_inverse=True)
        contrasts = draw.contrasts(images)
        codes = images.clamp(min=0)[:, None] * (frame.images + 1) + contrasts + 1
        distinct, pair = codes.unique(return_inverse=True)
        positive, contrast = distinct // (frame.images + 1), distinct % (frame.images + 1) - 1
        residual = residuals(e.image_emb[positive][None], e.images_of(contrast)[None], gamma)[0]
        return residual, residual @ e.label_emb.T, pair, place, contrast >= 0

    def best(draw: Draw, block: Block) -> Tensor:
        residual, against, pair, place, there = pairs(draw)
        own = pair[place[fill[block.units]], column[block.units, None]]
        share = residual.new_zeros(len(own), len(residual))
        share.scatter_(1, own, weights[block.units] * there[own])
        norm = (share @ residual).norm(dim=1)
        scores = best_of(share @ against) / norm
        return scores.masked_fill(share.sum(dim=1) == 0, torch.nan)

    return best


def _csp(gamma: float) -> Callable[[Evidence], Rows]:
    def start(e: Evidence) -> Rows:
        weights = pair_weights(e.positive_values.nan_to_num(nan=0.0))

        def rows(units: slice) -> Tensor:
            pos, neg = e.images_of(e.positive_ids[units]), e.images_of(e.contrast_ids[units])
            return csp(pos, neg, weights[units], e.label_emb, gamma, e.valid[units])

        return rows

    return start


def _csp_null(gamma: float) -> Null:
    return where_ranked(lambda scorer, frame: projected(frame, gamma))


def _csp_moved(gamma: float) -> Callable[[Evidence], Moved]:
    """CSP where series move: as residuals are not renormalised, a unit's mean residual is a sum of image vectors."""

    def start(e: Evidence) -> Moved:
        weights = pair_weights(e.positive_values.nan_to_num(nan=0.0))

        def best(seen: Evidence) -> Tensor:
            own, ids = weights.masked_fill(~seen.valid, 0.0), torch.cat([seen.positive_ids, seen.contrast_ids], dim=1)
            ids, share = ids.clamp(min=0), torch.cat([own, -gamma * seen.alike * own], dim=1)
            centre = embedding_bag(ids, seen.image_emb, mode="sum", per_sample_weights=share)
            return best_of(normalize(centre, dim=1) @ seen.label_emb.T).masked_fill(own.sum(dim=1) == 0, torch.nan)

        return best

    return start


BOUANANI = Citation(
    "Bouanani et al., arXiv 2604.22477",
    """@article{bouanani2026csp,
  title = {Contrastive Semantic Projection},
  author = {Bouanani, Oussama and Berend, Jim and Samek, Wojciech and Lapuschkin, Sebastian and Dreyer, Maximilian},
  journal = {arXiv preprint arXiv:2604.22477},
  year = {2026}
}""",
)
SCORERS = (
    Scorer(
        "csp",
        "pairs",
        "CSP",
        "Contrastive Semantic Projection: what the strong images have and their look-alike contrasts lack.",
        _csp(1.0),
        _csp_null(1.0),
        BOUANANI,
        alone=True,
        moved=_csp_moved(1.0),
    ),
    Scorer(
        "csp_0.5",
        "pairs",
        "CSP 0.5",
        "Contrastive Semantic Projection with half of the projection: the strong images less half of what they share "
        "with their look-alike contrasts.",
        _csp(0.5),
        _csp_null(0.5),
        BOUANANI,
        alone=True,
        moved=_csp_moved(0.5),
    ),
)
