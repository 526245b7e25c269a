"""Where in a picture a unit fires: its token activations laid out as the layer's grid."""

from collections.abc import Sequence
from functools import lru_cache

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from saelab.cache import ActivationCache
from saelab.units.bases import Projection

PLACES = 1 << 20  # of a unit, of which a level is the quantile; of more, images are left out at even distances


class HeatMaps:
    """The maps of one basis' units. Called with (unit, image id): the unit's activations as shares of its peak.

    Shares are clipped to 0..1, so that one scale serves a unit. None where the layer's tokens have no place in the
    picture. Tokens before the grid (class token, registers) are passed over.
    """

    def __init__(self, cache: ActivationCache, project: Projection, peaks: Float[Tensor, "units"]) -> None:
        """`peaks`: each unit's activation on its strongest image."""
        self.cache, self.project, self.peaks = cache, project, peaks
        self._kept = lru_cache(maxsize=16)(self._maps)

    def __call__(self, unit: int, image: int) -> Float[np.ndarray, "height width"] | None:
        maps = self._kept(image)
        return None if maps is None else (maps[unit] / self.peaks[unit].clamp(min=1e-12)).clamp(0, 1).numpy()

    def activations(self, unit: int, image: int) -> Float[Tensor, "height width"] | None:
        """The unit's activation at each place of the picture, as it is."""
        maps = self._kept(image)
        return None if maps is None else maps[unit]

    def levels(self, units: Sequence[int], share: float = 0.01) -> Float[Tensor, "chosen"]:
        """Per unit of `units` the activation that at most this share of all places of the `mine` images exceeds.

        MILAN's masks, like NetDissect's, are the places above it. Exact up to a million places; of more, images
        are left out at even distances.
        """
        images = np.flatnonzero(self.cache.splits == "mine")
        step = -(-len(images) * self.cache.n_tokens // max(1, self.cache.n_images) // PLACES) or 1
        chosen, parts = torch.as_tensor(list(units)), []
        for image in images[::step]:
            maps = self._maps(int(image))
            if maps is not None:
                parts.append(maps[chosen].flatten(1))
        if not parts:
            return torch.zeros(len(chosen))
        places = torch.cat(parts, dim=1)
        return places.topk(int(share * places.shape[1]) + 1, dim=1).values[:, -1]

    def _maps(self, image: int) -> Float[Tensor, "units height width"] | None:
        grid = self.cache.grid(image)
        if grid is None:
            return None
        tokens = torch.from_numpy(np.array(self.cache.image_tokens(image), dtype=np.float32))
        with torch.inference_mode():
            return self.project(tokens[-grid[0] * grid[1] :]).T.reshape(-1, *grid)
