"""Resampling of silent latents (Bricken et al. 2023, "Neuron resampling"), for SAEs that have no AuxK."""

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from saelab.sae.distributed import World

ENCODER_SHARE = 0.2  # a new encoder row's length, in units of the mean length of the living ones'


def resample(
    weights: dict[str, Tensor],
    moments: dict[str, list[Tensor]],
    silent: Bool[Tensor, "latents"],
    x: Float[Tensor, "batch d_in"],
    error: Float[Tensor, "batch d_in"],
    seed: int,
    world: World,
) -> int:
    """Point each silent latent at a token that is explained badly, in place; returns how many there were.

    Tokens are drawn with probability in proportion to their squared loss. `moments`: Adam's running means by weight,
    which start anew for these latents. The same on every process of `world`.
    """
    rows = silent.nonzero().squeeze(1)
    if not len(rows):
        return 0
    x, error = world.data.gather(x), world.data.gather(error)
    odds = error.square().sum(1).square().cpu().double()
    generator = torch.Generator().manual_seed(seed)
    few = len(rows) > int((odds > 0).sum())
    drawn = torch.multinomial(odds, len(rows), replacement=few, generator=generator).to(x.device)
    directions = torch.nn.functional.normalize(x[drawn] - weights["b_dec"], dim=1)
    living = weights["W_enc"][~silent]
    length = living.norm(dim=1).mean() if len(living) else torch.ones((), device=x.device)
    weights["W_dec"][rows] = directions
    weights["W_enc"][rows] = directions * (ENCODER_SHARE * length)
    weights["b_enc"][rows] = 0
    for name in ("W_enc", "W_dec", "b_enc"):
        for moment in moments[name]:
            moment[rows] = 0
    return len(rows)
