"""Units: below this room nobody knows a neuron from an SAE latent, a principal component or a random direction.

artifact = units.neuron(cache, root) | units.sae(cache, root, sae_folder) | units.pca(...) | units.random_rotation(...)
acts = units.UnitActivations.load(artifact.path)        # [images, units], dense or CSR
project = units.Projection.load(artifact.path, sae=...)   # tokens -> unit activations, for maps and new pictures
units.pool_units(project, tokens[None], "max")          # one picture's activation of every unit
"""

from saelab.units.activations import UnitActivations, from_scipy, to_scipy
from saelab.units.bases import SIGNED, Projection
from saelab.units.grouping import GroupSettings
from saelab.units.maps import HeatMaps
from saelab.units.pooling import POOLS, pool_cache, pool_tokens, pool_units
from saelab.units.stage import groups, heads, neuron, pca, random_rotation, sae

__all__ = [
    "POOLS",
    "SIGNED",
    "GroupSettings",
    "HeatMaps",
    "Projection",
    "UnitActivations",
    "from_scipy",
    "groups",
    "heads",
    "neuron",
    "pca",
    "pool_cache",
    "pool_tokens",
    "pool_units",
    "random_rotation",
    "sae",
    "to_scipy",
]
