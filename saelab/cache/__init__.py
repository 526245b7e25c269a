"""Activation caches: the tokens of a layer for all images, written once, read through a memory map."""

from saelab.cache.arrays import adopt
from saelab.cache.batches import Batches
from saelab.cache.store import ActivationCache, open
from saelab.cache.write import write

__all__ = ["ActivationCache", "Batches", "adopt", "open", "write"]
