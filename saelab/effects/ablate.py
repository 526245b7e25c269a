"""Ablation: a basis' units as things that can be taken out of tokens, and what outputs do then. Plain functions."""

from dataclasses import dataclass
from functools import cached_property

import torch
from jaxtyping import Float
from torch import Tensor

from saelab.units.bases import Projection

Tokens = Float[Tensor, "images tokens d_in"]


@dataclass(frozen=True)
class Active:
    """Tokens of some pictures with what every unit of a basis holds of them."""

    tokens: Tokens  # float32
    acts: Float[Tensor, "images tokens units"]  # activations at tokens
    scale: Float[Tensor, "images tokens 1"]  # what a written vector is multiplied by at each token

    @classmethod
    def of(cls, project: Projection, tokens: Tokens) -> "Active":
        """Apply the projection token by token."""
        flat = tokens.flatten(0, 1)
        shape = tokens.shape[:2]
        return cls(tokens, project(flat).unflatten(0, shape), project.scale(flat).unflatten(0, shape))

    @cached_property
    def lengths(self) -> Float[Tensor, "units"]:
        """Root of each unit's summed squared (activation x scale): times |write| the length of its part."""
        return torch.linalg.vector_norm(self.acts * self.scale, dim=(0, 1))

    @cached_property
    def fires_on(self) -> Float[Tensor, "units"]:
        """Share of the pictures on which each unit fires at some token."""
        return (self.acts > 0).any(1).float().mean(0)

    def part(self, unit: int, write: Float[Tensor, "d_in"]) -> Tokens:
        """Activation x scale x write. With another unit's write: its read and not its effect."""
        return self.acts[..., unit, None] * self.scale * write

    def parts(self, writes: Float[Tensor, "units d_in"]) -> Tokens:
        """All units' parts together: the tokens less what no unit holds."""
        return (self.acts * self.scale) @ writes

    def without(self, unit: int, write: Float[Tensor, "d_in"], value: float = 0.0) -> Tokens:
        """The tokens with the unit's activation set to `value`: 0, or its mean. Silent and 0: the same bits."""
        return self.tokens + (value - self.acts[..., unit, None]) * self.scale * write

    def with_more(self, amount: float, write: Float[Tensor, "d_in"]) -> Tokens:
        """The tokens with `amount` of the unit added at every token."""
        return self.tokens + amount * self.scale * write


def centred(logits: Float[Tensor, "*images outputs"]) -> Float[Tensor, "*images outputs"]:
    """Less the mean over outputs, float64: softmax ignores a common shift."""
    logits = logits.double()
    return logits - logits.mean(-1, keepdim=True)


def effects(
    before: Float[Tensor, "images outputs"], after: Float[Tensor, "*copies images outputs"]
) -> Float[Tensor, "*copies images outputs"]:
    """How much what was taken out spoke for each output, in centred logits; > 0: it raised the output."""
    return centred(before) - centred(after)


def percentiles(effect: Float[Tensor, "*copies outputs"]) -> Float[Tensor, "*copies outputs"]:
    """Mid-rank percentile of each output's effect among all outputs, in (0, 1); the mean is exactly 1/2."""
    from scipy.stats import rankdata

    return (torch.from_numpy(rankdata(effect.numpy(), axis=-1)) - 0.5) / effect.shape[-1]


def moved(effect: Float[Tensor, "outputs"]) -> float | None:
    """Effective number of outputs moved, (sum |E|)^2 / sum E^2 (Gao et al. 2025); Gaussian noise moves 2/pi of them."""
    squares = float(effect.square().sum())
    return float(effect.abs().sum()) ** 2 / squares if squares else None
