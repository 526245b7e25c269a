"""Scorers: pure functions from a unit's evidence to a score for every label, each equal to its source.

`SCORERS` holds a row for each (`saelab.label.scorers`); `score(names, evidence)` and `rankings(names, evidence)` call
them alike. To add one, add its row to its family's file, or to `SCORERS` for this process alone.
"""

from saelab.label.scorers.combined import contrast_evidence, summed_evidence
from saelab.label.scorers.contrastive import csp, pair_weights
from saelab.label.scorers.decoder import decoder_direction
from saelab.label.scorers.dissect import clip_dissect_neurolens, soft_wpmi, wpmi
from saelab.label.scorers.evidence import Evidence
from saelab.label.scorers.formulas import Formula, invert_formulas
from saelab.label.scorers.invert import invert_auc
from saelab.label.scorers.linear import LinearExplanation, linear_explanations
from saelab.label.scorers.means import (
    centred_mean,
    difference_of_means,
    semanticlens,
    set_projection,
    template_contrast,
)
from saelab.label.scorers.netdissect import netdissect
from saelab.label.scorers.registry import SCORERS, Ranking, explained, rank_of, ranking, rankings, score
from saelab.label.scorers.reorder import rank_reorder
from saelab.label.scorers.scorer import Citation, Scorer
from saelab.label.scorers.several import falcon, falcon_labels, www, www_labels
from saelab.label.scorers.whole_set import cos_cubed, cosine, floored_labels, pearson

__all__ = [
    "SCORERS",
    "Citation",
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
    "summed_evidence",
    "template_contrast",
    "wpmi",
    "www",
    "www_labels",
]
