"""Pictures that raise a unit: gradient ascent from the unit's pre-activation to the parameters of a picture.

The objective is what the unit's gate sees, never the gated activation: a shut gate has no gradient.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float, UInt8
from torch import Tensor
from torch.nn.functional import normalize

from saelab import settings
from saelab.errors import UserError
from saelab.hosts import Host
from saelab.settings import nearest
from saelab.synthesise.natural import Natural
from saelab.synthesise.parametrisations import METHODS, Parametrisation, parametrise
from saelab.synthesise.photos import Photos
from saelab.synthesise.robust import generator_for, shake
from saelab.units import POOLS, Projection, pool_tokens, pool_units

RATES = {"pixel": 0.05, "fourier": 0.05, "maco": 0.1, "accentuate": 0.05}  # Adam's step
MANY = float("inf")


@dataclass(frozen=True)
class SynthesisSettings:
    """How pictures are made."""

    method: str = "fourier"  # pixel, fourier, maco, or accentuate (a real photo, changed)
    count: int = 1  # pictures a unit
    steps: int = 48  # of Adam; 256 and more where there is a GPU
    crops: int = 2  # of each picture, in every step; 6 and more where there is a GPU
    pool: str | None = None  # tokens -> one number: max, mean, cls, top_mean, or centre; None: as the run pools
    diversity: float = 0.0  # how much pictures of one unit are driven apart
    penalty: float = 10.0  # accentuate: what leaving the photo costs
    natural: float = 0.0  # what leaving photos' ways through earlier layers costs
    seed: int = 0

    def __post_init__(self) -> None:
        """Raise UserError for settings that can't be used."""
        ranges = {"count": (1, 16), "steps": (1, MANY), "crops": (1, 64), "diversity": (0, MANY), "penalty": (0, MANY)}
        ranges |= {"natural": (0, MANY)}
        settings.check(self, "", ranges)
        if self.method not in METHODS:
            raise UserError("method", self.method, "unknown", f"{nearest(self.method, METHODS)}known: {_list(METHODS)}")
        pools = (*POOLS, "centre")
        if self.pool is not None and self.pool not in pools:
            raise UserError("pool", self.pool, "unknown", f"{nearest(self.pool, pools)}known: {_list(pools)}")


@dataclass(frozen=True)
class Sight:
    """How a unit sees pictures: a host, a layer and a basis, with what photos are like."""

    host: Host
    layer: str
    policy: str
    project: Projection
    pool: str  # of the run: max, mean, cls or top_mean
    photos: Photos
    natural: Natural | None = None  # photos at earlier layers; None: pictures are not held to them

    def before_gate(self, pictures: Float[Tensor, "pictures 3 height width"], unit: int, pool: str) -> Tensor:
        """The unit's pooled pre-activation on each picture (values in 0..1); differentiable."""
        return self._pool(self.tokens(pictures, grad=True), unit, pool)

    def tokens(self, pictures: Float[Tensor, "pictures 3 height width"], grad: bool = False) -> Tensor:
        """The layer's tokens of pictures with values in 0..1 and of the host's size: they are not cropped again."""
        return self.by_layer(pictures, grad=grad)[self.layer]

    def by_layer(self, pictures: Tensor, earlier: Sequence[str] = (), grad: bool = True) -> dict[str, Tensor]:
        """The same with the tokens of other layers, in one pass."""
        batch = self.host.transform.normalize(255 * pictures)
        return self.host.tokens(batch, [*earlier, self.layer], self.policy, grad)

    def activations(self, pictures: Float[Tensor, "pictures 3 height width"]) -> Float[Tensor, "pictures units"]:
        """Every unit's activation by the basis' own code and pooling, as the run measured its photos."""
        tokens = self.tokens(pictures).float().cpu()
        return pool_units(self.project, tokens, self.pool)

    def _pool(self, tokens: Tensor, unit: int, pool: str) -> Tensor:
        read = self.project.before_gate(tokens.flatten(0, 1), [unit]).unflatten(0, tokens.shape[:2])
        if pool == "centre":
            return read[:, centre(self.host, self.layer, self.policy), 0]
        return pool_tokens(read, pool)[:, 0]


