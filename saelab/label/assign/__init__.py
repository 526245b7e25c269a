"""Scorers: pure functions from a unit's evidence to a score for every label, each equal to its source.

`SCORERS` adapts them to one call for the pipeline: `score(names, evidence)` or `rankings(names, evidence)`.
"""

from saelab.label.assign.combined import contrast_evidence
from saelab.label.assign.contrastive import (
    centred_mean,
    csp,
    decoder_direction,
    difference_of_means,
    pair_weights,
    semanticlens,
    set_projection,
    template_contrast,
)
from saelab.label.assign.dissect import clip_dissect_neurolens, rank_reorder, soft_wpmi, wpmi
from saelab.label.assign.evidence import Evidence
from saelab.label.assign.explained import explained
from saelab.label.assign.formulas import Formula, invert_formulas
from saelab.label.assign.invert import invert_auc
from saelab.label.assign.linear import LinearExplanation, linear_explanations
from saelab.label.assign.netdissect import netdissect
from saelab.label.assign.registry import SCORERS, Ranking, Scorer, rank_of, ranking, rankings, score
from saelab.label.assign.several import falcon, falcon_labels, www, www_labels
from saelab.label.assign.whole_set import cos_cubed, cosine, floored_labels, pearson

__all__ = [
    "SCORERS",
    "Evidence",
    "Formula",
    "LinearExplanation",
    "Ranking",
    "Scorer",
    "centred_mean",
    "clip_dissect_neurolens",
    "contrast_evidence",
    "cos_cubed",
    "cosine",
    "csp",
    "decoder_direction",
    "difference_of_means",
    "explained",
    "falcon",
    "falcon_labels",
    "floored_labels",
    "invert_auc",
    "invert_formulas",
    "linear_explanations",
    "netdissect",
    "pair_weights",
    "pearson",
    "rank_of",
    "rank_reorder",
    "ranking",
    "rankings",
    "score",
    "semanticlens",
    "set_projection",
    "soft_wpmi",
    "template_contrast",
    "wpmi",
    "www",
    "www_labels",
]
