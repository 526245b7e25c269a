"""Pixels that cause a unit to fire: where it looks, which need not be where its token lies.

After CaFE (arXiv 2509.00749): in a transformer the patch that fires is often not the patch that makes it fire. Here by
integrated gradients (Sundararajan et al., ICML 2017) of the unit's pre-activation at its strongest token, from the
blurred picture to the picture; a gate such as TopK has no gradient where it is shut, the pre-activation has one.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import adaptive_avg_pool2d

from saelab.hosts import Host
from saelab.units.bases import Projection

STEPS = 16  # of the path, midpoint rule
BLUR = 1 / 16  # standard deviation of the blur, as a share of the picture's height
PLACES = 14  # rows and columns of a map that pages show


@dataclass(frozen=True)
class Causes:
    """What the pixels of one picture do for some units."""

    pixels: Float[Tensor, "units height width"]  # float32; > 0: the pixel makes the unit fire
    tokens: list[int]  # the strongest token of each unit: whose pre-activation is explained
    whole: Float[Tensor, "units"]  # its pre-activation, less that on the blurred picture
    residual: Float[Tensor, "units"]  # whole - sum of pixels; 0 for a complete attribution

    def places(self, rows: int = PLACES, columns: int = PLACES) -> Float[Tensor, "units rows columns"]:
        """Sums over rectangles of the picture."""
        area = self.pixels.shape[-2] * self.pixels.shape[-1] / (rows * columns)
        return adaptive_avg_pool2d(self.pixels[None], (rows, columns))[0] * area


def find_causes(
    host: Host,
    layer: str,
    policy: str,
    project: Projection,
    units: Sequence[int],
    batch: Float[Tensor, "1 3 height width"],
    steps: int = STEPS,
) -> Causes:
    """Which pixels of one picture, as the host's transform gives it, make these units fire.

    One pass over `steps` pictures and one backward pass a unit. Seven parameters: where it is looked, and at what.
    """
    batch = batch.to(host.device, host.dtype)
    base = blurred(batch)
    with torch.inference_mode(False), torch.enable_grad():
        ends = _before_gate(project, _tokens(host, layer, policy, torch.cat([batch, base])), units)
        tokens = ends[0].argmax(0).tolist()
        shares = ((torch.arange(steps) + 0.5) / steps).to(batch)[:, None, None, None]
        path = (base + shares * (batch - base)).detach().requires_grad_()
        along = _before_gate(project, _tokens(host, layer, policy, path), units)
        pixels = torch.zeros(len(units), *batch.shape[-2:])
        for place, token in enumerate(tokens):
            gradient = torch.autograd.grad(along[:, token, place].sum(), path, retain_graph=True)[0]
            pixels[place] = (gradient.float().mean(0) * (batch - base)[0].float()).sum(0).cpu()
    gaps = (ends[0] - ends[1]).detach().float().cpu()
    whole = gaps[tokens, range(len(tokens))]
    return Causes(pixels, tokens, whole, whole - pixels.sum((1, 2)))


def blurred(batch: Float[Tensor, "images 3 height width"]) -> Float[Tensor, "images 3 height width"]:
    """The pictures out of focus: colours of large areas stay, whatever could be recognised goes."""
    from torchvision.transforms.functional import gaussian_blur

    spread = BLUR * batch.shape[-2]
    size = 2 * min(round(2 * spread), (min(batch.shape[-2:]) - 1) // 2) + 1
    return gaussian_blur(batch, [size, size], [spread, spread])


def _before_gate(
    project: Projection, tokens: Float[Tensor, "images tokens d_in"], units: Sequence[int]
) -> Float[Tensor, "images tokens chosen"]:
    return project.before_gate(tokens.flatten(0, 1), units).unflatten(0, tokens.shape[:2])


def _tokens(host: Host, layer: str, policy: str, batch: Tensor) -> Tensor:
    """The layer's tokens with the graph that leads back to the pictures."""
    found = []

    def keep(tokens: Tensor) -> Tensor:
        found.append(tokens)
        return tokens

    host.run(batch, layer, keep, policy, grad=True)
    return found[0]
