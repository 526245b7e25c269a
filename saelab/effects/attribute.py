"""Attribution: which units make an output what it is on a picture. Plain functions; values in units of the output.

`weights` [outputs] says what is explained: one output, or one less the mean of all (`of_output`), which is what
softmax sees. All take an `Active`: the pictures' tokens with what each unit holds of them. An SAE's bias and error stay
as they are: only units are explained, x = rest + sum of parts.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from saelab.effects.ablate import Active
from saelab.effects.answers import Answers
from saelab.effects.by_captum import METHODS as CAPTUMS
from saelab.effects.by_captum import values_by_captum
from saelab.errors import UserError
from saelab.settings import nearest

METHODS = ("gradient_x_part", "integrated_gradients")
LINEAR = 1e-3  # departure from linearity, as a share of the largest change, that float32 and float16 tokens explain
AT_ONCE = 1 << 22  # numbers of edited tokens held at once
CAPTUM = "captum:"  # before the name of one of captum's
STEPS = 32  # of the path that integrated gradients follow
INCOMPLETE = 0.02  # residual, as a share of what is explained, above which an attribution is not to be trusted


@dataclass(frozen=True)
class Attribution:
    """What each unit contributes on each picture, and how much no unit accounts for."""

    values: Float[Tensor, "images units"]  # float64; > 0: the unit raises the output
    whole: Float[Tensor, "images"]  # the output as it is, less the output without any unit
    residual: Float[Tensor, "images"]  # whole - sum of values; 0 for a complete attribution

    @property
    def complete(self) -> bool:
        """Is the residual small on the pictures as a whole?"""
        return bool(self.residual.abs().mean() <= INCOMPLETE * self.whole.abs().mean().clamp(min=1e-12))


def of_output(output: int, outputs: int) -> Float[Tensor, "outputs"]:
    """Weights of one output less the mean of all."""
    weights = torch.full((outputs,), -1 / outputs, dtype=torch.float64)
    weights[output] += 1
    return weights


def gradient_x_part(
    answers: Answers, ids: Int[np.ndarray, "images"], active: Active, writes: Tensor, weights: Tensor
) -> Attribution:
    """Each unit's part times the gradient at the tokens: the first-order effect of taking it out. One backward pass."""
    values = by_token(active, writes, answers.gradient(ids, active.tokens, weights))
    return attribution_of(values, answers, ids, active, writes, weights)


def integrated_gradients(
    answers: Answers,
    ids: Int[np.ndarray, "images"],
    active: Active,
    writes: Float[Tensor, "units d_in"],
    weights: Float[Tensor, "outputs"],
    steps: int = STEPS,
) -> Attribution:
    """Each unit's part times the mean gradient while all units grow from 0 to what they are (midpoint rule).

    Values of all units sum to `whole` as steps grow: completeness (Sundararajan et al., ICML 2017). `steps` backward
    passes for all units at once.
    """
    values = by_token(active, writes, _mean_gradient(answers, ids, active, writes, weights, steps))
    return attribution_of(values, answers, ids, active, writes, weights)


