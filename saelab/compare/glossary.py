"""The metrics of a comparison: what each is called, which way is better, where it comes from.

Correlations are compared above chance: above what a typical label of the two bases reaches on the unit
(`shared.difference`).
"""

from dataclasses import dataclass


@dataclass(frozen=True)
class Metric:
    """One metric as a comparison shows it."""

    title: str  # for an axis or a table's head
    family: str  # faithfulness | coherence
    higher_is_better: bool  # the better direction
    low: float  # end of the range
    high: float  # end of the range
    source: str  # who defined it
    explanation: str  # one sentence for a newcomer
    above_chance: bool = False  # compared above what a typical label reaches


METRICS = {
    "caption_r": Metric(
        "Caption correlation above chance",
        "faithfulness",
        True,
        -1,
        1,
        "simulation correlation with people's captions as the judge (after Bills et al., 2023)",
        "Does the unit fire on images whose caption, written by people, means something like its label, more than with "
        "a typical label of the compared bases?",
        above_chance=True,
    ),
    "auprc": Metric(
        "Average precision (AUPRC)",
        "faithfulness",
        True,
        0,
        1,
        "average precision; recommended by NeuronEval (ICML 2025)",
        "If images are sorted by the unit's activation, how early come those of which the label is true?",
    ),
    "f1": Metric(
        "F1",
        "faithfulness",
        True,
        0,
        1,
        "F1 at the threshold that is best on mining images; NeuronEval (ICML 2025)",
        "Of the images on which the unit is on, and of those of which the label is true, how many are both?",
    ),
    "iou": Metric(
        "IoU",
        "faithfulness",
        True,
        0,
        1,
        "intersection over union at the same threshold as F1; NeuronEval (ICML 2025)",
        "The images that are both on and true, as a share of those that are either.",
    ),
    "truth_r": Metric(
        "Truth correlation above chance",
        "faithfulness",
        True,
        -1,
        1,
        "Pearson correlation with boolean truth; NeuronEval (ICML 2025)",
        "Does the activation rise and fall with whether the label is true of the image, more than with a "
        "typical label of the compared bases?",
        above_chance=True,
    ),
    "scs": Metric(
        "Simulation correlation above chance (SCS)",
        "faithfulness",
        True,
        -1,
        1,
        "CSP (arXiv 2604.22477), after Bills et al. (2023)",
        "Does the activation rise and fall with the judging encoder's similarity of image and label, more than with "
        "a typical label of the compared bases?",
        above_chance=True,
    ),
    "caption_clarity": Metric(
        "Caption clarity",
        "coherence",
        True,
        -1,
        1,
        "clarity (SemanticLens, 2025) of the captions of the strongest images",
        "How alike are the captions of the images that fire the unit most?",
    ),
    "clarity": Metric(
        "Clarity",
        "coherence",
        True,
        -1,
        1,
        "SemanticLens (Dreyer et al., 2025)",
        "How alike are the images that fire the unit most (mean cosine of two of them)?",
    ),
    "monosemanticity": Metric(
        "Monosemanticity",
        "coherence",
        True,
        -1,
        1,
        "Pach et al. (NeurIPS 2025)",
        "How alike are images on which the unit fires, weighted by how strongly it fires on both?",
    ),
    "polysemanticity": Metric(
        "Polysemanticity",
        "coherence",
        False,
        0,
        2,
        "SemanticLens (Dreyer et al., 2025)",
        "How far apart are the two groups into which the strongest images fall best? Lower is better.",
    ),
}

FAITHFUL = [name for name, metric in METRICS.items() if metric.family == "faithfulness"]
LOWER_IS_BETTER = ("polysemanticity", "redundancy")  # of all numbers a unit has; redundancy is described, not compared
