"""One call for all scorers: name -> how it looks at the evidence. The scorers themselves stay plain functions."""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from saelab.acts import take_rows
from saelab.errors import UserError
from saelab.label.assign import combined, contrastive, dissect, invert, linear, several, whole_set
from saelab.label.assign.evidence import Evidence
from saelab.label.assign.netdissect import netdissect
from saelab.label.mine import column_means, top_images

Rows = Callable[[slice], Float[Tensor, "some labels"]]  # scores of a run of units; NaN where there is none
BLOCK = 1 << 23  # scores computed at a time


@dataclass(frozen=True)
class Scorer:
    """A scorer as the pipeline sees it."""

    name: str  # what users write
    needs: str  # what it looks at: positives, pairs, images (the whole set), or concepts, maps, decoder, templates
    doc: str  # one line with the source
    start: Callable[[Evidence], Rows]  # does what concerns all units once, then scores runs of them


def _csp(gamma: float) -> Callable[[Evidence], Rows]:
    def start(e: Evidence) -> Rows:
        weights = contrastive.pair_weights(e.positive_values.nan_to_num(nan=0.0))

        def rows(units: slice) -> Tensor:
            pos, neg = e.images_of(e.positive_ids[units]), e.images_of(e.contrast_ids[units])
            return contrastive.csp(pos, neg, weights[units], e.label_emb, gamma, e.valid[units])

        return rows

    return start


def _contrast_evidence(e: Evidence) -> Rows:
    firing = e.positive_values > column_means(e.acts)[:, None]  # not so for all k where a unit fires on fewer
    return combined.contrast_evidence_rows(e.acts, e.sims, e.positive_ids, e.contrast_ids, e.valid & firing)


def _positives(function: Callable[..., Tensor], *more: str) -> Callable[[Evidence], Rows]:
    """For functions of (positives, extra fields, labels, valid)."""

    def start(e: Evidence) -> Rows:
        extra = {"mean": e.image_emb.mean(dim=0)}

        def rows(units: slice) -> Tensor:
            ids = e.positive_ids[units]
            return function(e.images_of(ids), *(extra[m] for m in more), e.label_emb, valid=ids >= 0)

        return rows

    return start


def _pairs(function: Callable[..., Tensor]) -> Callable[[Evidence], Rows]:
    """For functions of (positives, contrasts, labels, valid)."""

    def start(e: Evidence) -> Rows:
        def rows(units: slice) -> Tensor:
            pos, neg = e.images_of(e.positive_ids[units]), e.images_of(e.contrast_ids[units])
            return function(pos, neg, e.label_emb, e.valid[units])

        return rows

    return start


def _whole(rows_of: Callable[..., Rows]) -> Callable[[Evidence], Rows]:
    """For functions of (activations, similarities)."""
    return lambda e: rows_of(e.acts, e.sims)


def _full(scores_of: Callable[[Evidence], Tensor]) -> Callable[[Evidence], Rows]:
    """For scorers that must see all units before they can score one."""

    def start(e: Evidence) -> Rows:
        scores = scores_of(e)
        return lambda units: scores[units]

    return start


def _soft_wpmi(e: Evidence) -> Tensor:
    return dissect.positives_with_prior(dissect.soft_likelihoods(e.sims), e.positives(dissect.SOFT_K)[0], 1.0)


def _wpmi(e: Evidence) -> Tensor:
    return dissect.positives_with_prior(dissect.likelihoods(e.sims), e.positives(dissect.WPMI_K)[0], 0.6)


def _neurolens(e: Evidence) -> Rows:
    ids, values = e.positives(dissect.NEUROLENS_K)
    return dissect.neurolens_rows(e.sims, ids, values.clamp(min=0))


def _rank_reorder(e: Evidence) -> Rows:
    # Silent images take part: that a label ranks them last is what this scorer is about.
    return dissect.rank_reorder_rows(e.sims, *top_images(e.acts, dissect.reordered_images(e.n_images)))


def _falcon(e: Evidence) -> Rows:
    support = several.support(e.sims)
    return lambda units: several.supported(support, e.positive_ids[units], e.contrast_ids[units])


