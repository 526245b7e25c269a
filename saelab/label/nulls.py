"""How good would the best label be if the unit had nothing to do with the images? Null percentiles by permutation."""

from collections.abc import Iterable, Iterator, Sequence
from functools import partial

import torch
from jaxtyping import Float
from torch import Tensor

from saelab import bars
from saelab.acts import columns
from saelab.errors import UserError
from saelab.label.mine import finite_units
from saelab.label.scorers.evidence import Evidence
from saelab.label.scorers.frame import Draw, Frame
from saelab.label.scorers.moved import Moving, Series, series_of
from saelab.label.scorers.permuted import best_of
from saelab.label.scorers.registry import blocks, chosen
from saelab.label.scorers.scorer import Moved, Scorer

ROUNDING = 1e-6  # a null score nearer to the unit's than this share of it is not lower: sums differ in order


def null_percentile(scorer: str, evidence: Evidence, n: int = 200, seed: int = 0) -> Float[Tensor, "units"]:
    """`null_percentiles` for one scorer."""
    return null_percentiles([scorer], evidence, n, seed)[scorer]


def null_percentiles(
    scorers: Iterable[str],
    evidence: Evidence,
    n: int = 200,
    seed: int = 0,
    best: dict[str, Float[Tensor, "units"]] | None = None,
    progress: bool = False,
) -> dict[str, Float[Tensor, "units"]]:
    """Share of n permutations of a unit's activations over images whose best score is lower than the unit's best.

    "Best" is over the vocabulary. Each permutation goes the whole way: positives, contrasts (mined again by the
    evidence's rule, near-duplicates respected, in cells where it says so) and whole-set sums all belong to the permuted
    images. For scorers with a prior over units the other units stay as they are. For a unit that has nothing to do
    with the images the share is uniform on 0, 1/n, ..., 1. The n orders (from `seed`) are the same for all units and
    scorers.

    Where images belong together (`Evidence.series`, else its near-duplicates), whole series change places, with others
    of their size where five or more have it, else with those of the nearest sizes (`scorers.moved`): the images of a
    series are no independent draws. A set that is one series has no other place: the share is 0.

    `best`: each scorer's best score of each unit, where known already (a Ranking's `score`). Returns NaN for units
    without a score, and for scorers that do not look at pooled activations (`decoder_direction`, `netdissect`).
    Time: a product of units x (ranks above the lowest) x labels for each permutation of `pearson` and `cos_cubed`,
    of units x about 2 k x labels for CSP; scorers without a short cut here are run n times as they are.
    """
    if n < 1:
        raise UserError("n", n, "expected at least one permutation", "200 resolve half a per cent")
    rows, given = chosen(scorers), best or {}
    own = {s.name: given[s.name] if s.name in given else _best(s, evidence) for s in rows}
    series = series_of(evidence)
    rounds = _rounds(n, seed, progress)
    if series is None:
        lower = _permuted(rows, evidence, own, rounds)
    else:
        lower = _dealt(rows, evidence, own, rounds, series)
    known = finite_units(columns(evidence.acts))
    nothing = torch.full((evidence.n_units,), torch.nan, device=evidence.image_emb.device)
    return {
        s.name: (lower[s.name] / n).masked_fill(own[s.name].isnan() | ~known, torch.nan) if s.name in lower else nothing
        for s in rows
    }


def _permuted(
    rows: Sequence[Scorer], evidence: Evidence, own: dict[str, Tensor], rounds: Iterable[torch.Generator]
) -> dict[str, Float[Tensor, "units"]]:
    """How many permutations of single images, one a round, score lower."""
    frame = Frame(evidence)
    under = {scorer.name: found for scorer in rows if (found := scorer.under(frame)) is not None}
    lower = {name: torch.zeros(evidence.n_units, device=evidence.image_emb.device) for name in under}
    for generator in rounds:
        draw = Draw(frame, torch.randperm(frame.images, generator=generator).to(evidence.image_emb.device))
        for block in frame.blocks:
            for name, best_under in under.items():
                lower[name][block.units] += _below(best_under(draw, block), own[name][block.units])
    return lower


def _dealt(
    rows: Sequence[Scorer],
    evidence: Evidence,
    own: dict[str, Tensor],
    rounds: Iterable[torch.Generator],
    series: Series,
) -> dict[str, Float[Tensor, "units"]]:
    """How many deals of whole series, one a round, score lower."""
    scored: dict[str, Moved] = {
        s.name: (s.moved and s.moved(evidence)) or partial(_best, s) for s in rows if s.null is not None
    }
    moving = Moving(evidence, any(scorer.needs == "pairs" for scorer in rows))
    lower = {name: torch.zeros(evidence.n_units, device=evidence.image_emb.device) for name in scored}
    for generator in rounds:
        seen = moving.move(series.deal(generator))
        for name, best_of_units in scored.items():
            lower[name] += _below(best_of_units(seen), own[name])
    return lower


def _below(found: Tensor, own: Tensor) -> Tensor:
    return found < own - ROUNDING * own.abs()


def _rounds(n: int, seed: int, progress: bool) -> Iterator[torch.Generator]:
    """The same generator n times."""
    generator = torch.Generator().manual_seed(seed)
    for _ in bars.show(range(n), what="permutations", hidden=not progress):
        yield generator


def _best(scorer: Scorer, evidence: Evidence) -> Float[Tensor, "units"]:
    """Best score of each unit; NaN where there is none, be it that all of its labels have -inf."""
    best = torch.cat([best_of(found) for _, found in blocks(scorer, evidence)])
    return best.masked_fill_(best == torch.finfo(best.dtype).min, torch.nan)  # what `best_of` makes of -inf
