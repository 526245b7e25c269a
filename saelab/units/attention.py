"""Attention heads as units: the direction in which each head varies most."""

import numpy as np
import torch
from torch import Tensor

from saelab.cache import ActivationCache

ROWS = 16384  # tokens at a time


def head_directions(cache: ActivationCache, count: int) -> tuple[Tensor, Tensor]:
    """A direction [d_in, heads] for each head, within its own coordinates, and its shift [heads], in float64.

    The layer's tokens hold the outputs of `count` heads one after the other. A head's direction is the first principal
    component of its centred `mine` tokens, turned to the side to which it is skewed: where a head says something rare,
    that is the side on which it says it.
    """
    width = cache.d_in // count
    mean = torch.from_numpy(cache.mean)
    rows = cache.rows("mine")
    parts = np.array_split(rows, max(1, len(rows) // ROWS))

    def centred(part: np.ndarray) -> Tensor:
        return torch.from_numpy(np.asarray(cache.tokens[part], dtype=np.float64)) - mean

    covariance = torch.zeros(count, width, width, dtype=torch.float64)
    for part in parts:
        own = centred(part).unflatten(1, (count, width))
        covariance += torch.einsum("tha,thb->hab", own, own)
    first = torch.linalg.eigh(covariance).eigenvectors[:, :, -1]
    directions = torch.block_diag(*first[:, :, None])
    skew = sum(((centred(part) @ directions) ** 3).sum(0) for part in parts)
    directions = directions * torch.where(torch.as_tensor(skew) < 0, -1.0, 1.0)
    return directions, mean @ directions