def _semanticlens_package(e: Evidence) -> Rows:
    labels = e.need("filled_emb") - e.need("template_emb")

    def rows(units: slice) -> Tensor:
        ids = e.positive_ids[units]
        return contrastive.semanticlens(e.images_of(ids), labels, ids >= 0)

    return rows


def _www(e: Evidence) -> Rows:
    filled, template = e.need("filled_emb"), e.need("template_emb")

    def rows(units: slice) -> Tensor:
        ids = e.positive_ids[units]
        return several.www(e.images_of(ids), filled, template, ids >= 0)

    return rows


def _linear(e: Evidence) -> Tensor:
    train, _, _ = linear.splits(e.n_images)
    return linear.elastic_net(take_rows(e.acts, train), linear.concept_activations(e.sims)[train.to(e.sims.device)])


def _netdissect(e: Evidence) -> Tensor:
    return netdissect(e.need("maps"), e.need("masks").bool())


_ALL = (
    Scorer(
        "contrast_evidence",
        "pairs",
        "whole-set correlation plus paired contrast, in standard deviations under chance (ours, docs/scorers.md)",
        _contrast_evidence,
    ),
    Scorer("csp", "pairs", "positives each projected off its own contrast, gamma 1 (arXiv 2604.22477)", _csp(1.0)),
    Scorer("csp_0.5", "pairs", "the same with half of the projection, gamma 0.5 (arXiv 2604.22477)", _csp(0.5)),
    Scorer(
        "semanticlens",
        "positives",
        "cosine of the mean positive (Dreyer et al., Nature Machine Intelligence 2025)",
        _positives(contrastive.semanticlens),
    ),
    Scorer(
        "semanticlens_package",
        "templates",
        "the same with labels less their empty template, as in the authors' package",
        _semanticlens_package,
    ),
    Scorer("pearson", "images", "correlation over all images", _whole(whole_set.pearson_rows)),
    Scorer(
        "cos_cubed",
        "images",
        "cosine of cubed centred columns (CLIP-Dissect, ICLR 2023)",
        _whole(whole_set.cos_cubed_rows),
    ),
    Scorer("soft_wpmi", "images", "soft WPMI, prior over these units (CLIP-Dissect, ICLR 2023)", _full(_soft_wpmi)),
    Scorer("wpmi", "images", "WPMI, prior over these units (CLIP-Dissect, ICLR 2023)", _full(_wpmi)),
    Scorer("rank_reorder", "images", "order of the top 5 % (CLIP-Dissect, ICLR 2023)", _rank_reorder),
    Scorer("clip_dissect_neurolens", "images", "CLIP-Dissect as in the CSP authors' code", _neurolens),
    Scorer(
        "difference_of_means",
        "pairs",
        "mean positive - mean contrast (ablation)",
        _pairs(contrastive.difference_of_means),
    ),
    Scorer("set_projection", "pairs", "mean positive off the mean contrast", _pairs(contrastive.set_projection)),
    Scorer(
        "centred_mean",
        "positives",
        "mean positive - mean image (ablation)",
        _positives(contrastive.centred_mean, "mean"),
    ),
    Scorer(
        "invert",
        "concepts",
        "AUROC against concept truth (INVERT, NeurIPS 2023)",
        lambda e: invert.invert_rows(e.acts, e.need("concepts").bool()),
    ),
    Scorer("falcon", "pairs", "mean support among five best labels (FALCON, ICML 2023)", _falcon),
    Scorer("www", "templates", "summed similarity over the template's (WWW, CVPR 2024)", _www),
    Scorer(
        "linear_explanations", "images", "elastic-net coefficients (Linear Explanations, ICML 2024)", _full(_linear)
    ),
    Scorer(
        "decoder_direction",
        "decoder",
        "cosine of the decoder row (Discover-then-Name, ECCV 2024)",
        _full(lambda e: contrastive.decoder_direction(e.need("decoder"), e.label_emb)),
    ),
    Scorer("netdissect", "maps", "IoU of top places with concept pixels (NetDissect, CVPR 2017)", _full(_netdissect)),
)
SCORERS: dict[str, Scorer] = {scorer.name: scorer for scorer in _ALL}


