"""ReLU keeps every positive pre-activation, at an L1 price; JumpReLU those above a learned threshold, at one of L0."""

from collections.abc import Callable
from typing import TYPE_CHECKING, ClassVar

import torch
from jaxtyping import Float
from torch import Tensor

from saelab.sae import choose
from saelab.sae.distributed import Group
from saelab.sae.rules import literature
from saelab.sae.rules.rule import Gate, Gated, Weights

if TYPE_CHECKING:
    from saelab.sae.config import SAEConfig

FIRST_THRESHOLD = 1e-3  # jumprelu's first threshold at the least, in units of the activations' spread


class ReLU(Gate):
    """Loss: + l1 x mean over tokens of sum(codes) / spread (Bricken et al. 2023)."""

    name = "relu"
    title = "ReLU"
    citation = literature.RELU
    names: ClassVar = {
        "SAELens": "standard",
        "dictionary_learning": "AutoEncoder",
        "overcomplete": "SAE",
        "saev": "Relu",
        "ViT-Prisma": "relu",
    }
    has_k = False
    supports = Gate.supports | {"resample_every", "latent_shards", "accumulate"}

    def open(
        self,
        pre: Float[Tensor, "batch latents"],
        weights: Weights,
        config: "SAEConfig",
        spread: Tensor,
        tokens: int,
        total: Callable[[Tensor], Tensor],
    ) -> Gated:
        """`pre` itself, with the L1 penalty."""
        l0 = (pre.detach() > 0).sum() / tokens
        penalty = config.l1 * pre.sum() / (tokens * spread)
        return Gated(pre, l0, penalty, total(penalty.detach().clone()))


class JumpReLU(Gate):
    """Loss: + l0_weight x (L0 / k - 1)^2, thresholds by straight-through rectangles (Rajamanoharan et al. 2024)."""

    name = "jumprelu"
    title = "JumpReLU"
    citation = literature.JUMPRELU
    names: ClassVar = {"SAELens": "jumprelu", "dictionary_learning": "JumpReluAutoEncoder"}
    threshold = "learned"
    needs_batch = True
    supports = Gate.supports | {"revive", "latent_shards", "accumulate"}

    def open(
        self,
        pre: Float[Tensor, "batch latents"],
        weights: Weights,
        config: "SAEConfig",
        spread: Tensor,
        tokens: int,
        total: Callable[[Tensor], Tensor],
    ) -> Gated:
        """What exceeds its threshold. The penalty is a square of the whole batch's mean, so `total` is asked for it."""
        width = config.bandwidth * spread
        codes = _Jump.apply(pre, weights["threshold"], width)
        l0 = _Step.apply(pre, weights["threshold"], width).sum() / tokens
        excess = total(l0.detach().clone()) / config.k - 1
        penalty = config.l0_weight * 2 * excess * l0 / config.k  # has the gradient of excess^2
        return Gated(codes, l0, penalty, config.l0_weight * excess.square())

    def rebuild_first(
        self, centred: Float[Tensor, "batch d_in"], W_dec: Float[Tensor, "latents d_in"], k: int, shards: Group
    ) -> Float[Tensor, "batch d_in"] | None:
        """None: it starts with few latents a token, so that reconstructions are not too long."""
        return None

    def first_threshold(
        self,
        centred: Float[Tensor, "batch d_in"],
        W_enc: Float[Tensor, "latents d_in"],
        k: int,
        spread: Tensor,
        shards: Group,
    ) -> float:
        """What k latents a token of the first batch exceed on average.

        From thresholds near 0, as in the paper, L0 starts at half the latents; the penalty's gradient is then so large
        that Adam's second moment takes a thousand steps to forget it, and short runs end far above the L0 aimed at.
        """
        least = choose.least_of_batch(centred, W_enc, k * len(centred), shards)
        return max(float(least), FIRST_THRESHOLD * float(spread))


class _Jump(torch.autograd.Function):
    """z where z > theta, else 0; theta learns through a rectangle of the given width around it (equation 11)."""

    @staticmethod
    def forward(ctx, z, theta, width):
        ctx.save_for_backward(z, theta, width)
        return z * (z > theta)

    @staticmethod
    def backward(ctx, grad):
        z, theta, width = ctx.saved_tensors
        window = ((z - theta).abs() < width / 2).to(grad.dtype)
        return grad * (z > theta), -(theta / width) * (window * grad).sum(0), None


class _Step(torch.autograd.Function):
    """1 where z > theta; its gradient reaches theta alone (equation 12)."""

    @staticmethod
    def forward(ctx, z, theta, width):
        ctx.save_for_backward(z, theta, width)
        return (z > theta).to(z.dtype)

    @staticmethod
    def backward(ctx, grad):
        z, theta, width = ctx.saved_tensors
        window = ((z - theta).abs() < width / 2).to(grad.dtype)
        return None, -(window * grad).sum(0) / width, None
