"""Mining: a unit's most activating images, a contrast for each of them, and what kind of unit it is."""

from saelab.label.mine.candidates import Interval, candidate_interval
from saelab.label.mine.contrast import RULES, ContrastRule, contrast_images
from saelab.label.mine.pairs import Pairs, mine_pairs
from saelab.label.mine.status import column_means, finite_units, fires_on, firing_threshold, statuses
from saelab.label.mine.top import positive_images, top_images

__all__ = [
    "RULES",
    "ContrastRule",
    "Interval",
    "Pairs",
    "candidate_interval",
    "column_means",
    "contrast_images",
    "finite_units",
    "fires_on",
    "firing_threshold",
    "mine_pairs",
    "positive_images",
    "statuses",
    "top_images",
]
