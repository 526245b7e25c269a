"""Ablation scores: does what a label predicts of a unit do the unit's work? (Oikarinen & Weng, ICML 2024)

A unit's activations are replaced by those that its label predicts, picture by picture, and the host's loss is held
against the loss with the unit's own activations and with its mean: score = 1 - sum |loss(predicted) - loss(own)| /
sum |loss(mean) - loss(own)|. 1: the label predicts all that matters downstream; 0: no better than the mean; below 0:
worse. A causal twin of the correlation with the label, for every labeller. Plain functions.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from saelab.effects.ablate import Active, Tokens
from saelab.effects.answers import Answers
from saelab.effects.ground import run_edits
from saelab.units.bases import Projection

TEMPERATURE = 1.1  # of the loss, the authors'
LEAST = 1e-6  # mean change of the loss a picture, below which nothing depends on the unit and no score exists
SHAPED = 20  # pictures that say how a unit spreads over tokens


@dataclass(frozen=True)
class Stand:
    """What all units of a basis are scored on."""

    answers: Answers
    project: Projection
    writes: Float[Tensor, "units d_in"]
    mine: Int[np.ndarray, "mine"]  # images that predictions are fitted on
    scored: Int[np.ndarray, "scored"]  # images that the loss is taken on
    classes: Int[np.ndarray, "scored"]  # output that each belongs to; -1: the host's own answer stands for the truth


def fit_line(values: Float[Tensor, "images"], acts: Float[Tensor, "images"]) -> tuple[float, float]:
    """Slope and intercept of the least-squares line from values to activations; slope 0 where values don't vary.

    The authors' mode `norm`, (v - mean v) / sd v x r x sd a + mean a, written out.
    """
    x, y = values.double(), acts.double()
    spread = float((x - x.mean()).square().sum())
    slope = float(((x - x.mean()) * (y - y.mean())).sum()) / spread if spread > 1e-24 else 0.0
    return slope, float(y.mean()) - slope * float(x.mean())


def with_pooled(
    active: Active,
    unit: int,
    write: Float[Tensor, "d_in"],
    pooled: Float[Tensor, "images"],
    wanted: Float[Tensor, "images"],
    spread: float,
) -> Tokens:
    """The tokens with the unit's pooled activation changed from `pooled` to `wanted`, picture by picture.

    Where the unit fires its map is scaled. Where it is silent there is no map to scale: every token gets `spread` x
    wanted. Wanted equal to pooled leaves the same bits.
    """
    ratio = torch.where(pooled > 0, wanted / pooled.clamp(min=1e-30), torch.ones_like(pooled))
    acts = active.acts[..., unit]
    more = torch.where((pooled > 0)[:, None], acts * (ratio - 1)[:, None], (wanted * spread)[:, None].expand_as(acts))
    return active.tokens + (more[..., None] * active.scale * write).to(active.tokens)


def find_losses(
    logits: Float[Tensor, "*copies images outputs"], own: Float[Tensor, "images outputs"], classes: np.ndarray
) -> Float[Tensor, "*copies images"]:
    """Cross-entropy at TEMPERATURE with each picture's class, or with `own`, the host's answer as it is (class -1)."""
    shares = (own.double() / TEMPERATURE).softmax(-1)
    known = classes >= 0
    shares[torch.as_tensor(known)] = 0
    shares[np.flatnonzero(known), classes[known]] = 1
    return -(shares * (logits.double() / TEMPERATURE).log_softmax(-1)).sum(-1)


def score_unit(
    unit: int, stand: Stand, acts: Float[Tensor, "images"], predictions: Mapping[str, Float[Tensor, "images"]]
) -> dict[str, Any]:
    """Ablation scores of one unit, by who predicts: `{"unit", "fires", "depends", "scores": {name: score | None}}`.

    `acts`: pooled activations of all images. `predictions`: for all images, in any unit of measurement; a line to
    activations is fitted on `mine`, and what it puts below 0 is 0, since no unit fires less. `depends`: mean change of
    the loss with the mean activation; below LEAST scores are None.
    """
    acts = acts.double()
    here, mine = acts[torch.as_tensor(stand.scored)], acts[torch.as_tensor(stand.mine)]
    row: dict[str, Any] = {"unit": unit, "fires": int((here > 0).sum()), "depends": 0.0}
    nothing = row | {"scores": dict.fromkeys(predictions)}
    if not (acts > 0).any():
        return nothing
    wanted = [torch.full_like(here, float(mine.mean()))]
    for values in predictions.values():
        slope, start = fit_line(values[torch.as_tensor(stand.mine)], mine)
        wanted.append((slope * values[torch.as_tensor(stand.scored)].double() + start).clamp(min=0))
    spread = _spread(unit, stand, acts)
    active = Active.of(stand.project, stand.answers.tokens(stand.scored))
    edits = [with_pooled(active, unit, stand.writes[unit], here, to, spread) for to in wanted]
    before, after = run_edits(stand.answers, stand.scored, active.tokens, edits)
    change = find_losses(after, before, stand.classes) - find_losses(before, before, stand.classes)
    sums = change.abs().sum(-1)
    row["depends"] = float(sums[0]) / len(here)
    if row["depends"] < LEAST:
        return nothing | row
    return row | {"scores": {name: 1 - float(s / sums[0]) for name, s in zip(predictions, sums[1:])}}


def _spread(unit: int, stand: Stand, acts: Float[Tensor, "images"]) -> float:
    """Mean activation over tokens as a share of the pooled one, on mining pictures that fire the unit most."""
    mine = acts[torch.as_tensor(stand.mine)]
    best = torch.argsort(mine, descending=True, stable=True)[:SHAPED]
    best = best[mine[best] > 0]
    if not len(best):
        return 1.0  # silent on all of them: its mean is 0, and so is whatever a label predicts of it
    tokens = Active.of(stand.project, stand.answers.tokens(stand.mine[best.numpy()])).acts[..., unit].double()
    return float((tokens.mean(1) / mine[best]).mean())
