"""Attribution by captum's methods along the activations of units: an optional back end (the extra `captum`).

captum (Kokhlikyan et al., arXiv 2009.07896) sees the units' activations as inputs and the weighted output as what is
explained; everything that no unit holds, an SAE's bias and error among it, stays where it is.
"""

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from saelab.effects.ablate import Active
from saelab.effects.answers import Answers
from saelab.errors import UserError
from saelab.settings import nearest

AT_ONCE = 1 << 23  # activations of all copies held at once: 32 MiB
SAMPLES = 25  # orders of the units that Shapley values are estimated from
EACH = 8  # copies with a unit taken out that run together


class Splice(nn.Module):
    """From activations of units [copies x images, tokens, units] to the explained output; autograd goes through it.

    captum lays out copies of all pictures one after the other. `codes` gives the activations back: a layer that
    captum's layer methods can be pointed at.
    """

    def __init__(
        self,
        answers: Answers,
        ids: Int[np.ndarray, "images"],
        active: Active,
        writes: Float[Tensor, "units d_in"],
        weights: Float[Tensor, "outputs"],
    ) -> None:
        super().__init__()
        self.codes = nn.Identity()
        self.answers, self.ids, self.writes, self.weights = answers, ids, writes, weights
        self.rest, self.scale = active.tokens - active.parts(writes), active.scale

    def forward(self, acts: Float[Tensor, "all tokens units"]) -> Float[Tensor, "all"]:
        """The weighted output of each copy of each picture, float64."""
        copies = self.codes(acts).unflatten(0, (-1, len(self.ids)))
        tokens = self.rest + (copies * self.scale) @ self.writes
        found: Tensor = _Answer.apply(tokens, self.ids, self.answers, self.weights)
        return found.flatten()


class _Answer(torch.autograd.Function):
    """A host's weighted output as a function of tokens [copies, images, ...], its derivative being the host's own."""

    @staticmethod
    def forward(ctx: Any, tokens: Tensor, ids: np.ndarray, answers: Answers, weights: Tensor) -> Tensor:
        ctx.tokens, ctx.ids, ctx.answers, ctx.weights = tokens.detach(), ids, answers, weights
        return answers.logits(ids, tokens.detach()).double() @ weights.double()

    @staticmethod
    def backward(ctx: Any, *given: Any) -> tuple[Tensor, None, None, None]:
        with torch.enable_grad():  # off while autograd goes back
            each = [ctx.answers.gradient(ctx.ids, tokens, ctx.weights) for tokens in ctx.tokens]
        return given[0][..., None, None].to(ctx.tokens) * torch.stack(each), None, None, None


def values_by_captum(
    answers: Answers,
    ids: Int[np.ndarray, "images"],
    active: Active,
    writes: Float[Tensor, "units d_in"],
    weights: Float[Tensor, "outputs"],
    method: str = "IntegratedGradients",
    steps: int = 32,
) -> Float[Tensor, "images tokens units"]:
    """Each unit's value at each token, float64, by a method of METHODS; values of a unit sum to what it contributes.

    Methods that take units out (`FeatureAblation`, `ShapleyValueSampling`) treat a unit's tokens as one; its value is
    then shared out in proportion to its activation. `steps`: of the path of `IntegratedGradients` (midpoint rule).
    Raises UserError for another method, and where captum is not installed. Seven parameters: as of `attribute`.
    """
    if method not in METHODS:
        raise UserError("captum", method, "unknown", f"{nearest(method, METHODS)}known: {', '.join(METHODS)}")
    try:
        from captum import attr
    except ImportError:
        raise UserError("method", "captum", "needs the package captum", "pip install 'saelab[captum]'") from None
    splice = Splice(answers, ids, active, writes, weights)
    with torch.inference_mode(False), torch.enable_grad():
        found: Tensor = METHODS[method](getattr(attr, method)(splice), active.acts, steps)
    return found.detach().double()


def _integrated(method: Any, acts: Tensor, steps: int) -> Tensor:
    size = max(len(acts), AT_ONCE // acts[0].numel())
    found: Tensor = method.attribute(acts.clone(), n_steps=steps, method="riemann_middle", internal_batch_size=size)
    return found


def _times_input(method: Any, acts: Tensor, steps: int) -> Tensor:
    found: Tensor = method.attribute(acts.clone().requires_grad_())
    return found


def _taken_out(method: Any, acts: Tensor, steps: int, **own: int) -> Tensor:
    """A unit is one feature, whatever its tokens; the silent ones are one together, which changes nothing."""
    firing = torch.nonzero((acts != 0).any(0).any(0))[:, 0]
    place = torch.zeros(acts.shape[-1], dtype=torch.long)
    place[firing] = torch.arange(1, len(firing) + 1)
    mask = place.repeat(1, acts.shape[1], 1)
    with torch.no_grad():
        found = method.attribute(acts.clone(), feature_mask=mask, perturbations_per_eval=EACH, **own)[:, :1]
    total = acts.sum(1, keepdim=True)
    return found * torch.where(total > 0, acts / total.clamp(min=1e-30), torch.zeros(()))


def _sampled(method: Any, acts: Tensor, steps: int) -> Tensor:
    return _taken_out(method, acts, steps, n_samples=SAMPLES)


METHODS: dict[str, Callable[[Any, Tensor, int], Tensor]] = {
    "IntegratedGradients": _integrated,
    "InputXGradient": _times_input,
    "FeatureAblation": _taken_out,
    "ShapleyValueSampling": _sampled,
}
