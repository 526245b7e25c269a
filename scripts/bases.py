"""A set of units on its way through the stages."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from saelab import units
from saelab.artifacts import Artifact

if TYPE_CHECKING:
    from stages import Run

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


def of_kind(run: "Run", kind: str, layer: str) -> list[Basis]:
    """The bases of a kind on one layer: one for each seed where the kind has seeds."""
    store = run.caches[layer]
    where, pool, signed = run.root, run.cfg.pool, run.cfg.signed
    if kind == "sae":
        saes = run.saes(layer)
        with run.timed("units"):
            made = [units.sae(store, where, s.path, pool, device=run.device) for s in saes]
        return [
            Basis(f"sae seed {seed}", GROUPS[kind], kind, seed, layer, unit, sae)
            for seed, sae, unit in zip(run.cfg.seeds, saes, made)
        ]
    simple: dict[str, Callable[..., Artifact]] = {"neuron": units.neuron, "pca": units.pca}
    with run.timed("units"):
        if kind in simple:
            return [Basis(kind, GROUPS[kind], kind, None, layer, simple[kind](store, where, pool, signed))]
        seeds = run.cfg.rotation_seeds
        made = [units.random_rotation(store, where, pool, signed, seed) for seed in seeds]
        names = ["random rotation", *(f"random rotation {i + 1}" for i in range(1, len(made)))]
        return [Basis(name, GROUPS[kind], kind, seed, layer, unit) for name, seed, unit in zip(names, seeds, made)]
