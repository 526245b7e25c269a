"""Scorers: pure functions from a unit's evidence to a score for every label, each equal to its source."""

from saelab.label.assign.contrastive import csp, semanticlens
from saelab.label.assign.dissect import clip_dissect_neurolens, soft_wpmi, wpmi
from saelab.label.assign.invert import invert_auc
from saelab.label.assign.whole_set import cos_cubed, cosine, pearson

__all__ = [
    "clip_dissect_neurolens",
    "cos_cubed",
    "cosine",
    "csp",
    "invert_auc",
    "pearson",
    "semanticlens",
    "soft_wpmi",
    "wpmi",
]
