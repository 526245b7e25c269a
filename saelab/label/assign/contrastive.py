"""Scorers that compare labels with the mean of a unit's positives, with or without their contrasts."""

import torch
from jaxtyping import Bool, Float
from torch import Tensor
from torch.nn.functional import normalize

from saelab.arrays import takes_arrays
from saelab.errors import UserError
from saelab.label.assign.checks import check_labels


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
    _check_sets(pos_emb, label_emb, weights, valid)
    if neg_emb.shape != pos_emb.shape:
        raise UserError(
            "neg_emb", tuple(neg_emb.shape), f"expected a contrast for each positive {tuple(pos_emb.shape)}"
        )
    centre = weighted_sum(residuals(pos_emb, neg_emb, gamma), weights, valid)
    return normalize(centre, dim=1) @ label_emb.T


@takes_arrays
def semanticlens(
    pos_emb: Float[Tensor, "units k d_text"],
    label_emb: Float[Tensor, "labels d_text"],
    valid: Bool[Tensor, "units k"] | None = None,
) -> Float[Tensor, "units labels"]:
    """SemanticLens: cosine of the plain mean of the positives' embeddings with each label.

    Source: Dreyer et al., Nature Machine Intelligence 2025. `valid` False leaves a positive out; a unit without
    any gets NaN. For the package's template form pass labels from `template_contrast`.
    """
    weights = torch.ones(pos_emb.shape[:2], dtype=pos_emb.dtype, device=pos_emb.device)
    _check_sets(pos_emb, label_emb, weights, valid)
    return normalize(weighted_sum(pos_emb, weights, valid), dim=1) @ normalize(label_emb, dim=1).T


@takes_arrays
def difference_of_means(
    pos_emb: Float[Tensor, "units k d_text"],
    neg_emb: Float[Tensor, "units k d_text"],
    label_emb: Float[Tensor, "labels d_text"],
    valid: Bool[Tensor, "units k"] | None = None,
) -> Float[Tensor, "units labels"]:
    """Ablation of CSP: cosine of (mean positive - mean contrast) with each label; NaN without a valid pair."""
    pos, neg = _pair_means(pos_emb, neg_emb, label_emb, valid)
    return normalize(pos - neg, dim=1) @ normalize(label_emb, dim=1).T


@takes_arrays
def set_projection(
    pos_emb: Float[Tensor, "units k d_text"],
    neg_emb: Float[Tensor, "units k d_text"],
    label_emb: Float[Tensor, "labels d_text"],
    valid: Bool[Tensor, "units k"] | None = None,
) -> Float[Tensor, "units labels"]:
    """Ablation of CSP: the mean positive less its projection on the mean contrast, against each label."""
    pos, neg = _pair_means(pos_emb, neg_emb, label_emb, valid)
    along = normalize(neg, dim=1)
    rest = pos - (pos * along).sum(dim=1, keepdim=True) * along
    return normalize(rest, dim=1) @ normalize(label_emb, dim=1).T


@takes_arrays
def centred_mean(
    pos_emb: Float[Tensor, "units k d_text"],
    mean_emb: Float[Tensor, "d_text"],
    label_emb: Float[Tensor, "labels d_text"],
    valid: Bool[Tensor, "units k"] | None = None,
) -> Float[Tensor, "units labels"]:
    """Ablation: cosine of (mean positive - mean of all images, `mean_emb`) with each label."""
    pos, _ = _pair_means(pos_emb, pos_emb, label_emb, valid)
    return normalize(pos - mean_emb, dim=1) @ normalize(label_emb, dim=1).T


@takes_arrays
def decoder_direction(
    decoder: Float[Tensor, "units d_text"], label_emb: Float[Tensor, "labels d_text"]
) -> Float[Tensor, "units labels"]:
    """Cosine of an SAE's decoder row with each label: only where the SAE was trained in the text-aligned space.

    Source: Discover-then-Name (Rao et al., ECCV 2024). A row of zeros gets NaN. Raises UserError where the
    dimensions differ, which is how a decoder of another space shows.
    """
    if decoder.ndim != 2:
        raise UserError("decoder", tuple(decoder.shape), "expected [units, d_text]")
    check_labels(label_emb, decoder.shape[1])
    scores = normalize(decoder, dim=1) @ normalize(label_emb, dim=1).T
    return scores.masked_fill((decoder.norm(dim=1) == 0)[:, None], torch.nan)


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


@takes_arrays
def template_contrast(
    filled: Float[Tensor, "templates labels d_text"], empty: Float[Tensor, "templates d_text"]
) -> Float[Tensor, "labels d_text"]:
    """SemanticLens's label embeddings: the mean over templates of (filled template - empty template)."""
    return (filled - empty[:, None]).mean(dim=0)


def residuals(
    pos_emb: Float[Tensor, "units k d_text"], neg_emb: Float[Tensor, "units k d_text"], gamma: float
) -> Float[Tensor, "units k d_text"]:
    """Each positive less gamma times its projection on its own contrast: p - gamma <p, n> n."""
    along = (pos_emb * neg_emb).sum(dim=2, keepdim=True)
    return pos_emb - gamma * along * neg_emb


def weighted_sum(
    vectors: Float[Tensor, "units k d_text"], weights: Float[Tensor, "units k"], valid: Bool[Tensor, "units k"] | None
) -> Float[Tensor, "units d_text"]:
    """sum_i w_i v_i / (sum w + 1e-8) over the valid ones; NaN for a unit whose weights are all zero or invalid.

    Raises UserError if a valid weight is negative.
    """
    if valid is not None:
        weights = weights.masked_fill(~valid, 0.0)
        vectors = vectors.masked_fill(~valid[:, :, None], 0.0)
    if bool((weights < 0).any()):
        raise UserError(
            "weights", float(weights.min()), "expected weights of at least 0", "use relu, abs or rank weights"
        )
    total = weights.sum(dim=1, keepdim=True)
    weights = weights / (total + 1e-8)
    return torch.einsum("uk,ukd->ud", weights, vectors).masked_fill(total == 0, torch.nan)


def _pair_means(pos_emb: Tensor, neg_emb: Tensor, label_emb: Tensor, valid: Tensor | None) -> tuple[Tensor, Tensor]:
    ones = torch.ones(pos_emb.shape[:2], dtype=pos_emb.dtype, device=pos_emb.device)
    _check_sets(pos_emb, label_emb, ones, valid)
    if neg_emb.shape != pos_emb.shape:
        raise UserError(
            "neg_emb", tuple(neg_emb.shape), f"expected a contrast for each positive {tuple(pos_emb.shape)}"
        )
    return weighted_sum(pos_emb, ones, valid), weighted_sum(neg_emb, ones, valid)


def _check_sets(pos_emb: Tensor, label_emb: Tensor, weights: Tensor, valid: Tensor | None) -> None:
    if pos_emb.ndim != 3:
        raise UserError("pos_emb", tuple(pos_emb.shape), "expected [units, k, d_text]")
    check_labels(label_emb, pos_emb.shape[2])
    for name, tensor in (("weights", weights), ("valid", valid)):
        if tensor is not None and tensor.shape != pos_emb.shape[:2]:
            raise UserError(name, tuple(tensor.shape), f"expected [units, k] = {tuple(pos_emb.shape[:2])}")
