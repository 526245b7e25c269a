"""Where in a picture a unit fires: its token activations laid out as the layer's grid."""

from collections.abc import Callable
from functools import lru_cache

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from saelab.cache import ActivationCache
from saelab.units.bases import Projection


def heat_maps(
    cache: ActivationCache, project: Projection, peaks: Float[Tensor, "units"]
) -> Callable[[int, int], Float[np.ndarray, "height width"] | None]:
    """`heat(unit, image)`: the unit's token activations as shares of its peak, 0 to 1, so that one scale serves a unit.

    `peaks`: each unit's activation on its strongest image. None where the layer's tokens have no place in the picture.
    Tokens before the grid (class token, registers) are passed over.
    """

    @lru_cache(maxsize=16)
    def activations(image: int) -> Tensor | None:
        grid = cache.grid(image)
        if grid is None:
            return None
        tokens = torch.from_numpy(np.array(cache.image_tokens(image), dtype=np.float32))
        with torch.inference_mode():
            return project(tokens[-grid[0] * grid[1] :]).T.reshape(-1, *grid)

    def heat(unit: int, image: int) -> np.ndarray | None:
        maps = activations(image)
        return None if maps is None else (maps[unit] / peaks[unit].clamp(min=1e-12)).clamp(0, 1).numpy()

    return heat
