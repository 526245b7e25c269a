"""The detection test (method: a label that is right tells a unit's images from others that nobody has mined)."""

import random
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from saelab.acts import Acts, dense, pick
from saelab.errors import UserError
from saelab.label import mine
from saelab.label.proposal import Estimate
from saelab.label.selection import Budget
from saelab.label.vlm import parse, prompts
from saelab.label.vlm.chat import Chat, Picture, Reply, Request
from saelab.label.vlm.show import Look
from saelab.verify.asking import Question, ask, open_ledger, sum_spending

if TYPE_CHECKING:
    from saelab.images import ImageSet
    from saelab.verify.fuzzing import Fuzzing

PROMPT, MAX_TOKENS = "detect", 100
FITS_SCHEMA: dict[str, Any] = {
    "type": "object",
    "properties": {"fits": {"type": "array", "items": {"type": "integer"}}},
    "required": ["fits"],
    "additionalProperties": False,
}


@dataclass(frozen=True)
class DetectionSet:
    """The images on which one unit's label is tried; none of them was used to find it."""

    unit: int  # row number, as in the exemplars
    label: str  # what the model is asked to find
    positives: tuple[int, ...]  # image ids on which the unit fires most
    contrasts: tuple[int, ...]  # look-alikes of the positives on which it is below its mean
    others: tuple[int, ...]  # random images on which it is below its mean

    def shuffled(self, seed: int) -> tuple[int, ...]:
        """All image ids in the order in which they are shown."""
        order = [*self.positives, *self.contrasts, *self.others]
        random.Random(f"{seed}/{self.unit}").shuffle(order)
        return tuple(order)


@dataclass(frozen=True)
class Detection:
    """One line of detection.jsonl."""

    name: str  # of the request; a file of recorded answers finds them by it
    unit: int  # row number, as in the exemplars
    label: str  # what was asked for
    status: str  # answered | unparsed (counts as all wrong) | failed (counts as nothing, is asked again)
    images: tuple[int, ...]  # in the order shown; photo 1 is the first
    fires: tuple[bool, ...]  # whether each is a positive
    said: tuple[int, ...] | None  # numbers of the photos that the model found the label on
    balanced_accuracy: float | None  # mean of the shares of positives and of negatives that were judged right, 0..1
    f1: float | None  # 0..1
    raw: str | None  # the answer, verbatim
    record: dict[str, Any]  # request, model, tokens, cost, attempts, seconds, error


