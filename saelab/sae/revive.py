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

    Tokens are drawn with probability in proportion to their squared loss, for all shards' silent latents in the order
    of the latents. `moments`: Adam's running means by weight, which start anew for these latents. Processes that hold
    the same latents change them in the same way.
    """
    shards, rows = world.latents, silent.nonzero().squeeze(1)
    counts = shards.gather(torch.tensor([len(rows)], device=rows.device)).tolist()
    before, total = sum(counts[: shards.rank]), sum(counts)
    if not total:
        return 0
    x, error = world.data.gather(x), world.data.gather(error)
    odds = error.square().sum(1).square().cpu().double()
    generator = torch.Generator().manual_seed(seed)
    few = total > int((odds > 0).sum())
    drawn = torch.multinomial(odds, total, replacement=few, generator=generator)[before:][: len(rows)].to(x.device)
    directions = torch.nn.functional.normalize(x[drawn] - weights["b_dec"], dim=1)
    living = len(silent) * shards.size - total
    lengths = shards.sum_(weights["W_enc"][~silent].norm(dim=1).sum())
    length = lengths / living if living else torch.ones((), device=x.device)
    weights["W_dec"][rows] = directions
    weights["W_enc"][rows] = directions * (ENCODER_SHARE * length)
    weights["b_enc"][rows] = 0
    for name in ("W_enc", "W_dec", "b_enc"):
        for moment in moments[name]:
            moment[rows] = 0
    return total
