"""Scorers whose authors give a unit several labels: FALCON and WWW."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from saelab.arrays import takes_arrays
from saelab.errors import UserError
from saelab.label.scorers.checks import promoted
from saelab.label.scorers.dissect import weighted_rows
from saelab.label.scorers.evidence import Evidence
from saelab.label.scorers.frame import Frame
from saelab.label.scorers.permuted import Best, by_ranges, positives_only, where_ranked
from saelab.label.scorers.scorer import Citation, Explain, Rows, Scorer


@takes_arrays
def falcon(
    sims: Float[Tensor, "images labels"],
    positive_ids: Int[Tensor, "units k"],
    contrast_ids: Int[Tensor, "units k"],
    temperature: float = 100.0,
    best: int = 5,
    removed_from: float = 0.1,
) -> Float[Tensor, "units labels"]:
    """FALCON (Kalibhat et al., ICML 2023), with labels in the place of caption words.

    An image supports a label with softmax over labels of `temperature` P where it is among the image's `best`
    labels, else with 0. The score is the mean support over the positives. Labels whose mean support over the
    contrasts reaches `removed_from` are removed: NaN. Ids of -1 are left out; a unit without a positive gets NaN.
    """
    (sims,) = promoted(sims)
    return supported(support(sims, temperature, best), positive_ids, contrast_ids, removed_from)


def support(
    sims: Float[Tensor, "images labels"], temperature: float = 100.0, best: int = 5
) -> Float[Tensor, "images labels"]:
    """FALCON's support of each image for each label."""
    probabilities = (sims * temperature).softmax(dim=1)
    top = probabilities.topk(min(best, sims.shape[1]), dim=1)
    return torch.zeros_like(probabilities).scatter_(1, top.indices, top.values)


def supported(
    support: Float[Tensor, "images labels"],
    positive_ids: Int[Tensor, "units k"],
    contrast_ids: Int[Tensor, "units k"],
    removed_from: float = 0.1,
) -> Float[Tensor, "units labels"]:
    """`falcon` from the images' support."""
    scores = mean_rows(support, positive_ids)
    return scores.masked_fill(mean_rows(support, contrast_ids) >= removed_from, torch.nan)


def falcon_labels(scores: Float[Tensor, "units labels"], most: int = 8) -> list[list[int]]:
    """Each unit's labels with a positive FALCON score, best first, at most `most`."""
    kept = scores.nan_to_num(nan=0.0).sort(dim=1, descending=True, stable=True)
    rows = zip(kept.values[:, :most], kept.indices[:, :most], strict=True)
    return [indices[values > 0].tolist() for values, indices in rows]


@takes_arrays
def www(
    pos_emb: Float[Tensor, "units k d_text"],
    label_emb: Float[Tensor, "labels d_text"],
    template_emb: Float[Tensor, "d_text"] | None = None,
    valid: Bool[Tensor, "units k"] | None = None,
) -> Float[Tensor, "units labels"]:
    """WWW's adaptive score: sum over positives of cos(image, label in its template) - cos(image, template alone).

    Source: Ahn et al., CVPR 2024. `label_emb`: unit-length embeddings of the filled template, `template_emb` of the
    template with nothing filled in (None: nothing is subtracted). The template shifts all labels of a unit alike:
    it decides how many of them `www_labels` keeps, not their order.
    """
    if template_emb is not None and template_emb.shape != label_emb.shape[1:]:
        raise UserError("template_emb", tuple(template_emb.shape), f"expected {tuple(label_emb.shape[1:])}")
    pos_emb, label_emb = promoted(pos_emb, label_emb)
    kept = torch.ones(pos_emb.shape[:2], dtype=torch.bool, device=pos_emb.device) if valid is None else valid
    total = pos_emb.masked_fill(~kept[:, :, None], 0.0).sum(dim=1)
    labels = label_emb if template_emb is None else label_emb - template_emb.to(label_emb.dtype)
    return (total @ labels.T).masked_fill(~kept.any(dim=1, keepdim=True), torch.nan)


def www_labels(scores: Float[Tensor, "units labels"], share: float = 0.95) -> list[list[int]]:
    """Each unit's labels whose WWW score is above `share` of its best, best first; none where the best is below 0."""
    best = scores.nan_to_num(nan=-torch.inf).amax(dim=1, keepdim=True)
    order = scores.argsort(dim=1, descending=True, stable=True)
    kept = (scores > share * best).gather(1, order)
    return [row[keep].tolist() for row, keep in zip(order, kept, strict=True)]


def mean_rows(terms: Float[Tensor, "images labels"], ids: Int[Tensor, "units k"]) -> Float[Tensor, "units labels"]:
    """Mean of a unit's images' rows of `terms`, ids of -1 left out; NaN where all are."""
    weights = (ids >= 0).to(terms.dtype)
    weights = weights / weights.sum(dim=1, keepdim=True).clamp(min=1)
    none = (ids < 0).all(dim=1, keepdim=True)
    return weighted_rows(terms, ids.clamp(min=0), weights).masked_fill(none, torch.nan)


def _falcon(e: Evidence) -> Rows:
    of_images = support(e.sims)
    return lambda units: supported(of_images, e.positive_ids[units], e.contrast_ids[units])


@where_ranked
def _falcon_null(scorer: Scorer, frame: Frame) -> Best:
    of_images = support(frame.evidence.sims)
    return by_ranges(frame, lambda some: supported(of_images, some.positive_ids, some.contrast_ids))


def _www(e: Evidence) -> Rows:
    filled, template = e.need("filled_emb"), e.need("template_emb")

    def rows(units: slice) -> Tensor:
        ids = e.positive_ids[units]
        return www(e.images_of(ids), filled, template, ids >= 0)

    return rows


def _listed(kept: Callable[[Tensor], list[list[int]]]) -> Explain:
    """`labels`: those that are kept, each with its score."""

    def explain(scores: Tensor, evidence: Evidence, labels: Sequence[str]) -> list[dict[str, Any]]:
        rows = zip(scores, kept(scores), strict=True)
        return [{"labels": [[labels[i], float(row[i])] for i in own]} for row, own in rows]

    return explain


KALIBHAT = Citation(
    "Kalibhat et al., ICML 2023",
    """@inproceedings{kalibhat2023falcon,
  title = {Identifying Interpretable Subspaces in Image Representations},
  author = {Kalibhat, Neha and Bhardwaj, Shweta and Bruss, C. Bayan and Firooz, Hamed and Sanjabi, Maziar
            and Feizi, Soheil},
  booktitle = {International Conference on Machine Learning},
  year = {2023}
}""",
)
AHN = Citation(
    "Ahn et al., CVPR 2024",
    """@inproceedings{ahn2024www,
  title = {{WWW}: A Unified Framework for Explaining What, Where and Why of Neural Networks by Interpretation of
           Neuron Concepts},
  author = {Ahn, Yong Hyun and Kim, Hyeon Bae and Kim, Seong Tae},
  booktitle = {IEEE/CVF Conference on Computer Vision and Pattern Recognition},
  year = {2024}
}""",
)
SCORERS = (
    Scorer(
        "falcon",
        "pairs",
        "FALCON",
        "Mean label probability over the strong images, where the label is among an image's five best; labels that the "
        "contrasts share are removed.",
        _falcon,
        _falcon_null,
        KALIBHAT,
        explain=_listed(falcon_labels),
    ),
    Scorer(
        "www",
        "templates",
        "WWW",
        "How much likelier the label in its template is than the template alone, over the strong images.",
        _www,
        positives_only,
        AHN,
        explain=_listed(www_labels),
    ),
)
