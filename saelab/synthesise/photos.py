"""What photos are like as signals: their mean colour, how colours vary together, and how strong each frequency is.

Everything is measured on *free* values, logit(pixel): there a picture may be any real numbers, and sigmoid leads back.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

EDGE = 0.02  # pixels nearer than this to black or white are moved to it: their logit would not be finite


@dataclass(frozen=True)
class Photos:
    """Statistics of a set of pictures, float32."""

    mean: Float[Tensor, "3"]  # free colour
    colours: Float[Tensor, "3 3"]  # square root of the colours' covariance: uncorrelated values times it have theirs
    magnitude: Float[Tensor, "3 height half_width"]  # mean |rfft2| (orthonormal) of uncorrelated colours; 0 at (0, 0)


def to_free(pixels: Float[Tensor, "*images 3 height width"]) -> Float[Tensor, "*images 3 height width"]:
    """Pixels in 0..1 as free values: logit, after moving them away from 0 and 1 by EDGE."""
    return torch.logit(pixels.clamp(EDGE, 1 - EDGE))


def measure_photos(batches: Iterable[Float[Tensor, "images 3 height width"]]) -> Photos:
    """Statistics of pictures of one size, given twice: `batches` is run through for colours, then for spectra.

    The magnitude of each frequency is the mean over pictures, as MACO takes it (Fel et al., NeurIPS 2023, section 3.2);
    that of frequency 0 is left at 0, since the mean colour is apart. Raises ValueError where there are no pictures.
    """
    batches = list(batches) if not hasattr(batches, "__getitem__") else batches
    count, total, products = 0, torch.zeros(3, dtype=torch.float64), torch.zeros(3, 3, dtype=torch.float64)
    for batch in batches:
        free = to_free(batch.double()).transpose(0, 1).flatten(1)  # [3, values]
        count, total, products = count + free.shape[1], total + free.sum(1), products + free @ free.T
    if count == 0:
        raise ValueError("no pictures")
    mean = total / count
    values, axes = torch.linalg.eigh(products / count - torch.outer(mean, mean))
    deviations = values.clamp(min=1e-6).sqrt()
    colours, uncorrelate = (axes * deviations) @ axes.T, (axes / deviations) @ axes.T
    pictures, summed = 0, None
    for batch in batches:
        centred = to_free(batch.double()) - mean[:, None, None]
        spectrum = torch.fft.rfft2(mix(uncorrelate, centred), norm="ortho").abs().sum(0)
        pictures, summed = pictures + len(batch), spectrum if summed is None else summed + spectrum
    assert summed is not None
    magnitude = summed / pictures
    magnitude[:, 0, 0] = 0
    return Photos(mean.float(), colours.float(), magnitude.float())


def mix(
    weights: Float[Tensor, "3 3"], values: Float[Tensor, "*images 3 height width"]
) -> Float[Tensor, "*images 3 height width"]:
    """Each pixel's three values times a matrix."""
    return torch.einsum("oc,...chw->...ohw", weights, values)


def to_pixels(
    normalize: Callable[[Tensor], Tensor], batch: Float[Tensor, "images 3 height width"]
) -> Float[Tensor, "images 3 height width"]:
    """The pixels, in 0..1, of pictures as a host sees them: `normalize` (of a Transform), an affine map, undone."""
    colours = torch.cat([torch.zeros(1, 3), torch.eye(3)]).double()[:, :, None, None]
    seen = normalize(255 * colours)[:, :, 0, 0]
    undo = torch.linalg.inv((seen[1:] - seen[0]).T)
    return mix(undo.to(batch), batch - seen[0].to(batch)[:, None, None]).clamp(0, 1)
