"""How strongly a unit answers a picture, beside what it does on the pictures that were mined."""

from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Float, Int


@dataclass(frozen=True)
class Strengths:
    """One unit's activation on every image of a run."""

    acts: Float[np.ndarray, "images"]  # float32
    mine: Int[np.ndarray, "mine"]  # ids of the images that are compared with

    def rate(self, activation: float) -> dict[str, float]:
        """`{"activation", "share", "percentile"}` of an activation on any picture.

        share: of the unit's highest on any image of the run. percentile: the share of mined images that fire the unit
        less; ties count half (0 to 1).
        """
        own, value = self.acts[self.mine], np.float32(activation)
        below = float((own < value).mean() + 0.5 * (own == value).mean())
        return {"activation": float(value), "share": float(value) / max(float(self.acts.max()), 1e-12)} | {
            "percentile": below
        }

    def of(self, image: int) -> dict[str, Any]:
        """The same for an image of the run, with its number under `image`."""
        return {"image": int(image)} | self.rate(float(self.acts[image]))
