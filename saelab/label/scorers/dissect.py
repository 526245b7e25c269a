"""CLIP-Dissect's probabilistic scorers, each under its own name: they differ in more than constants."""

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn.functional import embedding_bag, softplus

from saelab.acts import Acts, shape
from saelab.arrays import takes_arrays
from saelab.errors import UserError
from saelab.label.mine.top import top_images
from saelab.label.scorers.checks import similarities
from saelab.label.scorers.evidence import Evidence
from saelab.label.scorers.frame import Block, Draw, Frame, once
from saelab.label.scorers.permuted import Best, best_of
from saelab.label.scorers.scorer import Citation, Moved, Rows, Scorer, of_all

SOFT_K, WPMI_K, NEUROLENS_K = 100, 28, 30  # how many images each looks at, as its authors set it
SOFT_PRIOR, WPMI_PRIOR = 1.0, 0.6  # weights of the prior, as its authors set them
TINY = 1e-7  # added to probabilities before the logarithm, by CLIP-Dissect
AT_ONCE = 5  # factors of at least TINY whose product float32 still holds: one logarithm for all of them

Likelihoods = Callable[[Int[Tensor, "units k"]], Float[Tensor, "units labels"]]  # from units' strongest images


@takes_arrays
def soft_wpmi(
    acts: Acts,
    image_emb: Float[Tensor, "images d_text"],
    label_emb: Float[Tensor, "labels d_text"],
    top_k: int = SOFT_K,
    temperature: float = 10.0,
    p_start: float = 0.998,
    p_end: float = 0.97,
    prior: float = SOFT_PRIOR,
) -> Float[Tensor, "units labels"]:
    """Soft weighted pointwise mutual information (CLIP-Dissect, ICLR 2023, the authors' code).

    With q = softmax over labels of `temperature` P and the r-th strongest image (r from 0) in the unit's concept with
    probability p_r = p_start - (p_start - p_end) r / top_k: ll = sum_r log(1 + p_r (q - 1) + 1e-7), score =
    ll - prior (logsumexp over units of ll - log units). The prior runs over the units scored together, so scores of
    one unit depend on the others. With fewer than top_k images, all are used. NaN units get NaN, outside the prior.
    Eight parameters: its authors' five constants, by their names.
    """
    acts, sims = similarities(acts, image_emb, label_emb)
    ids, _ = top_images(acts, min(top_k, len(sims)))
    return with_prior(soft_likelihoods(sims, top_k, temperature, p_start, p_end)(ids), prior)


@takes_arrays
def wpmi(
    acts: Acts,
    image_emb: Float[Tensor, "images d_text"],
    label_emb: Float[Tensor, "labels d_text"],
    top_k: int = WPMI_K,
    temperature: float = 2.0,
    prior: float = WPMI_PRIOR,
) -> Float[Tensor, "units labels"]:
    """Weighted pointwise mutual information (CLIP-Dissect): ll = sum over the top_k images of log(q + 1e-7).

    q = softmax over labels of `temperature` P; score = ll - prior (logsumexp over units of ll - log units), over the
    units scored together. With fewer than top_k images, all are used.
    """
    acts, sims = similarities(acts, image_emb, label_emb)
    ids, _ = top_images(acts, min(top_k, len(sims)))
    return with_prior(likelihoods(sims, temperature)(ids), prior)


@takes_arrays
def clip_dissect_neurolens(
    acts: Acts,
    image_emb: Float[Tensor, "images d_text"],
    label_emb: Float[Tensor, "labels d_text"],
    top_k: int = NEUROLENS_K,
    temperature: float = 10.0,
) -> Float[Tensor, "units labels"]:
    """The CSP authors' CLIP-Dissect: log(sum_i w_i q_i + 1e-6) - log(mean over all images of q).

    q = softmax over labels of P / temperature (the original multiplies), w = activations of the top_k images divided
    by their sum. It ranks like a similarity centred on the image set. A unit whose weights are all zero gets NaN.
    Raises UserError for negative weights, which would cancel.
    """
    acts, sims = similarities(acts, image_emb, label_emb)
    ids, values = top_images(acts, min(top_k, shape(acts)[0]))
    if bool((values < 0).any()):
        raise UserError("acts", "negative", "expected top activations of at least 0", "score one sign at a time")
    return neurolens_rows(sims, ids, values, temperature)(slice(None))


