"""How far a picture strays from photos on its way through the network, at layers before the unit's.

After DeepInversion (Yin et al., CVPR 2020), which holds pictures to the statistics that batch normalisation keeps; here
they are measured on the run's own photos, at any network's usual layers. No encoder takes part.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

FLOOR = 1e-3  # of a layer's mean variance: what a coordinate that hardly varies over photos is given


@dataclass(frozen=True)
class Natural:
    """By layer, what `describe` gives of photos: its mean, and its variance over photos."""

    mean: Mapping[str, Float[Tensor, "values"]]
    variance: Mapping[str, Float[Tensor, "values"]]

    def distance(self, tokens: Mapping[str, Float[Tensor, "pictures tokens d_in"]]) -> Float[Tensor, "pictures"]:
        """Mean over layers of log(squared distance from the mean photo, in shares of a photo's own); at least 0.

        0: nowhere farther than photos are in the mean. Differentiable.
        """
        found = []
        for name, mean in self.mean.items():
            own = describe(tokens[name])
            far = ((own - mean.to(own)).square() / self.variance[name].to(own)).mean(1)
            found.append(far.clamp(min=1).log())
        return torch.stack(found).mean(0)


def describe(tokens: Float[Tensor, "pictures tokens d_in"]) -> Float[Tensor, "pictures values"]:
    """Mean and deviation over its tokens of each of a picture's coordinates."""
    tokens = tokens.float()
    return torch.cat([tokens.mean(1), tokens.var(1, correction=0).clamp(min=1e-8).sqrt()], dim=1)


def measure_natural(parts: Iterable[Mapping[str, Float[Tensor, "images tokens d_in"]]]) -> Natural:
    """`parts`: tokens of some photos by layer, two photos at least in all."""
    rows: dict[str, list[Tensor]] = {}
    for part in parts:
        for name, tokens in part.items():
            rows.setdefault(name, []).append(describe(tokens))
    every = {name: torch.cat(own) for name, own in rows.items()}
    spread = {name: own.var(0) for name, own in every.items()}
    return Natural(
        {name: own.mean(0) for name, own in every.items()},
        {name: own + FLOOR * own.mean() + 1e-12 for name, own in spread.items()},
    )