def exact(
    answers: Answers,
    ids: Int[np.ndarray, "images"],
    active: Active,
    writes: Float[Tensor, "units d_in"],
    weights: Float[Tensor, "outputs"],
    units: Sequence[int],
) -> Float[Tensor, "images units"]:
    """The output less the output without the unit, one unit at a time: what the other two approximate; float64."""
    found = torch.zeros(len(ids), len(units), dtype=torch.float64)
    if not len(units):
        return found
    before = answers.logits(ids, active.tokens[None])[0].double() @ weights.double()
    fires = (active.acts[..., list(units)] != 0).any(1)  # a picture that a unit is silent on keeps its bits
    for places in torch.arange(len(units)).split(max(1, AT_ONCE // active.tokens.numel())):
        edited = torch.stack([active.without(units[i], writes[units[i]]) for i in places.tolist()])
        after = answers.logits(ids, edited).double() @ weights.double()
        found[:, places] = torch.where(fires[:, places], before[:, None] - after.T, 0.0)
    return found


def direct(
    writes: Float[Tensor, "units d_in"], read_out: Float[Tensor, "outputs d_in"]
) -> Float[Tensor, "units outputs"]:
    """What each unit adds to each centred output for every 1 of activation, where a linear read-out follows.

    The vision twin of the logit lens: a table of output words for every unit, without a picture.
    """
    return writes.double() @ (read_out.double() - read_out.double().mean(0)).T


def check_linear(answers: Answers, ids: Int[np.ndarray, "images"], layer: str) -> None:
    """Raise UserError where more than a linear read-out follows the layer, as the host itself is asked.

    `ids`: pictures whose tokens are tried: outputs of their sum, of half of them, and of their negative.
    """
    tokens = answers.tokens(ids[:2])
    one, other = tokens[:1], tokens[-1:]
    tried = torch.stack([torch.zeros_like(one), one, other, one + other, one / 2, -one])
    nothing, a, b, both, half, minus = answers.logits(ids[:1], tried)[:, 0].double()
    reach = (a - nothing).abs().max().clamp(min=1e-12)
    apart = torch.stack([both - a - b + nothing, 2 * half - a - nothing, a + minus - 2 * nothing])
    if apart.abs().max() > LINEAR * reach:
        remedy = "name the last layer before a linear head, such as in:_avg_pooling"
        raise UserError("layer", layer, "is not followed by a linear read-out alone", remedy)


def read_out(answers: Answers, ids: Int[np.ndarray, "images"]) -> Float[Tensor, "outputs d_in"]:
    """What each 1 of a coordinate, at every token, adds to each output, where all that follows the layer is linear.

    Asked of the host itself, a coordinate at a time; `ids`: any picture. Whether it is linear says `check_linear`.
    """
    tokens = answers.tokens(ids[:1])
    n_tokens, d_in = tokens.shape[1:]
    nothing = answers.logits(ids[:1], torch.zeros_like(tokens)[None])[0, 0].double()
    rows = []
    for part in torch.eye(d_in).split(max(1, AT_ONCE // tokens.numel())):
        rows.append(answers.logits(ids[:1], part[:, None, None].expand(-1, 1, n_tokens, -1))[:, 0].double() - nothing)
    return torch.cat(rows).T


def by_token(
    active: Active, writes: Float[Tensor, "units d_in"], gradient: Float[Tensor, "images tokens d_in"]
) -> Float[Tensor, "images tokens units"]:
    """Each unit's part at each token times the gradient there, float64: where in the picture it counts."""
    return (active.acts * active.scale).double() * (gradient.double() @ writes.double().T)


def _mean_gradient(
    answers: Answers, ids: np.ndarray, active: Active, writes: Tensor, weights: Tensor, steps: int
) -> Float[Tensor, "images tokens d_in"]:
    """The mean gradient at the tokens while all units grow from 0 to what they are."""
    together = active.parts(writes)
    gradient = torch.zeros_like(active.tokens)
    for step in range(steps):
        share = (step + 0.5) / steps
        gradient += answers.gradient(ids, active.tokens - (1 - share) * together, weights) / steps
    return gradient


def values_by(
    method: str, answers: Answers, ids: np.ndarray, active: Active, writes: Tensor, weights: Tensor
) -> Float[Tensor, "images tokens units"]:
    """Each unit's value at each token, float64, by the name of a method: one of METHODS, or `captum:` and one of its.

    Raises UserError for an unknown name, and where captum is asked for and not installed.
    """
    check_method(method)
    if method.startswith(CAPTUM):
        return values_by_captum(answers, ids, active, writes, weights, method.removeprefix(CAPTUM))
    if method == "integrated_gradients":
        return by_token(active, writes, _mean_gradient(answers, ids, active, writes, weights, STEPS))
    return by_token(active, writes, answers.gradient(ids, active.tokens, weights))


def check_method(method: str) -> None:
    """Raise UserError for a method that there is not."""
    known = (*METHODS, *(CAPTUM + name for name in CAPTUMS))
    if method not in known:
        raise UserError("method", method, "unknown", f"{nearest(method, known)}known: {', '.join(known)}")


def attribution_of(
    values: Float[Tensor, "images tokens units"],
    answers: Answers,
    ids: Int[np.ndarray, "images"],
    active: Active,
    writes: Float[Tensor, "units d_in"],
    weights: Float[Tensor, "outputs"],
) -> Attribution:
    """Values summed over tokens, beside what all units together add to the output."""
    copies = torch.stack([active.tokens, active.tokens - active.parts(writes)])
    whole, rest = answers.logits(ids, copies).double() @ weights.double()
    return Attribution(values.sum(1), whole - rest, whole - rest - values.sum((1, 2)))
