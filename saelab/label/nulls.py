"""How good would the best label be if the unit had nothing to do with the images? Null percentiles by permutation."""

from collections.abc import Iterable

import torch
from jaxtyping import Float
from torch import Tensor

from saelab.errors import UserError
from saelab.label.scorers.evidence import Evidence
from saelab.label.scorers.frame import Draw, Frame
from saelab.label.scorers.permuted import best_of
from saelab.label.scorers.registry import blocks, chosen

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
    evidence's rule, near-duplicates respected) and whole-set sums all belong to the permuted images. For scorers
    with a prior over units the other units stay as they are. For a unit that has nothing to do with the images the
    share is uniform on 0, 1/n, ..., 1. The n orders (from `seed`) are the same for all units and scorers.

    `best`: each scorer's best score of each unit, where known already (a Ranking's `score`). Returns NaN for units
    without a score, and for scorers that do not look at pooled activations (`decoder_direction`, `netdissect`).
    Time: a product of units x (ranks above the lowest) x labels for each permutation of `pearson` and `cos_cubed`,
    of units x about 2 k x labels for CSP; scorers without a short cut here are run n times as they are.
    """
    if n < 1:
        raise UserError("n", n, "expected at least one permutation", "200 resolve half a per cent")
    rows, frame = chosen(scorers), Frame(evidence)
    names = [scorer.name for scorer in rows]
    under = {scorer.name: found for scorer in rows if (found := scorer.under(frame)) is not None}
    given = best or {}
    own = {name: given[name] if name in given else _best(name, evidence) for name in names}
    lower = {name: torch.zeros(evidence.n_units, device=evidence.image_emb.device) for name in names}
    for draw in _draws(frame, n, seed, progress):
        for block in frame.blocks:
            for name, best_under in under.items():
                mine = own[name][block.units]
                lower[name][block.units] += best_under(draw, block) < mine - ROUNDING * mine.abs()
    return {
        name: (lower[name] / n).masked_fill(own[name].isnan() | ~frame.known | (name not in under), torch.nan)
        for name in names
    }


def _best(name: str, evidence: Evidence) -> Float[Tensor, "units"]:
    (scorer,) = chosen([name])
    return torch.cat([best_of(rows) for _, rows in blocks(scorer, evidence)])


def _draws(frame: Frame, n: int, seed: int, progress: bool):
    from tqdm.auto import tqdm

    generator = torch.Generator().manual_seed(seed)
    for _ in tqdm(range(n), "permutations", disable=not progress):
        yield Draw(frame, torch.randperm(frame.images, generator=generator).to(frame.evidence.image_emb.device))