@dataclass(frozen=True)
class Ranking:
    """The best labels of each unit by one scorer."""

    label: Tensor  # int64 [units], the best (ties to the lower index), -1 where no label has a score
    score: Tensor  # [units], its score; NaN where there is none
    margin: Tensor  # [units], score less the runner-up's; NaN where there is no runner-up
    runners_up: Tensor  # int64 [units, m], the labels behind, best first; -1 where there are no more
    runner_scores: Tensor  # [units, m]


def chosen(names: Iterable[str]) -> list[Scorer]:
    """Scorers by name, in the order given. Raises UserError for an unknown one, or none."""
    found = []
    for name in names:
        if name not in SCORERS:
            raise UserError("scorer", name, f"expected one of {', '.join(SCORERS)}")
        found.append(SCORERS[name])
    if not found:
        raise UserError("scorer", "[]", "expected at least one name")
    return found


def score(names: Iterable[str], evidence: Evidence) -> dict[str, Float[Tensor, "units labels"]]:
    """Scores of all units and labels by several scorers; NaN, or -inf, where there is none.

    What comes back takes 4 bytes a unit, label and scorer; `rankings` keeps only the best labels.
    """
    return {s.name: torch.cat([rows for _, rows in blocks(s, evidence)]) for s in chosen(names)}


def rankings(names: Iterable[str], evidence: Evidence, runners: int = 5) -> dict[str, Ranking]:
    """The best labels by several scorers, a block of units at a time, so that the full scores are never kept.

    (WPMI's prior needs all units' likelihoods at once: 4 bytes a unit and label while they are scored.)
    """
    out = {}
    for scorer in chosen(names):
        parts = [ranking(rows, runners) for _, rows in blocks(scorer, evidence)]
        out[scorer.name] = Ranking(*(torch.cat(column) for column in zip(*(vars(p).values() for p in parts))))
    return out


def blocks(scorer: Scorer, evidence: Evidence) -> Iterator[tuple[slice, Float[Tensor, "some labels"]]]:
    """One scorer's scores, a block of units at a time."""
    step = max(1, min(BLOCK // max(len(evidence.label_emb), 1), BLOCK // max(evidence.image_emb.shape[1] * 64, 1)))
    rows = scorer.start(evidence)
    for first in range(0, evidence.n_units, step):
        units = slice(first, min(first + step, evidence.n_units))
        yield units, rows(units)


def ranking(scores: Float[Tensor, "units labels"], runners: int = 5) -> Ranking:
    """The best label of each unit, its margin and the runners-up. NaN and -inf are no score."""
    known = scores > -torch.inf
    filled = scores.masked_fill(~known, -torch.inf)
    label = filled.argmax(dim=1)  # the first of equals
    best = filled.gather(1, label[:, None])[:, 0]
    rest = filled.scatter(1, label[:, None], -torch.inf)
    m = min(runners, scores.shape[1] - 1)
    values, order = rest.topk(max(m, min(1, scores.shape[1] - 1)), dim=1)
    count = known.sum(dim=1)
    missing = torch.arange(1, values.shape[1] + 1, device=scores.device) >= count[:, None]
    order, values = order.masked_fill(missing, -1), values.masked_fill(missing, torch.nan)
    none = count == 0
    margin = best - values[:, 0] if values.shape[1] else torch.full_like(best, torch.nan)
    return Ranking(label.masked_fill(none, -1), best.masked_fill(none, torch.nan), margin, order[:, :m], values[:, :m])


def rank_of(scores: Float[Tensor, "units labels"], labels: Tensor) -> Tensor:
    """The rank, from 1, that each unit's scores give to the label named for it; -1 where it has no score or label."""
    own = scores.gather(1, labels.clamp(min=0)[:, None])
    rank = (scores > own).sum(dim=1) + 1
    return rank.masked_fill((labels < 0) | ~(own[:, 0] > -torch.inf), -1)
