"""What is optimised instead of pixels: three parametrisations of a picture with values in 0..1.

`pixel`: each pixel by itself; a baseline that is known to give noise. `fourier`: a spectrum in which every frequency
weighs as it does in photos, about 1/f (Olah et al., Distill 2017). `maco`: phases only, with the magnitudes of real
photos (Fel et al., NeurIPS 2023). All take photos' colour correlations. `accentuate` is `fourier` added to a photo
(Hamblin et al. 2024).
"""

import math
from dataclasses import dataclass
from functools import cached_property
from typing import Protocol

import torch
from jaxtyping import Float
from torch import Tensor

from saelab.synthesise.photos import Photos, mix, to_free

METHODS = ("pixel", "fourier", "maco", "accentuate")
START = 0.1  # deviation of the free values that a picture starts from


class Parametrisation(Protocol):
    """Parameters -> pictures."""

    def start(self, generator: torch.Generator) -> Tensor:
        """The parameters of one picture, drawn."""
        ...

    def draw(self, parameters: Tensor) -> Float[Tensor, "pictures 3 height width"]:
        """Pictures in 0..1; differentiable."""
        ...


@dataclass(frozen=True)
class Pixel:
    """sigmoid(parameters)."""

    size: tuple[int, int]  # height, width

    def start(self, generator: torch.Generator) -> Tensor:
        """Noise around grey."""
        return START * torch.randn(3, *self.size, generator=generator)

    def draw(self, parameters: Tensor) -> Float[Tensor, "pictures 3 height width"]:
        """Pictures in 0..1."""
        return parameters.sigmoid()


@dataclass(frozen=True)
class Fourier:
    """sigmoid(base + colours x irfft2(parameters x weight)): parameters [pictures, 3, height, half width, 2]."""

    size: tuple[int, int]
    photos: Photos
    base: Float[Tensor, "3 height width"] | None = None  # a photo's pixels in 0..1; None: grey

    def start(self, generator: torch.Generator) -> Tensor:
        """A little of every frequency; of a photo nothing, so that it is its own start."""
        shape = (3, self.size[0], self.size[1] // 2 + 1, 2)
        return torch.zeros(shape) if self.base is not None else START * torch.randn(shape, generator=generator)

    def draw(self, parameters: Tensor) -> Float[Tensor, "pictures 3 height width"]:
        """Pictures in 0..1."""
        values = from_spectrum(torch.view_as_complex(parameters) * self._weight.to(parameters.device), self.size)
        free = mix(self._colours.to(values), values)
        base = 0 if self.base is None else to_free(self.base).to(values)
        return (base + free).sigmoid()

    @cached_property
    def _weight(self) -> Tensor:
        """1 / frequency, scaled so that parameters of deviation 1 give values of deviation 1 (by Parseval)."""
        weight = 1 / frequencies(self.size)
        power = (mirrored(self.size) * weight.square()).sum() / math.prod(self.size)
        return weight / (2 * power).sqrt()

    @cached_property
    def _colours(self) -> Tensor:
        colours = self.photos.colours
        return colours / (colours.square().sum() / 3).sqrt()


@dataclass(frozen=True)
class Maco:
    """sigmoid(mean + colours x irfft2(magnitude x exp(i phase))): parameters are phases.

    A real picture's spectrum is its own mirror image, so half of the phases of the first column (and of the last, where
    the width is even) follow from the others; the magnitudes are then kept exactly, not only on average. As they are
    fixed, so is the picture's deviation: it is scaled to 1 once.
    """

    size: tuple[int, int]
    photos: Photos

    def start(self, generator: torch.Generator) -> Tensor:
        """Phases drawn uniformly from the circle."""
        return math.tau * (torch.rand(3, self.size[0], self.size[1] // 2 + 1, generator=generator) - 0.5)

    def draw(self, parameters: Tensor) -> Float[Tensor, "pictures 3 height width"]:
        """Pictures in 0..1."""
        photos = self.photos
        free = mix(photos.colours.to(parameters), self.values(parameters))
        return (photos.mean.to(parameters)[:, None, None] + free).sigmoid()

    def values(self, phases: Tensor) -> Float[Tensor, "pictures 3 height width"]:
        """Uncorrelated free values: |rfft2| (orthonormal) of them is `magnitude`, whatever the phases."""
        return from_spectrum(torch.polar(self.magnitude.to(phases).expand_as(phases), self._paired(phases)), self.size)

    @cached_property
    def magnitude(self) -> Float[Tensor, "3 height half_width"]:
        """The photos', scaled so that each channel's values have deviation 1."""
        power = (mirrored(self.size) * self.photos.magnitude.square()).sum((-2, -1), keepdim=True)
        return self.photos.magnitude / (power / math.prod(self.size)).sqrt()

    def _paired(self, phases: Tensor) -> Tensor:
        """Phases with phase(-u) = -phase(u) where both are in the half spectrum."""
        height, width = self.size
        row = torch.arange(height, device=phases.device)
        source, sign = torch.minimum(row, height - row), torch.where(row <= height // 2, 1.0, -1.0)
        sign = torch.where((row == 0) | (2 * row == height), 0.0, sign)
        own = (phases[..., source, :] * sign[:, None].to(phases)).to(phases)
        column = torch.arange(width // 2 + 1, device=phases.device)
        alone = (column == 0) | (2 * column == width)
        return torch.where(alone, own, phases)


def parametrise(
    method: str, size: tuple[int, int], photos: Photos, base: Float[Tensor, "3 height width"] | None = None
) -> Parametrisation:
    """The parametrisation of a method of METHODS; `base`: the photo that `accentuate` starts from."""
    if method == "pixel":
        return Pixel(size)
    return Maco(size, photos) if method == "maco" else Fourier(size, photos, base)


def frequencies(size: tuple[int, int]) -> Float[Tensor, "height half_width"]:
    """Length of each frequency of the half spectrum in cycles a pixel; of frequency 0 that of the lowest other."""
    rows, columns = torch.fft.fftfreq(size[0])[:, None], torch.fft.rfftfreq(size[1])[None]
    return (rows.square() + columns.square()).sqrt().clamp(min=1 / max(size))


def mirrored(size: tuple[int, int]) -> Float[Tensor, "half_width"]:
    """How often each column of the half spectrum stands in the whole one: its power is the sum of values squared."""
    column = torch.arange(size[1] // 2 + 1)
    return torch.where((column == 0) | (2 * column == size[1]), 1.0, 2.0)


def from_spectrum(
    spectrum: Float[Tensor, "*pictures height half_width"], size: tuple[int, int]
) -> Float[Tensor, "*pictures height width"]:
    """irfft2 with orthonormal scaling: mirror images are taken to be equal."""
    found: Tensor = torch.fft.irfft2(spectrum, s=size, norm="ortho")
    return found
