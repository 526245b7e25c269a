"""Checks of labels and of units by a vision-language model, and one that needs no model.

With a label: does it tell the unit's images apart (`detect`), is it true of the region that fires the unit
(`find_regions`), which candidate fits best (`second_look`)? Without one: which photo doesn't fire the unit
(`find_intruders`), and do embeddings tell firing photos from silent ones (`embedding_scores`, no model)?

    show = images.ids("show")
    sets = detection_sets(units.rows(show), image_emb[show], show, {unit: label}, groups=images.groups[show])
    detections = detect(chat, sets, images, folder)          # folder/detection.jsonl, resumed by unit
    choices = second_look(chat, cases, {unit: candidates}, folder)   # folder/second_look.jsonl
    intrusions = find_intruders(chat, intruder_trials(exemplars, image_emb, units), images, folder)   # intruder.jsonl

`chat` comes from `propose.load_chat` or is a proposer's own (`proposer.chat`), `cases` from `propose.build_case`.
"""

from saelab.verify.detection import (
    Detection,
    DetectionSet,
    detect,
    detection_estimate,
    detection_sets,
    detection_summary,
)
from saelab.verify.embedding import EmbeddingScore, embedding_scores, embedding_summary
from saelab.verify.fuzzing import Fuzzing, FuzzingSet, find_regions, fuzzing_estimate, fuzzing_sets, fuzzing_summary
from saelab.verify.intruder import (
    Accuracy,
    Intrusion,
    Trial,
    find_intruders,
    intruder_accuracy,
    intruder_estimate,
    intruder_summary,
    intruder_trials,
)
from saelab.verify.second_look import Choice, choice_estimate, choice_summary, second_look

__all__ = [
    "Accuracy",
    "Choice",
    "Detection",
    "DetectionSet",
    "EmbeddingScore",
    "Fuzzing",
    "FuzzingSet",
    "Intrusion",
    "Trial",
    "choice_estimate",
    "choice_summary",
    "detect",
    "detection_estimate",
    "detection_sets",
    "detection_summary",
    "embedding_scores",
    "embedding_summary",
    "find_intruders",
    "find_regions",
    "fuzzing_estimate",
    "fuzzing_sets",
    "fuzzing_summary",
    "intruder_accuracy",
    "intruder_estimate",
    "intruder_summary",
    "intruder_trials",
    "second_look",
]
