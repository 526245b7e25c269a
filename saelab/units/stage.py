"""The units stage: a cache and a basis in, one artifact with the pooled activations of every unit out."""

import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from saelab.artifacts import Artifact, digest, ensure, file_digest
from saelab.cache import ActivationCache
from saelab.errors import UserError
from saelab.sae import SAE
from saelab.units.activations import UnitActivations
from saelab.units.attention import head_directions
from saelab.units.bases import SIGNED, Projection, principal, rotation, sae_file
from saelab.units.grouping import Grouping, GroupSettings, find_groups, high_units
from saelab.units.pooling import POOLS, SPARSE_BELOW, pool_cache

CODE = 2  # version of this stage; part of every recipe


def neuron(cache: ActivationCache, root: Path | str, pool: str = "max", signed: str = "positive") -> Artifact:
    """The layer's own coordinates as units."""
    return _units(cache, root, "neuron", {}, lambda: Projection(signed), pool, signed)


def pca(cache: ActivationCache, root: Path | str, pool: str = "max", signed: str = "positive") -> Artifact:
    """Principal components of the centred `mine` tokens, strongest first: a control of dense directions."""
    return _units(cache, root, "pca", {}, lambda: _linear(signed, *principal(cache)), pool, signed)


def random_rotation(
    cache: ActivationCache, root: Path | str, pool: str = "max", signed: str = "positive", seed: int = 0
) -> Artifact:
    """A random orthogonal basis of the centred activations: as many units as neurons, none of them privileged.

    The control that answers "is the neuron basis special?".
    """
    fit = lambda: _linear(signed, *rotation(cache, seed))  # noqa: E731
    return _units(cache, root, "random_rotation", {"seed": seed}, fit, pool, signed)


def heads(
    cache: ActivationCache, root: Path | str, count: int, pool: str = "max", signed: str = "positive"
) -> Artifact:
    """The `count` attention heads whose outputs the layer's tokens hold, a unit each (`head_directions`)."""
    fit = lambda: _linear(signed, *head_directions(cache, count))  # noqa: E731
    return _units(cache, root, "heads", {"heads": count}, fit, pool, signed)


def sae(
    cache: ActivationCache,
    root: Path | str,
    path: Path | str,
    pool: str = "max",
    name: str = "sae",
    device: str = "cpu",
) -> Artifact:
    """The latents of the SAE stored at `path` (a file or an SAE artifact's folder) as units.

    Raises UserError if its d_in is not the cache's.
    """
    file = sae_file(path)
    model = SAE.load(file)
    if model.d_in != cache.d_in:
        raise UserError("sae", path, f"has d_in {model.d_in}, the cache {cache.d_in}", "use an SAE of this layer")
    extra = {"sae": file_digest(file)}
    model = model.to(device)
    screen = "bfloat16" if model.screens(model.tokens_at_once) else "float32"  # the codes are float32's with either
    info = {"latents": model.latents, "screen": screen}
    return _units(cache, root, name, extra, lambda: Projection(sae=model), pool, "positive", info)


def groups(
    cache: ActivationCache,
    root: Path | str,
    of: Artifact,
    project: Projection,
    mine: np.ndarray,
    alike: np.ndarray,
    settings: GroupSettings,
    sae: Path | None = None,
) -> Artifact | None:
    """Groups of the units of the artifact `of` that are high together on the `mine` pictures; None: there are none.

    `project`: of these units. `alike`: a number a picture of the set, equal for near-duplicates. `sae`: the folder of
    the SAE whose latents they are. Eight parameters: a basis, what decides its groups, and where they go.
    """
    recipe = {"stage": "units", "code": CODE, "cache": cache.digest, "basis": "groups", "of": of.digest}
    recipe |= {"settings": settings}
    recipe |= {"mine": digest(mine.tolist()), "alike": digest(alike.tolist())}
    own = UnitActivations.load(of.path)

    def build(folder: Path) -> None:
        found = find_groups(high_units(own.rows(mine), settings.sds), settings, alike[mine])
        if not found.members:
            raise NoGroupsError
        grouping = Grouping.fit(found.members, own.rows(mine))
        replace(project, groups=grouping).save(folder)
        acts = grouping.least_of(own.acts)
        sparse = (acts != 0).float().mean() < SPARSE_BELOW
        facts = own.info | {"groups": len(found.members), "of": own.basis, "members": found.members}
        facts |= {"support": found.support, "bound": found.bound}
        facts |= {} if sae is None else {"sae": os.path.relpath(sae, Path(root) / "units" / "groups")}
        UnitActivations(acts.to_sparse_csr() if sparse else acts, "groups", facts).save(folder)

    try:
        return ensure(root, "units", f"groups-{own.basis}-{cache.layer}", recipe, build)
    except NoGroupsError:
        return None


class NoGroupsError(Exception):
    """No units are high together often enough."""


def _linear(signed: str, directions: Tensor, shift: Tensor) -> Projection:
    return Projection(signed, directions.float(), shift.float())


def _units(
    cache: ActivationCache,
    root: Path | str,
    basis: str,
    settings: dict[str, Any],
    fit: Callable[[], Projection],
    pool: str,
    signed: str,
    info: dict[str, Any] | None = None,
) -> Artifact:
    if pool not in POOLS:
        raise UserError("pool", pool, "unknown", f"known: {', '.join(POOLS)}")
    if signed not in SIGNED:
        raise UserError("signed", signed, "unknown", f"known: {', '.join(SIGNED)}")
    if pool == "cls" and not cache.info["has_cls"]:
        held = f"the cache of {cache.layer} (policy {cache.info['policy']}) holds no class token"
        raise UserError("pool", pool, held, "use pool=max or mean")
    shared = {"basis": basis, "pool": pool, "signed": signed} | settings
    recipe = {"stage": "units", "code": CODE, "cache": cache.digest} | shared

    def build(folder: Path) -> None:
        with torch.inference_mode():
            projection = fit()
            acts = pool_cache(cache, projection, pool)
        projection.save(folder)
        facts = shared | {"layer": cache.layer, "host": cache.host} | (info or {})
        UnitActivations(acts, basis, facts).save(folder)

    return ensure(root, "units", f"{basis}-{cache.layer}", recipe, build)
