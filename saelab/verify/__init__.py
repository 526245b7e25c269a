"""Two checks by a vision-language model: does a label tell the unit's images apart, and which candidate fits best.

    show = images.ids("show")
    sets = detection_sets(units.rows(show), image_emb[show], show, {unit: label}, groups=images.groups[show])
    detections = detect(chat, sets, images, folder)          # folder/detection.jsonl, resumed by unit
    choices = second_look(chat, cases, {unit: candidates}, folder)   # folder/second_look.jsonl

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
from saelab.verify.second_look import Choice, choice_estimate, choice_summary, second_look

__all__ = [
    "Choice",
    "Detection",
    "DetectionSet",
    "choice_estimate",
    "choice_summary",
    "detect",
    "detection_estimate",
    "detection_sets",
    "detection_summary",
    "second_look",
]
