"""Ablation scores: does what a label predicts of a unit do the unit's work? (Oikarinen & Weng, ICML 2024)

A unit's activations are replaced by those that its label predicts, picture by picture, and the host's loss is held
against the loss with the unit's own activations and with its mean: score = 1 - sum |loss(predicted) - loss(own)| /
sum |loss(mean) - loss(own)|. 1: the label predicts all that matters downstream; 0: no better than the mean; below 0:
worse. A causal twin of the correlation with the label, for every labeller. Plain functions.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from saelab.effects.ablate import Active, Tokens
from saelab.effects.answers import Answers
from saelab.effects.ground import run_edits
from saelab.label.mine import top_images
from saelab.units.bases import Projection

FITS = ("norm", "optim")  # the authors' names of the two ways from a prediction to the unit's own scale
TEMPERATURE = 1.1  # of the loss, the authors'
LEAST = 1e-6  # mean change of the loss a picture, below which nothing depends on the unit and no score exists
SHAPED = 20  # pictures that say how a unit spreads over tokens
STEPS, RATE = 100, 0.01  # of Adam in `optim`, the authors'
AMOUNTS = 17  # of a unit, at which `optim` asks the host; in between, outputs are interpolated


@dataclass(frozen=True)
class Tried:
    """Images that a fit takes its loss on."""

    ids: Int[np.ndarray, "tried"]
    classes: Int[np.ndarray, "tried"]  # as of `Stand`


@dataclass(frozen=True)
class Stand:
    """What all units of a basis are scored on."""

    answers: Answers
    project: Projection
    writes: Float[Tensor, "units d_in"]
    mine: Int[np.ndarray, "mine"]  # images that predictions are fitted on
    scored: Int[np.ndarray, "scored"]  # images that the loss is taken on
    classes: Int[np.ndarray, "scored"]  # output that each belongs to; -1: the host's own answer stands for the truth
    tried: Tried | None = None  # images of `mine` that the fit `optim` takes its loss on; None: the fit is `norm`

    @cached_property
    def active(self) -> Active:
        """Tokens of the scored images, with what every unit holds of them."""
        return Active.of(self.project, self.answers.tokens(self.scored))


def fit_line(values: Float[Tensor, "images"], acts: Float[Tensor, "images"]) -> tuple[float, float]:
    """Slope and intercept of the least-squares line from values to activations; slope 0 where values don't vary.

    The authors' mode `norm`, (v - mean v) / sd v x r x sd a + mean a, written out.
    """
    x, y = values.double(), acts.double()
    spread = float((x - x.mean()).square().sum())
    slope = float(((x - x.mean()) * (y - y.mean())).sum()) / spread if spread > 1e-24 else 0.0
    return slope, float(y.mean()) - slope * float(x.mean())


@dataclass(frozen=True)
class Curves:
    """Outputs of pictures over a unit's pooled activation: straight lines between amounts that the host was asked for.

    Exact where outputs are linear in the activation, as before a linear head, and beyond the last amount too.
    """

    amounts: Float[Tensor, "amounts"]  # ascending, float64
    logits: Float[Tensor, "amounts images outputs"]

    def __call__(self, wanted: Float[Tensor, "images"]) -> Float[Tensor, "images outputs"]:
        """Outputs of each picture at its own amount, float64; differentiable."""
        place = (torch.searchsorted(self.amounts, wanted.detach()) - 1).clamp(0, len(self.amounts) - 2)
        low, high = self.amounts[place], self.amounts[place + 1]
        share = ((wanted - low) / (high - low))[:, None]
        each = torch.arange(len(wanted))
        return self.logits[place, each].double() * (1 - share) + self.logits[place + 1, each].double() * share


def fit_by_loss(
    values: Float[Tensor, "images"],
    curves: Curves,
    own: Float[Tensor, "images outputs"],
    classes: Int[np.ndarray, "images"],
    unit: float = 1.0,
) -> tuple[float, float]:
    """c and d, so that c x values + d instead of the activation changes the loss least: sum |loss - own loss|.

    The authors' mode `optim`: STEPS steps of Adam at RATE from c = 1 and d = 0. Of all steps the best is taken, the
    start among them, where they take the last: a perfect prediction stays one. `own`: outputs as they are. `unit`: what
    a step of d is measured in (theirs: 1). Amounts below 0 are 0.
    """
    before = find_losses(own, own, classes)
    least, best = float("inf"), (1.0, 0.0)
    with torch.inference_mode(False), torch.enable_grad():
        c, d = (torch.tensor(x, dtype=torch.float64, requires_grad=True) for x in best)
        adam = torch.optim.Adam([c, d], lr=RATE)
        for _ in range(STEPS + 1):
            adam.zero_grad()
            after = curves((c * values.double() + d * unit).clamp(min=0))
            change = (find_losses(after, own, classes) - before).abs().sum()
            if change.item() < least:
                least, best = change.item(), (c.item(), d.item())
            change.backward()
            adam.step()
    return best[0], best[1] * unit


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
    return active.tokens + (more[..., None] * active.scale).to(active.tokens) * write.to(active.tokens)


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
    activations is fitted on `mine`, and what it puts below 0 is 0, since no unit fires less. Where the stand has
    images for the fit `optim`, the line is then bent to the loss (`fit_by_loss`, d in standard deviations of the
    unit's activation), and the row has `fits`: {name: [c, d]}. `depends`: mean change of the loss with the mean
    activation; below LEAST scores are None.
    """
    acts = acts.double()
    here, mine = acts[torch.as_tensor(stand.scored)], acts[torch.as_tensor(stand.mine)]
    row: dict[str, Any] = {"unit": unit, "fires": int((here > 0).sum()), "depends": 0.0}
    nothing = row | {"scores": dict.fromkeys(predictions)}
    if not (acts > 0).any():
        return nothing
    lines = {}
    for name, values in predictions.items():
        slope, start = fit_line(values[torch.as_tensor(stand.mine)], mine)
        lines[name] = slope * values.double() + start
    spread = _spread(unit, stand, acts)
    as_they_are = _scored(stand, lines) if stand.tried is None else []
    sums = _changes(unit, stand, here, [mine.mean().expand_as(here), *as_they_are], spread)
    row["depends"] = float(sums[0]) / len(here)
    if row["depends"] < LEAST:
        return nothing | row
    if stand.tried is not None:
        fits = _fits(unit, stand, stand.tried, acts, lines, spread)
        lines = {name: c * lines[name] + d for name, (c, d) in fits.items()}
        sums = torch.cat([sums, _changes(unit, stand, here, _scored(stand, lines), spread)])
        row["fits"] = {name: list(fit) for name, fit in fits.items()}
    return row | {"scores": {name: 1 - float(s / sums[0]) for name, s in zip(predictions, sums[1:])}}