def detection_sets(
    acts: Acts,
    image_emb: Float[Tensor, "show d_text"],
    ids: Int[np.ndarray, "show"],
    labels: Mapping[int, str],
    per_side: int = 4,
    groups: Int[np.ndarray, "show"] | None = None,
    seed: int = 0,
) -> list[DetectionSet]:
    """For each labelled unit, `per_side` positives and as many negatives (half contrasts, half random) out of `ids`.

    Row i of acts [show, units] (dense or sparse), image_emb and groups belongs to image ids[i]: give those of the
    `show` split, for labels were found on `mine`. Positives are the strongest of the images on which the unit fires;
    negatives lie below its mean; contrasts are mined as in `mine.contrast_images`, each used once. A unit that fires on
    fewer than `per_side` of the images gets that many of each; one that fires on none, or that has no negatives, is
    left out. A unit's set doesn't depend on which other units there are.
    """
    units = sorted(labels)
    if per_side < 2:
        raise UserError("per_side", per_side, "must be at least 2")
    if len(ids) < 2 * per_side:
        remedy = "lower per_side, or give more pictures"
        raise UserError("per_side", per_side, f"needs {2 * per_side} images, the split has {len(ids)}", remedy)
    own = dense(pick(acts, torch.tensor(units, dtype=torch.long))).float()
    top, _ = mine.positive_images(own, per_side)
    near = torch.as_tensor(groups) if groups is not None else None
    contrast, _ = mine.contrast_images(own, image_emb, top, reuse=False, groups=near)
    below = own < own.double().mean(0)
    sets = []
    for column, unit in enumerate(units):
        positives = top[column][top[column] >= 0].tolist()
        wanted = contrast[column][: (len(positives) + 1) // 2]
        contrasts = [image for image in wanted.tolist() if image >= 0 and image not in positives]
        free = set(below[:, column].nonzero().flatten().tolist()) - {*positives, *contrasts}
        draw = random.Random(f"{seed}/{unit}")
        others = draw.sample(sorted(free), min(len(positives) - len(contrasts), len(free)))
        if positives and (contrasts or others):
            places = [tuple(int(ids[i]) for i in group) for group in (positives, contrasts, others)]
            sets.append(DetectionSet(unit, labels[unit], *places))
    return sets


def detect(
    chat: Chat,
    sets: Sequence[DetectionSet],
    images: "ImageSet",
    folder: Path | str,
    *,
    seed: int = 0,
    part_px: int = 448,
    budget: Budget | None = None,
    progress: bool = True,
) -> list[Detection]:
    """Ask of each set which of its photos, in an order shuffled by seed, show the label; one request a unit.

    Rows go to `<folder>/detection.jsonl` as they come; those that are there are not asked again, failed ones are. Units
    that the budget holds back have no row. Raises UserError for a folder with rows of another recipe, label or set, and
    where every unit failed. Eight parameters: who is asked about what, where it is written, and four with defaults.
    """
    folder, template, look = Path(folder), prompts.load(PROMPT), Look(layout="parts", part_px=part_px)
    facts = {"seed": seed, "part_px": part_px, "max_tokens": MAX_TOKENS}
    ledger = open_ledger(chat, folder, "detection", template, images.fingerprint, **facts)
    for own in sets:
        kept = ledger.kept.get(own.unit)
        if kept and (kept["label"], tuple(kept["images"])) != (own.label, own.shuffled(seed)):
            found = f"holds unit {own.unit} with another label or other photos"
            raise UserError("folder", folder, found, "give these a folder of their own")

    def request(own: DetectionSet) -> Request:
        photos = look.photos(images, own.shuffled(seed), f"unit-{own.unit:05d}-detection")
        return _request(own, photos, template)

    def outline(own: DetectionSet) -> Request:
        return _outline(own, look, template)

    def row(own: DetectionSet, reply: Reply) -> Detection:
        return _detection(own, own.shuffled(seed), reply)

    kept_rows = ask(chat, ledger, sets, Question(request, outline, row), budget, progress)
    rows = [_detection_from(kept) for kept in kept_rows]
    ledger.close(detection_summary([_detection_from(kept) for kept in ledger.rows()]))
    return rows


def detection_estimate(chat: Chat, sets: Sequence[DetectionSet], *, part_px: int = 448) -> Estimate:
    """What `detect` would take; nothing is drawn or sent."""
    template, look = prompts.load(PROMPT), Look(layout="parts", part_px=part_px)
    return sum((chat.estimate(_outline(own, look, template)) for own in sets), Estimate())


def detection_summary(rows: "Sequence[Detection | Fuzzing]") -> dict[str, Any]:
    """Counts per status, the means over all answered and unparsed units, and what was spent."""
    judged = [row for row in rows if row.balanced_accuracy is not None]
    mean = {
        name: sum(getattr(row, name) for row in judged) / len(judged) if judged else None
        for name in ("balanced_accuracy", "f1")
    }
    status = dict(sorted(Counter(row.status for row in rows).items()))
    return {"units": len(rows), "status": status, **mean, **sum_spending(rows)}


def _request(own: DetectionSet, photos: Sequence[str | Picture], template: str) -> Request:
    count = len(own.positives) + len(own.contrasts) + len(own.others)
    parts = prompts.fill(template, {"photos": photos}, count=count, label=own.label)
    return Request(f"detect/{own.unit}", parts, FITS_SCHEMA, MAX_TOKENS)


def _outline(own: DetectionSet, look: Look, template: str) -> Request:
    return _request(own, look.outline(len(own.shuffled(0)), "photos"), template)


def _detection(own: DetectionSet, order: tuple[int, ...], reply: Reply) -> Detection:
    fires = tuple(image in own.positives for image in order)
    status, said, found, record = judge(reply, fires)
    return Detection(f"detect/{own.unit}", own.unit, own.label, status, order, fires, said, *found, reply.text, record)


def judge(
    reply: Reply, truth: Sequence[bool]
) -> tuple[str, tuple[int, ...] | None, tuple[float | None, float | None], dict[str, Any]]:
    """(status, numbers said, (balanced accuracy, F1), record) of an answer to which of the photos fit.

    A failed answer has no scores; one that can't be read counts as all wrong.
    """
    if reply.text is None:
        return "failed", None, (None, None), reply.record
    numbers = parse.numbers(reply.text, "fits", len(truth))
    if numbers is None:
        return "unparsed", None, (0.0, 0.0), reply.record | {"error": reply.unfinished}
    found = scores([place + 1 in numbers for place in range(len(truth))], truth)
    return "answered", tuple(numbers), found, reply.record


def scores(said: Sequence[bool], fires: Sequence[bool]) -> tuple[float, float]:
    """(balanced accuracy, F1) of what was said of photos against whether the unit fires on them; both sorts occur."""
    hits = sum(s and f for s, f in zip(said, fires, strict=True))
    quiet = sum(not s and not f for s, f in zip(said, fires, strict=True))
    balanced = (hits / sum(fires) + quiet / (len(fires) - sum(fires))) / 2
    return balanced, 2 * hits / (sum(fires) + sum(said))


def _detection_from(row: dict[str, Any]) -> Detection:
    values: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in row.items()}
    return Detection(**values)
