"""Comparing bases: neurons, SAE features and controls of one layer. docs/comparison.md says how it is decided."""

from saelab.compare.comparison import compare, finish
from saelab.compare.evidence import TestImages
from saelab.compare.inputs import ComparedBasis, Settings, Setup
from saelab.compare.other_views import Cut, Views
from saelab.compare.shared import Difference, difference
from saelab.compare.sides import Side, join_groups
from saelab.compare.tables import write
from saelab.compare.twins import cut_to_rate, paired_difference

__all__ = [
    "ComparedBasis",
    "Cut",
    "Difference",
    "Settings",
    "Setup",
    "Side",
    "TestImages",
    "Views",
    "compare",
    "cut_to_rate",
    "difference",
    "finish",
    "join_groups",
    "paired_difference",
    "write",
]