def _scored(stand: Stand, lines: Mapping[str, Float[Tensor, "images"]]) -> list[Float[Tensor, "scored"]]:
    """What each predicts of the scored images."""
    return [line[torch.as_tensor(stand.scored)].clamp(min=0) for line in lines.values()]


def _changes(
    unit: int, stand: Stand, pooled: Float[Tensor, "scored"], wanted: Sequence[Float[Tensor, "scored"]], spread: float
) -> Float[Tensor, "wanted"]:
    """How much each series of wanted activations changes the loss, summed over the scored images."""
    edits = [with_pooled(stand.active, unit, stand.writes[unit], pooled, to, spread) for to in wanted]
    before, after = run_edits(stand.answers, stand.scored, stand.active.tokens, edits)
    change = find_losses(after, before, stand.classes) - find_losses(before, before, stand.classes)
    return change.abs().sum(-1)


def _fits(
    unit: int,
    stand: Stand,
    tried: Tried,
    acts: Float[Tensor, "images"],
    lines: Mapping[str, Float[Tensor, "images"]],
    spread: float,
) -> dict[str, tuple[float, float]]:
    """c and d of each prediction by the mode `optim`, from the losses on the tried images."""
    at = torch.as_tensor(tried.ids)
    pooled, active = acts[at], Active.of(stand.project, stand.answers.tokens(tried.ids))
    own = stand.answers.logits(tried.ids, active.tokens[None])[0]
    top = max([float(pooled.max()), *(float(line[at].max()) for line in lines.values())])
    amounts = torch.linspace(0, max(top, 1e-12), AMOUNTS, dtype=torch.float64)
    found = []
    for amount in amounts:  # one at a time: copies of all images at all amounts would fill the memory
        edited = with_pooled(active, unit, stand.writes[unit], pooled, amount.expand_as(pooled), spread)
        found.append(stand.answers.logits(tried.ids, edited[None])[0])
    curves = Curves(amounts, torch.stack(found))
    sd = float(acts[torch.as_tensor(stand.mine)].std(correction=0)) or 1.0
    return {name: fit_by_loss(line[at], curves, own, tried.classes, sd) for name, line in lines.items()}


def _spread(unit: int, stand: Stand, acts: Float[Tensor, "images"]) -> float:
    """Mean activation over tokens as a share of the pooled one, on mining pictures that fire the unit most."""
    mine = acts[torch.as_tensor(stand.mine)]
    best = top_images(mine.nan_to_num()[:, None], min(SHAPED, len(mine)))[0][0]
    best = best[mine[best] > 0]
    if not len(best):
        return 1.0  # silent on all of them: its mean is 0, and so is whatever a label predicts of it
    tokens = Active.of(stand.project, stand.answers.tokens(stand.mine[best.numpy()])).acts[..., unit].double()
    return float((tokens.mean(1) / mine[best]).mean())
