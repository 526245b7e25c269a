"""Scorers that compare labels with the mean of a unit's positives, with or without their contrasts."""

from collections.abc import Callable

import torch
from jaxtyping import Bool, Float
from torch import Tensor
from torch.nn.functional import embedding_bag, normalize

from saelab.arrays import takes_arrays
from saelab.errors import UserError
from saelab.label.scorers.checks import check_labels, promoted
from saelab.label.scorers.evidence import Evidence
from saelab.label.scorers.permuted import best_of, positives_only, unweighted_pairs
from saelab.label.scorers.scorer import Citation, Moved, Rows, Scorer


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
    pos_emb, label_emb = promoted(pos_emb, label_emb)
    weights = torch.ones(pos_emb.shape[:2], dtype=pos_emb.dtype, device=pos_emb.device)
    check_sets(pos_emb, label_emb, weights, valid)
    return normalize(weighted_sum(pos_emb, weights, valid), dim=1) @ normalize(label_emb, dim=1).T


@takes_arrays
def difference_of_means(
    pos_emb: Float[Tensor, "units k d_text"],
    neg_emb: Float[Tensor, "units k d_text"],
    label_emb: Float[Tensor, "labels d_text"],
    valid: Bool[Tensor, "units k"] | None = None,
) -> Float[Tensor, "units labels"]:
    """Ablation of CSP: cosine of (mean positive - mean contrast) with each label; NaN without a valid pair."""
    pos_emb, neg_emb, label_emb = promoted(pos_emb, neg_emb, label_emb)
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
    pos_emb, neg_emb, label_emb = promoted(pos_emb, neg_emb, label_emb)
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
    pos_emb, mean_emb, label_emb = promoted(pos_emb, mean_emb, label_emb)
    pos, _ = _pair_means(pos_emb, pos_emb, label_emb, valid)
    return normalize(pos - mean_emb, dim=1) @ normalize(label_emb, dim=1).T


@takes_arrays
def template_contrast(
    filled: Float[Tensor, "templates labels d_text"], empty: Float[Tensor, "templates d_text"]
) -> Float[Tensor, "labels d_text"]:
    """SemanticLens's label embeddings: the mean over templates of (filled template - empty template)."""
    return (filled - empty[:, None]).mean(dim=0)


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
    check_sets(pos_emb, label_emb, ones, valid)
    if neg_emb.shape != pos_emb.shape:
        raise UserError(
            "neg_emb", tuple(neg_emb.shape), f"expected a contrast for each positive {tuple(pos_emb.shape)}"
        )
    return weighted_sum(pos_emb, ones, valid), weighted_sum(neg_emb, ones, valid)


def check_sets(pos_emb: Tensor, label_emb: Tensor, weights: Tensor, valid: Tensor | None) -> None:
    """Raise UserError unless positives, labels, weights and `valid` fit together."""
    if pos_emb.ndim != 3:
        raise UserError("pos_emb", tuple(pos_emb.shape), "expected [units, k, d_text]")
    check_labels(label_emb, pos_emb.shape[2])
    for name, tensor in (("weights", weights), ("valid", valid)):
        if tensor is not None and tensor.shape != pos_emb.shape[:2]:
            raise UserError(name, tuple(tensor.shape), f"expected [units, k] = {tuple(pos_emb.shape[:2])}")


def _pairs(function: Callable[..., Tensor]) -> Callable[[Evidence], Rows]:
    """For functions of (positives, contrasts, labels, valid)."""

    def start(e: Evidence) -> Rows:
        def rows(units: slice) -> Tensor:
            pos, neg = e.images_of(e.positive_ids[units]), e.images_of(e.contrast_ids[units])
            return function(pos, neg, e.label_emb, e.valid[units])

        return rows

    return start


def _semanticlens_moved(e: Evidence) -> Moved:
    """SemanticLens where series move: positives stay, and their mean is a sum of image vectors."""
    there, labels = (e.positive_ids >= 0).to(e.image_emb.dtype), normalize(e.label_emb, dim=1)

    def best(seen: Evidence) -> Tensor:
        ids = seen.positive_ids.clamp(min=0)
        centre = embedding_bag(ids, seen.image_emb, mode="sum", per_sample_weights=there)
        return best_of(normalize(centre, dim=1) @ labels.T).masked_fill(there.sum(dim=1) == 0, torch.nan)

    return best


def _semanticlens(e: Evidence, label_emb: Tensor | None = None) -> Rows:
    labels = e.label_emb if label_emb is None else label_emb

    def rows(units: slice) -> Tensor:
        ids = e.positive_ids[units]
        return semanticlens(e.images_of(ids), labels, ids >= 0)

    return rows


def _centred_mean(e: Evidence) -> Rows:
    mean = e.image_emb.mean(dim=0)

    def rows(units: slice) -> Tensor:
        ids = e.positive_ids[units]
        return centred_mean(e.images_of(ids), mean, e.label_emb, ids >= 0)

    return rows


DREYER = Citation(
    "Dreyer et al., 2025",
    """@article{dreyer2025semanticlens,
  title = {Mechanistic understanding and validation of large {AI} models with {SemanticLens}},
  author = {Dreyer, Maximilian and Berend, Jim and Labarta, Tobias and Vielhaben, Johanna and Wiegand, Thomas
            and Lapuschkin, Sebastian and Samek, Wojciech},
  journal = {Nature Machine Intelligence},
  year = {2025}
}""",
)
SCORERS = (
    Scorer(
        "semanticlens",
        "positives",
        "SemanticLens",
        "Cosine of the strong images' mean embedding with the label.",
        _semanticlens,
        positives_only,
        DREYER,
        alone=True,
        moved=_semanticlens_moved,
    ),
    Scorer(
        "semanticlens_package",
        "templates",
        "SemanticLens (package)",
        "Cosine of the strong images' mean embedding with the label less its empty template, as in the authors' "
        "package.",
        lambda e: _semanticlens(e, e.need("filled_emb") - e.need("template_emb")),
        positives_only,
        DREYER,
    ),
    Scorer(
        "difference_of_means",
        "pairs",
        "Difference of means",
        "The mean strong image less the mean contrast, against each label: CSP without its pairs.",
        _pairs(difference_of_means),
        unweighted_pairs,
        source="ablation of CSP",
        alone=True,
    ),
    Scorer(
        "set_projection",
        "pairs",
        "Set projection",
        "The mean strong image less its projection on the mean contrast, against each label.",
        _pairs(set_projection),
        unweighted_pairs,
        source="ablation of CSP",
        alone=True,
    ),
    Scorer(
        "centred_mean",
        "positives",
        "Centred mean",
        "The mean strong image less the mean of all images, against each label.",
        _centred_mean,
        positives_only,
        source="ablation of SemanticLens",
        alone=True,
    ),
)
