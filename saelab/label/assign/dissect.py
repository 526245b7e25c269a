"""CLIP-Dissect's probabilistic scorers, each under its own name: they differ in more than constants."""

import math

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn.functional import embedding_bag

from saelab.columns import Acts, shape
from saelab.errors import UserError
from saelab.label.assign.checks import similarities
from saelab.label.mine.top import top_images


def soft_wpmi(
    acts: Acts,
    image_emb: Float[Tensor, "images d_text"],
    label_emb: Float[Tensor, "labels d_text"],
    top_k: int = 100,
    temperature: float = 10.0,
    p_start: float = 0.998,
    p_end: float = 0.97,
    prior: float = 1.0,
) -> Float[Tensor, "units labels"]:
    """Soft weighted pointwise mutual information (CLIP-Dissect, ICLR 2023, the authors' code).

    With q = softmax over labels of `temperature` P and the r-th strongest image (r from 0) in the unit's concept with
    probability p_r = p_start - (p_start - p_end) r / top_k: ll = sum_r log(1 + p_r (q - 1) + 1e-7), score =
    ll - prior (logsumexp over units of ll - log units). The prior runs over the units scored together, so scores of
    one unit depend on the others. With fewer than top_k images, all are used. NaN units get NaN, outside the prior.
    """
    ll = soft_log_likelihood(acts, image_emb, label_emb, top_k, temperature, p_start, p_end)
    return ll - prior * log_prior(ll)


def wpmi(
    acts: Acts,
    image_emb: Float[Tensor, "images d_text"],
    label_emb: Float[Tensor, "labels d_text"],
    top_k: int = 28,
    temperature: float = 2.0,
    prior: float = 0.6,
) -> Float[Tensor, "units labels"]:
    """Weighted pointwise mutual information (CLIP-Dissect): ll = sum over the top_k images of log(q + 1e-7).

    q = softmax over labels of `temperature` P; score = ll - prior (logsumexp over units of ll - log units), over the
    units scored together. With fewer than top_k images, all are used.
    """
    acts, sims = similarities(acts, image_emb, label_emb)
    ids, _ = top_images(acts, min(top_k, shape(acts)[0]))
    terms = ((sims * temperature).softmax(dim=1) + 1e-7).log()
    ll = weighted_rows(terms, ids, torch.ones_like(ids))
    return ll - prior * log_prior(ll)


def clip_dissect_neurolens(
    acts: Acts,
    image_emb: Float[Tensor, "images d_text"],
    label_emb: Float[Tensor, "labels d_text"],
    top_k: int = 30,
    temperature: float = 10.0,
) -> Float[Tensor, "units labels"]:
    """The CSP authors' CLIP-Dissect: log(sum_i w_i q_i + 1e-6) - log(mean over all images of q).

    q = softmax over labels of P / temperature (the original multiplies), w = activations of the top_k images divided
    by their sum. It ranks like a similarity centred on the image set. A unit whose weights don't sum to more than 0
    gets NaN. Raises UserError for negative weights, which would cancel.
    """
    acts, sims = similarities(acts, image_emb, label_emb)
    ids, values = top_images(acts, min(top_k, shape(acts)[0]))
    if bool((values < 0).any()):
        raise UserError(
            "acts", "negative", "expected top activations of at least 0", "score one sign of a unit at a time"
        )
    total = values.sum(dim=1, keepdim=True)
    weights = (values / total).masked_fill(total <= 0, torch.nan)
    q = (sims / temperature).softmax(dim=1)
    seen = weighted_rows(q, ids, weights)
    return (seen + 1e-6).log() - q.mean(dim=0).log()


def soft_log_likelihood(
    acts: Acts,
    image_emb: Float[Tensor, "images d_text"],
    label_emb: Float[Tensor, "labels d_text"],
    top_k: int,
    temperature: float,
    p_start: float,
    p_end: float,
) -> Float[Tensor, "units labels"]:
    """soft-WPMI before its prior: the log-likelihood of each label given a unit's strongest images, in rank order."""
    acts, sims = similarities(acts, image_emb, label_emb)
    k = min(top_k, shape(acts)[0])
    ids, _ = top_images(acts, k)
    q = (sims * temperature).softmax(dim=1) - 1
    out = torch.zeros(len(ids), sims.shape[1], dtype=sims.dtype, device=sims.device)
    for r in range(k):
        p = p_start - (p_start - p_end) * r / top_k
        out += (1 + p * q[ids[:, r].clamp(min=0)] + 1e-7).log()
    return out.masked_fill_(ids[:, :1] < 0, torch.nan)


def log_prior(ll: Float[Tensor, "units labels"]) -> Float[Tensor, "labels"]:
    """Log of the mean likelihood of each label over the units that have one."""
    known = ll[~ll[:, 0].isnan()]
    return known.logsumexp(dim=0) - math.log(max(len(known), 1))


def weighted_rows(
    terms: Float[Tensor, "images labels"], ids: Int[Tensor, "units k"], weights: Float[Tensor, "units k"]
) -> Float[Tensor, "units labels"]:
    """Weighted sum of a unit's images' rows of `terms`; NaN for units without images (ids -1)."""
    out = embedding_bag(ids.clamp(min=0), terms, per_sample_weights=weights.to(terms.dtype), mode="sum")
    return out.masked_fill(ids[:, :1] < 0, torch.nan)