@dataclass(frozen=True)
class Synthesised:
    """Pictures of one unit."""

    pictures: UInt8[Tensor, "count height width 3"]  # as they are saved
    weight: Float[Tensor, "count height width"]  # 0..1: how much the unit alone depended on each pixel, over all steps
    objective: Float[Tensor, "steps count"]  # the pooled pre-activation, mean over crops


def centre(host: Host, layer: str, policy: str) -> int:
    """Number of the token in the middle of the layer's grid, counted from the end. UserError where there is none."""
    grid = host.choice(layer, policy).grid
    if grid is None:
        raise UserError("pool", "centre", f"tokens of {layer} have no place in the picture", "use pool=max")
    return (grid[0] // 2) * grid[1] + grid[1] // 2 - grid[0] * grid[1]


def synthesise_unit(
    sight: Sight,
    unit: int,
    own: SynthesisSettings,
    scale: float = 1.0,
    base: Float[Tensor, "3 height width"] | None = None,
) -> Synthesised:
    """Pictures that raise the unit; a function of the seed, the unit and the settings alone.

    `scale`: the unit's largest natural activation, in shares of which `penalty` and `diversity` count. `base`: pixels
    in 0..1 of the photo that `accentuate` starts from. Raises UserError for a picture that the method lacks.
    """
    if own.method == "accentuate" and base is None:
        raise UserError("method", own.method, "changes a photo, and there is none", "use fourier")
    base = base if own.method == "accentuate" else None
    form = parametrise(own.method, sight.host.transform.size, sight.photos, base)
    generators = [generator_for(own.seed, unit, number) for number in range(own.count)]
    device = sight.host.device
    with torch.inference_mode(False), torch.enable_grad():
        parameters = torch.stack([form.start(g) for g in generators]).to(device).requires_grad_()
        optimiser = torch.optim.Adam([parameters], lr=RATES[own.method])
        weight, trace = torch.zeros(own.count, *sight.host.transform.size, device=device), []
        for _ in range(own.steps):
            values, gradient, at_pixels = _step(sight, unit, form, parameters, own, scale, base, generators)
            weight += at_pixels.abs().sum(1)
            trace.append(values)
            parameters.grad = gradient
            optimiser.step()
        made = form.draw(parameters.detach())
    pixels = (255 * made).round().to(torch.uint8).permute(0, 2, 3, 1).cpu()
    return Synthesised(pixels, _shares(weight.cpu()), torch.stack(trace))


def _step(
    sight: Sight,
    unit: int,
    form: Parametrisation,
    parameters: Tensor,
    own: SynthesisSettings,
    scale: float,
    base: Tensor | None,
    generators: list[torch.Generator],
) -> tuple[Tensor, Tensor, Tensor]:
    """(objective of each picture, what Adam descends along, gradient of the objective alone at the pixels)."""
    pictures = form.draw(parameters)
    natural = sight.natural if own.natural else None
    found = sight.by_layer(shake(pictures, own.crops, generators), [] if natural is None else list(natural.mean))
    tokens = found[sight.layer]
    read = sight._pool(tokens, unit, own.pool or sight.pool).unflatten(0, (own.count, own.crops)).mean(1)
    costs = []
    if base is not None:
        costs.append(own.penalty * (pictures - base.to(pictures)).square().mean((1, 2, 3)).sum())
    if own.diversity and own.count > 1:
        means = normalize(tokens.float().mean(1).unflatten(0, (own.count, own.crops)).mean(1), dim=1)
        costs.append(own.diversity * ((means @ means.T).sum() - own.count) / (own.count - 1))
    if natural is not None:
        costs.append(own.natural * natural.distance(found).sum() / own.crops)
    (at_pixels,) = torch.autograd.grad(-read.sum() / scale, [pictures], retain_graph=bool(costs))
    descent = at_pixels + torch.autograd.grad(torch.stack(costs).sum(), [pictures])[0] if costs else at_pixels
    (gradient,) = torch.autograd.grad(pictures, [parameters], descent)
    return read.detach().cpu(), gradient, at_pixels


def _shares(weight: Float[Tensor, "count height width"]) -> Float[Tensor, "count height width"]:
    """Weights as shares of their 99th percentile, at most 1."""
    top = weight.flatten(1).quantile(0.99, dim=1).clamp(min=1e-12)
    return (weight / top[:, None, None]).clamp(max=1)


def _list(names: tuple[str, ...]) -> str:
    return ", ".join(names)