def soft_likelihoods(
    sims: Float[Tensor, "images labels"],
    top_k: int = SOFT_K,
    temperature: float = 10.0,
    p_start: float = 0.998,
    p_end: float = 0.97,
) -> Likelihoods:
    """soft-WPMI before its prior: log-likelihood of each label given a unit's strongest images, in rank order.

    An id of -1 stands for no image: it is in the unit's concept with probability 0.
    """
    q = (sims * temperature).softmax(dim=1).sub_(1)
    step = max(1, (1 << 17) // sims.shape[1])  # what a block adds to stays in the processor's cache

    def of(ids: Int[Tensor, "units k"]) -> Float[Tensor, "units labels"]:
        out = torch.zeros(len(ids), sims.shape[1], dtype=sims.dtype, device=sims.device)
        for block, images in zip(out.split(step), ids.split(step), strict=True):
            there = (images >= 0).to(q.dtype)
            for ranks in torch.arange(ids.shape[1]).split(AT_ONCE):
                product = torch.ones((), dtype=q.dtype, device=q.device)
                for r in ranks.tolist():
                    p = p_start - (p_start - p_end) * r / top_k
                    own = q.index_select(0, images[:, r].clamp(min=0))
                    product = own.mul_(p * there[:, r, None]).add_(1 + TINY).mul_(product)
                block += product.log_()
        return out.masked_fill_(ids[:, :1] < 0, torch.nan)

    return of


def likelihoods(sims: Float[Tensor, "images labels"], temperature: float = 2.0) -> Likelihoods:
    """WPMI before its prior: the sum over a unit's images of log(q + 1e-7); ids of -1 are left out."""
    terms = (sims * temperature).softmax(dim=1).add_(TINY).log_()
    return lambda ids: weighted_rows(terms, ids, ids >= 0)


def neurolens_rows(
    sims: Float[Tensor, "images labels"],
    ids: Int[Tensor, "units k"],
    values: Float[Tensor, "units k"],
    temperature: float = 10.0,
) -> Callable[[slice], Tensor]:
    """`clip_dissect_neurolens` for a slice of units at a time, given similarities and top images."""
    q = (sims / temperature).softmax(dim=1)
    everywhere, values = q.mean(dim=0).log(), values.to(q.dtype)
    total = values.sum(dim=1, keepdim=True)
    weights = (values / total).masked_fill(total <= 0, torch.nan)

    def rows(units: slice) -> Float[Tensor, "some labels"]:
        return (weighted_rows(q, ids[units], weights[units]) + 1e-6).log() - everywhere

    return rows


def with_prior(
    ll: Float[Tensor, "units labels"], weight: float, counts: Int[Tensor, "units"] | None = None
) -> Float[Tensor, "units labels"]:
    """ll - weight x log of the mean likelihood of each label over the units that have one.

    `counts`: how many images each unit's ll is the sum of, where units differ. Likelihoods of more images are smaller
    by powers, so each unit is held against what all units' images would give, were they as many as its own:
    exp(ll x own count / count). Equal counts give the plain prior.
    """
    known = ~ll[:, 0].isnan()
    units = math.log(max(int(known.sum()), 1))
    if counts is None:
        return ll - weight * (ll[known].logsumexp(dim=0) - units)
    out = torch.full_like(ll, torch.nan)
    for count in counts[known].unique().tolist():
        some = known & (counts == count)
        out[some] = ll[some] - weight * (_as_of(ll[known], counts[known], count).logsumexp(dim=0) - units)
    return out


def positives_with_prior(of: Likelihoods, ids: Int[Tensor, "units k"], weight: float) -> Float[Tensor, "units labels"]:
    """WPMI of either kind from the images that fire each unit; ids of -1 are left out."""
    return with_prior(of(ids), weight, (ids >= 0).sum(dim=1))


def others_logsumexp(
    ll: Float[Tensor, "units labels"], counts: Int[Tensor, "units"] | None = None
) -> Float[Tensor, "units labels"]:
    """For each unit and label: log of the sum of exp(ll) over the other units (NaN units count for nothing).

    `counts` as in `with_prior`. A difference of sums loses nothing unless one unit makes up most of a sum: each
    label's largest is summed anew.
    """
    counts = torch.ones(len(ll), dtype=torch.long, device=ll.device) if counts is None else counts
    out = torch.full_like(ll, torch.nan)
    for count in counts[counts > 0].unique().tolist():
        some = counts == count
        out[some] = _others(_as_of(ll.double(), counts, count), some).to(ll.dtype)
    return out


def _as_of(ll: Tensor, counts: Tensor, count: int) -> Tensor:
    """Log-likelihoods of sums over `counts` images, as they would be over `count` images."""
    return ll * (count / counts.clamp(min=1)).to(ll.dtype)[:, None]


def _others(ll: Float[Tensor, "units labels"], some: Bool[Tensor, "units"]) -> Float[Tensor, "some labels"]:
    filled = ll.nan_to_num(nan=-torch.inf)
    total, top = filled.logsumexp(dim=0), filled.argmax(dim=0)
    without = filled.scatter(0, top[None], -torch.inf).logsumexp(dim=0)
    out = total + torch.log1p(-(filled[some] - total).exp().clamp(max=1.0))
    return torch.where(some.nonzero() == top, without, out)


def weighted_rows(
    terms: Float[Tensor, "images labels"], ids: Int[Tensor, "units k"], weights: Float[Tensor, "units k"]
) -> Float[Tensor, "units labels"]:
    """Weighted sum of a unit's images' rows of `terms`; NaN for units without images (ids -1)."""
    out = embedding_bag(ids.clamp(min=0), terms, per_sample_weights=weights.to(terms.dtype), mode="sum")
    return out.masked_fill(ids[:, :1] < 0, torch.nan)


def weighted(frame: Frame) -> Best:
    """The CSP authors' CLIP-Dissect under permutation: one product of weights and the first images' probabilities."""
    ids, values = frame.evidence.positives(NEUROLENS_K)
    q = (frame.evidence.sims / 10.0).softmax(dim=1)
    mean, values = q.mean(dim=0), values.to(q.dtype)
    total = values.sum(dim=1, keepdim=True)
    weights = (values / total).masked_fill(total <= 0, torch.nan)  # 0 where no image is left
    fills, fill = frame.fills(ids.shape[1])

    def best(draw: Draw, block: Block) -> Tensor:
        out = q.new_empty(len(block.units))
        for i, images in enumerate(draw.positives(fills, ids.shape[1]).clamp(min=0)):
            some = fill[block.units] == i
            if bool(some.any()):
                out[some] = best_of(weights[block.units[some]] @ (q[images] / mean) + 1e-6 / mean).log()
        return out

    return best


def likelihood(frame: Frame, of: Likelihoods, k: int, weight: float) -> Best:
    """Either WPMI under permutation: a unit's permuted likelihood against the prior of the other units as they are."""
    against = AsTheyAre.of(frame.evidence, of, k, weight)
    fills, fill = frame.fills(against.ids.shape[1])
    permuted = once(lambda draw: of(draw.positives(fills, against.ids.shape[1])))
    return lambda draw, block: against.best(permuted(draw)[fill[block.units]], block.units)


def moved(read: Callable[[Tensor], Likelihoods], k: int, weight: float) -> Callable[[Evidence], Moved]:
    """Either WPMI where pictures move in series: the unit's own pictures move, the other units stay as they are."""

    def start(e: Evidence) -> Moved:
        against = AsTheyAre.of(e, read(e.sims), k, weight)
        everyone = torch.arange(e.n_units, device=e.sims.device)
        return lambda seen: against.best(read(seen.sims)(against.ids), everyone)

    return start


@dataclass(frozen=True)
class AsTheyAre:
    """What a unit's likelihoods are held against: the other units, of which none has moved."""

    ids: Int[Tensor, "units k"]  # images that fire each unit
    others: Float[Tensor, "units labels"]  # log of the sum of their likelihoods
    weight: float  # of the prior
    count: float  # log of the number of units

    @classmethod
    def of(cls, e: Evidence, of: Likelihoods, k: int, weight: float) -> "AsTheyAre":
        """From the evidence as it is."""
        ids = e.positives(min(k, e.n_images))[0]
        count = math.log(max(int((ids[:, 0] >= 0).sum()), 1))
        return cls(ids, others_logsumexp(of(ids), (ids >= 0).sum(dim=1)), weight, count)

    def best(self, ll: Float[Tensor, "some labels"], units: Int[Tensor, "some"]) -> Float[Tensor, "some"]:
        """The best score of each unit, given its likelihoods."""
        if self.weight == 1:  # then the score falls with others - ll, and one logarithm a unit is enough
            return self.count - softplus((self.others[units] - ll).amin(dim=1))
        return best_of(ll - self.weight * (torch.logaddexp(self.others[units], ll) - self.count))


def _neurolens(e: Evidence) -> Rows:
    return neurolens_rows(e.sims, *e.positives(NEUROLENS_K))


OIKARINEN = Citation(
    "Oikarinen & Weng, ICLR 2023",
    """@inproceedings{oikarinen2023clipdissect,
  title = {{CLIP-Dissect}: Automatic Description of Neuron Representations in Deep Vision Networks},
  author = {Oikarinen, Tuomas and Weng, Tsui-Wei},
  booktitle = {International Conference on Learning Representations},
  year = {2023}
}""",
)
SCORERS = (
    Scorer(
        "soft_wpmi",
        "images",
        "CLIP-Dissect",
        "Soft weighted pointwise mutual information.",
        of_all(lambda e: positives_with_prior(soft_likelihoods(e.sims), e.positives(SOFT_K)[0], SOFT_PRIOR)),
        lambda scorer, frame: likelihood(frame, soft_likelihoods(frame.evidence.sims), SOFT_K, SOFT_PRIOR),
        OIKARINEN,
        moved=moved(soft_likelihoods, SOFT_K, SOFT_PRIOR),
    ),
    Scorer(
        "wpmi",
        "images",
        "WPMI",
        "Weighted pointwise mutual information.",
        of_all(lambda e: positives_with_prior(likelihoods(e.sims), e.positives(WPMI_K)[0], WPMI_PRIOR)),
        lambda scorer, frame: likelihood(frame, likelihoods(frame.evidence.sims), WPMI_K, WPMI_PRIOR),
        OIKARINEN,
        moved=moved(likelihoods, WPMI_K, WPMI_PRIOR),
    ),
    Scorer(
        "clip_dissect_neurolens",
        "images",
        "CLIP-Dissect (neurolens)",
        "The variant in the CSP authors' code: the strong images' label probabilities over those of all images.",
        _neurolens,
        lambda scorer, frame: weighted(frame),
        OIKARINEN,
        "neurolens, after Oikarinen & Weng, ICLR 2023",
    ),
)
