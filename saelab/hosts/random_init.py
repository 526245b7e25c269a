"""Random weights with signals that survive: batch normalisation gets statistics, as it has in any trained network.

Fresh batch norms pass everything through. In a deep network of random weights activations then shrink to nothing or
grow without bound, and a control whose units are all dead controls nothing.
"""

import numpy as np
import torch
from PIL import Image
from torch import nn

from saelab.hosts.files import Built

_PICTURES, _SIDE = 16, 256


@torch.no_grad()
def settle(built: Built, seed: int) -> None:
    """Set the running statistics of every batch norm to those of 16 seeded pictures of 1/f noise. Others are untouched.

    1/f noise has the spectrum of natural photos and needs no data, so the control depends on the seed alone.
    """
    norms = [m for m in built.model.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)]
    norms = [m for m in norms if m.track_running_stats]
    if not norms:
        return
    batch = torch.stack([built.transform(picture) for picture in _noise(seed)])
    built.model.eval()
    momenta = [norm.momentum for norm in norms]
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum = None  # the plain mean over what is seen, not a running one
        norm.train()
    (built.call or (lambda model, x: model(x)))(built.model, batch)
    for norm, momentum in zip(norms, momenta):
        norm.momentum = momentum
        norm.eval()


def _noise(seed: int) -> list[Image.Image]:
    generator = np.random.default_rng(seed)
    frequency = np.hypot(np.fft.fftfreq(_SIDE)[:, None], np.fft.fftfreq(_SIDE)[None, :])
    frequency[0, 0] = np.inf  # no mean
    spectrum = generator.normal(size=(_PICTURES, 3, _SIDE, _SIDE)) + 1j * generator.normal(
        size=(_PICTURES, 3, _SIDE, _SIDE)
    )
    waves = np.fft.ifft2(spectrum / frequency).real
    waves /= waves.std(axis=(2, 3), keepdims=True)
    pixels = np.clip(128 + 55 * waves, 0, 255).astype(np.uint8)
    return [Image.fromarray(picture) for picture in pixels.transpose(0, 2, 3, 1)]
