"""Comparing bases: neurons, SAE features and controls of one layer. docs/comparison.md says how it is decided."""

from saelab.compare.comparison import compare, finish
from saelab.compare.inputs import Basis, Settings, Setup
from saelab.compare.tables import write

__all__ = ["Basis", "Settings", "Setup", "compare", "finish", "write"]
