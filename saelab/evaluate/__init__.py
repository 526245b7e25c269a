"""Does a label hold on images that it was not made from? Faithfulness, coherence, intervals, and CoSy's pictures."""

from saelab.evaluate.evaluate import add_pixels, evaluate, mean_of, over_all, shuffled, summarise, write
from saelab.evaluate.faithfulness import CHANCE, FAITHFULNESS, Judges, Splits, faithfulness

__all__ = [
    "CHANCE",
    "FAITHFULNESS",
    "Judges",
    "Splits",
    "add_pixels",
    "evaluate",
    "faithfulness",
    "mean_of",
    "over_all",
    "shuffled",
    "summarise",
    "write",
]
