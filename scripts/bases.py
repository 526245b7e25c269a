"""A set of units on its way through the stages."""

from dataclasses import dataclass
from pathlib import Path

from saelab.artifacts import Artifact

# What the bases of a kind are called together, in sentences.
GROUPS = {
    "neuron": "neurons",
    "sae": "SAE features",
    "pca": "principal components",
    "random_rotation": "random directions",
}


@dataclass(frozen=True)
class Basis:
    """One set of units on its way through the stages."""

    name: str  # as shown: neuron, sae seed 1, ...
    group: str  # bases that differ only by their seed share it
    kind: str  # neuron | sae | pca | random_rotation
    seed: int | None
    layer: str
    units: Artifact
    sae: Artifact | None = None
    exemplars: Artifact | None = None
    proposals: Path | None = None
    labels: Artifact | None = None
    evaluation: Artifact | None = None

    @property
    def control(self) -> bool:
        """Is it there only to be beaten?"""
        return self.kind in ("pca", "random_rotation")

    def made(self) -> list[Artifact]:
        """Its artifacts so far."""
        found = (self.units, self.sae, self.exemplars, self.labels, self.evaluation)
        return [artifact for artifact in found if artifact is not None]
