"""Metrics: pure functions, column by column. [images, units] in, [units] out; dense or CSR; any device.

Label faithfulness is to be measured on images that were neither mined nor shown to a proposer. NaN means that a
number is undefined (a constant column, no positive image), never 0.
"""

from saelab.metrics.coherence import clarity, monosemanticity, polysemanticity, redundancy
from saelab.metrics.faithfulness import (
    auprc,
    best_f1_threshold,
    chance_correlation,
    correlation,
    cosine,
    f1,
    iou,
    simulation_correlation,
    typical_column,
)
from saelab.metrics.generated import auroc, dma, mad, mann_whitney, tie_share
from saelab.metrics.interval import bootstrap_interval, holm

__all__ = [
    "auprc",
    "auroc",
    "best_f1_threshold",
    "bootstrap_interval",
    "chance_correlation",
    "clarity",
    "correlation",
    "cosine",
    "dma",
    "f1",
    "holm",
    "iou",
    "mad",
    "mann_whitney",
    "monosemanticity",
    "polysemanticity",
    "redundancy",
    "simulation_correlation",
    "tie_share",
    "typical_column",
]
