"""Small changes that a picture has to bear: crops and noise. What survives them is no trick of single pixels."""

import hashlib
from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import affine_grid, grid_sample

SIDES = (0.7, 1.0)  # of a crop, as shares of the picture's
NOISE = 0.05  # deviation of the Gaussian noise, and width of the uniform one, on pixels in 0..1


def generator_for(*what: int | str) -> torch.Generator:
    """A generator that depends on these numbers and words alone: a picture does not on what was made before it."""
    digest = hashlib.sha256("/".join(map(str, what)).encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:7], "big"))


def shake(
    pictures: Float[Tensor, "pictures 3 height width"], crops: int, generators: Sequence[torch.Generator]
) -> Float[Tensor, "copies 3 height width"]:
    """`crops` square crops of each picture, back at its size, with noise; picture after picture, differentiable.

    Sides are drawn from SIDES uniformly, places uniformly where the crop is inside (MACO draws them so too).
    """
    boxes, noise = [], []
    for generator in generators:
        drawn = torch.rand(crops, 3, generator=generator)
        side = SIDES[0] + (SIDES[1] - SIDES[0]) * drawn[:, 0]
        boxes.append(torch.stack([side, *((1 - side) * (2 * drawn[:, i] - 1) for i in (1, 2))], dim=1))
        shape = (crops, *pictures.shape[1:])
        uniform = torch.rand(shape, generator=generator) - 0.5
        noise.append(NOISE * (torch.randn(shape, generator=generator) + uniform))
    copies = pictures.repeat_interleave(crops, dim=0)
    return crop(copies, torch.cat(boxes).to(copies)) + torch.cat(noise).to(copies)


def crop(
    pictures: Float[Tensor, "pictures 3 height width"], boxes: Float[Tensor, "pictures 3"]
) -> Float[Tensor, "pictures 3 height width"]:
    """One crop of each, bilinear, at the picture's own size. Box: side as a share, centre's x and y in -1..1."""
    side, x, y = boxes.T
    zero = torch.zeros_like(side)
    where = torch.stack([torch.stack([side, zero, x], 1), torch.stack([zero, side, y], 1)], 1)
    grid = affine_grid(where, list(pictures.shape), align_corners=False)
    return grid_sample(pictures, grid, mode="bilinear", padding_mode="border", align_corners=False)
