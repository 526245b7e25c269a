"""Does a label hold on images that it was not made from? Faithfulness, coherence, intervals, and CoSy's pictures."""

from saelab.evaluate.evaluate import (
    BADGES,
    add_pixels,
    badge,
    evaluate,
    judging_metric,
    mean_of,
    over_all,
    shuffled,
    summarise,
    write,
)
from saelab.evaluate.faithfulness import CHANCE, FAITHFULNESS, Judges, Splits, faithfulness

__all__ = [
    "BADGES",
    "CHANCE",
    "FAITHFULNESS",
    "Judges",
    "Splits",
    "add_pixels",
    "badge",
    "evaluate",
    "faithfulness",
    "judging_metric",
    "mean_of",
    "over_all",
    "shuffled",
    "summarise",
    "write",
]
