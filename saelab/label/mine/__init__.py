"""Mining: a unit's most activating images, a contrast for each of them, and what kind of unit it is."""

from saelab.label.mine.contrast import RULES, ContrastRule, Interval, candidate_interval, contrast_images
from saelab.label.mine.status import column_means, fires_on, statuses
from saelab.label.mine.top import top_images

__all__ = [
    "RULES",
    "ContrastRule",
    "Interval",
    "candidate_interval",
    "column_means",
    "contrast_images",
    "fires_on",
    "statuses",
    "top_images",
]
