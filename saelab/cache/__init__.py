"""Activation caches: the tokens of a layer for all images, written once, read through a memory map."""

from saelab.cache.arrays import adopt
from saelab.cache.batches import Batches
from saelab.cache.store import ActivationCache, open
from saelab.cache.stream import ActivationStream, stream
from saelab.cache.unstored import UnstoredActivations, recompute
from saelab.cache.write import write

__all__ = [
    "ActivationCache",
    "ActivationStream",
    "Batches",
    "UnstoredActivations",
    "adopt",
    "open",
    "recompute",
    "stream",
    "write",
]
