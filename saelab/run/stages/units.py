"""The units stage: the bases of one kind on one layer."""

from collections.abc import Sequence
from pathlib import Path

from saelab import units
from saelab.artifacts import Artifact
from saelab.cache import ActivationCache
from saelab.images import ImageSet
from saelab.run.basis import KINDS, Basis


def simple_bases(
    kind: str, store: ActivationCache, weights: str, root: Path, pool: str, signed: str, seeds: Sequence[int]
) -> list[Basis]:
    """Bases that need no SAE. `weights`: digest of the host's; `seeds`: of random rotations, one basis each."""
    group, control = KINDS[kind].group, KINDS[kind].control
    if kind == "random_rotation":
        names = ["random rotation", *(f"random rotation {i + 1}" for i in range(1, len(seeds)))]
        return [
            Basis(
                name,
                group,
                kind,
                seed,
                store.layer,
                units.random_rotation(store, root, pool, signed, seed),
                weights,
                control,
            )
            for name, seed in zip(names, seeds)
        ]
    make = {"neuron": units.neuron, "pca": units.pca}[kind]
    return [Basis(kind, group, kind, None, store.layer, make(store, root, pool, signed), weights, control)]


def heads_basis(store: ActivationCache, weights: str, root: Path, pool: str, signed: str, count: int) -> Basis:
    """The attention heads whose outputs the layer holds. `weights`: digest of the host's; `count`: of its heads."""
    made = units.heads(store, root, count, pool, signed)
    return Basis("heads", KINDS["heads"].group, "heads", None, store.layer, made, weights)


def sae_bases(
    saes: Sequence[Artifact],
    seeds: Sequence[int | None],
    store: ActivationCache,
    weights: str,
    root: Path,
    pool: str,
    device: str,
) -> list[Basis]:
    """The features of SAEs of one recipe, one basis for each seed. Rename them with `dataclasses.replace`."""
    made = [units.sae(store, root, sae.path, pool, device=device) for sae in saes]
    names = [f"sae seed {seed}" if seed is not None else "sae" for seed in seeds]
    group = KINDS["sae"].group
    return [
        Basis(name, group, "sae", seed, store.layer, unit, weights, sae=sae)
        for name, seed, sae, unit in zip(names, seeds, saes, made)
    ]


def group_basis(
    kind: str, of: Basis, store: ActivationCache, images: ImageSet, root: Path, settings: units.GroupSettings
) -> Basis | None:
    """The groups of a basis' units; None where no units fire together often enough."""
    project = units.Projection.load(of.units.path, of.sae_path)
    made = units.groups(store, root, of.units, project, images.ids("mine"), images.groups, settings, of.sae_path)
    if made is None:
        return None
    name = kind.replace("_", " ")
    return Basis(name, KINDS[kind].group, kind, of.seed, store.layer, made, of.weights)
