"""Does a label hold on images that it was not made from? Faithfulness, coherence, intervals, and CoSy's pictures."""

from saelab.evaluate.evaluate import (
    BADGES,
    COHERENCE,
    add_pixels,
    badge,
    coherence,
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
    "COHERENCE",
    "FAITHFULNESS",
    "Judges",
    "Splits",
    "add_pixels",
    "badge",
    "coherence",
    "evaluate",
    "faithfulness",
    "judging_metric",
    "mean_of",
    "over_all",
    "shuffled",
    "summarise",
    "write",
]
