"""Effects: what units do to a host's outputs, and whether it is what their labels say."""

from saelab.effects.ablate import Active, centred, effects, moved, percentiles
from saelab.effects.answers import Answers, HostAnswers
from saelab.effects.causal import MeasureSettings, measure
from saelab.effects.classes import Carried, ClassUnits, Usual, carriers, compare_to_class, find_class_units
from saelab.effects.ground import Ground
from saelab.effects.groups import groups_of, measure_group, summarise_groups
from saelab.effects.heads import Head, fit_probe, host_head, text_head
from saelab.effects.summary import Difference, Mean, add_corrected, causal_columns, difference, summarise
from saelab.effects.targets import Outputs, Targets, find_targets, imagenet_outputs

__all__ = [
    "Active",
    "Answers",
    "Carried",
    "ClassUnits",
    "Difference",
    "Ground",
    "Head",
    "HostAnswers",
    "Mean",
    "MeasureSettings",
    "Outputs",
    "Targets",
    "Usual",
    "add_corrected",
    "carriers",
    "causal_columns",
    "centred",
    "compare_to_class",
    "difference",
    "effects",
    "find_class_units",
    "find_targets",
    "fit_probe",
    "groups_of",
    "host_head",
    "imagenet_outputs",
    "measure",
    "measure_group",
    "moved",
    "percentiles",
    "summarise",
    "summarise_groups",
    "text_head",
]
