"""All scorers by name, and one call for them: scores, rankings, and what they say beside the best label."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from saelab.acts import Columns
from saelab.errors import UserError
from saelab.label.scorers import (
    combined,
    contrastive,
    decoder,
    dissect,
    invert,
    linear,
    means,
    netdissect,
    reorder,
    several,
    whole_set,
)
from saelab.label.scorers.evidence import Evidence
from saelab.label.scorers.products import label_parts
from saelab.label.scorers.scorer import Scorer
from saelab.settings import nearest

FAMILIES = (combined, contrastive, means, whole_set, dissect, reorder, invert, several, linear, decoder, netdissect)
SCORERS: dict[str, Scorer] = {scorer.name: scorer for family in FAMILIES for scorer in family.SCORERS}
BLOCK = 1 << 23  # scores computed at a time
AT_ONCE = 1 << 26  # ... where every run of units computes the similarities of images and labels anew
ENTRIES = 1 << 24  # of sparse units then: some 100 bytes each


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
            raise UserError(
                "scorer", name, f"expected one of {', '.join(SCORERS)}", nearest(name, list(SCORERS)).strip()
            )
        found.append(SCORERS[name])
    if not found:
        raise UserError("scorer", "[]", "expected at least one name")
    return found


def explained(
    name: str, scores: Float[Tensor, "units labels"], evidence: Evidence, labels: Sequence[str]
) -> list[dict[str, Any]]:
    """Per unit what a scorer's authors give beside its best label, ready for JSON; {} where they give one label only.

    `falcon`, `www`: `labels`, the labels with their scores (FALCON's positive ones; WWW's above 95 % of the best).
    `linear_explanations`: `labels` with weights, `bias`, and `test_r`, the correlation on the fifth of the images that
    chose nothing. `invert`: `formula`, of up to three concepts, with its `formula_auc` and `formula_share` of images.
    """
    (scorer,) = chosen([name])
    return [{} for _ in range(len(scores))] if scorer.explain is None else scorer.explain(scores, evidence, labels)


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
    step = units_at_once(scorer, evidence)
    rows = scorer.start(evidence)
    for first in range(0, evidence.n_units, step):
        units = slice(first, min(first + step, evidence.n_units))
        yield units, rows(units)


def units_at_once(scorer: Scorer, evidence: Evidence) -> int:
    """Units that are scored together: few where each one's positives are gathered, many where each run costs a pass."""
    labels = max(len(evidence.label_emb), 1)
    if scorer.by_parts and len(label_parts(evidence.n_images, labels)) > 1:
        stored = evidence.acts.counts if isinstance(evidence.acts, Columns) else None
        entries = 0 if stored is None or not len(stored) else int(stored.sum()) // len(stored)
        return max(1, min(AT_ONCE // labels, ENTRIES // max(entries, 1)))
    return max(1, min(BLOCK // labels, BLOCK // max(evidence.image_emb.shape[1] * 64, 1)))


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
