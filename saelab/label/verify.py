"""Two checks by a vision-language model: does a label tell the unit's images apart, and which candidate fits best.

    show = images.ids("show")
    sets = detection_sets(units.rows(show), image_emb[show], show, {unit: label}, groups=images.groups[show])
    detections = detect(chat, sets, images, folder)          # folder/detection.jsonl, resumed by unit
    choices = second_look(chat, cases, {unit: candidates}, folder)   # folder/second_look.jsonl

`chat` comes from `propose.load_chat` or is a proposer's own (`proposer.chat`), `cases` from `propose.build_case`.
"""

import hashlib
import random
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor
from tqdm import tqdm

from saelab.errors import UserError
from saelab.label import mine
from saelab.label.ledger import Ledger
from saelab.label.proposal import Case
from saelab.label.vlm import parse, prompts
from saelab.label.vlm.chat import Chat, Reply, Request
from saelab.label.vlm.proposer import keep_pictures
from saelab.label.vlm.show import Look

if TYPE_CHECKING:
    from saelab.images import ImageSet

FITS_SCHEMA: dict[str, Any] = {
    "type": "object",
    "properties": {"fits": {"type": "array", "items": {"type": "integer"}}},
    "required": ["fits"],
    "additionalProperties": False,
}
CHOICE_SCHEMA: dict[str, Any] = {
    "type": "object",
    "properties": {"choice": {"type": "integer"}},
    "required": ["choice"],
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


@dataclass(frozen=True)
class Detection:
    """One line of detection.jsonl."""

    unit: int  # row number, as in the exemplars
    label: str  # what was asked for
    status: str  # answered | unparsed (counts as all wrong) | failed (counts as nothing, is asked again)
    images: tuple[int, ...]  # in the order shown; photo 1 is the first
    fires: tuple[bool, ...]  # whether each is a positive
    said: tuple[int, ...] | None  # numbers of the photos that the model found the label on
    balanced_accuracy: float | None  # mean of the shares of positives and of negatives told right, 0..1
    f1: float | None  # 0..1
    raw: str | None  # the answer, verbatim
    record: dict[str, Any]  # request, model, tokens, cost, attempts, seconds, error


@dataclass(frozen=True)
class Choice:
    """One line of second_look.jsonl."""

    unit: int  # row number, as in the exemplars
    status: str  # answered | none (no candidate fits) | unparsed | failed
    label: str | None  # the candidate chosen
    candidates: tuple[str, ...]  # in the order shown
    raw: str | None  # the answer, verbatim
    record: dict[str, Any]  # request, model, tokens, cost, attempts, seconds, error


def detection_sets(
    acts: Float[Tensor, "show units"],
    image_emb: Float[Tensor, "show d_text"],
    ids: Int[np.ndarray, "show"],
    labels: Mapping[int, str],
    per_side: int = 4,
    groups: Int[np.ndarray, "show"] | None = None,
    seed: int = 0,
) -> list[DetectionSet]:
    """For each labelled unit, `per_side` positives and as many negatives (half contrasts, half random) out of `ids`.

    Row i of acts (dense), image_emb and groups belongs to image ids[i]: give those of the `show` split, for labels were
    found on `mine`. Positives are the strongest of the images on which the unit fires; negatives lie below its mean;
    contrasts are mined as in `mine.contrast_images`, each used once. A unit that fires on fewer than `per_side` of the
    images gets that many of each; one that fires on none, or that has no negatives, is left out.
    """
    units = sorted(labels)
    if per_side < 2:
        raise UserError("detection.per_side", per_side, "must be at least 2")
    if len(ids) < 2 * per_side:
        raise UserError("detection.per_side", per_side, f"needs {2 * per_side} images, the split has {len(ids)}")
    own = acts[:, units].float()
    top, strength = mine.top_images(own, per_side)
    near = torch.as_tensor(groups) if groups is not None else None
    contrast, _ = mine.contrast_images(own, image_emb, top, reuse=False, groups=near)
    below = own < own.double().mean(0)
    sets = []
    for column, unit in enumerate(units):
        positives = top[column][strength[column] > 0].tolist()
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
    prompt: str = "detect",
    part_px: int = 448,
    max_tokens: int = 100,
    progress: bool = True,
) -> list[Detection]:
    """Ask of each set which of its photos, in an order shuffled by seed, show the label; one request a unit.

    Rows go to `<folder>/detection.jsonl` as they come; those that are there are not asked again, failed ones are.
    """
    template, look = prompts.load(prompt), Look(layout="parts", part_px=part_px)
    recipe = {"chat": chat.recipe, "seed": seed, "template": _sha(template), "part_px": part_px, "sets": _sets(sets)}
    ledger = Ledger(Path(folder), "detection", recipe | {"images": images.fingerprint, "max_tokens": max_tokens})
    shown: dict[str, tuple[DetectionSet, tuple[int, ...]]] = {}

    def requests() -> Iterator[Request]:
        for own in sets:
            if own.unit not in ledger.kept:
                order = [*own.positives, *own.contrasts, *own.others]
                random.Random(f"{seed}/{own.unit}").shuffle(order)
                photos = look.photos(images, order, f"unit-{own.unit:05d}-detection")
                parts = prompts.fill(template, {"photos": photos}, count=len(order), label=own.label)
                request = Request(f"detect/{own.unit}", parts, FITS_SCHEMA, max_tokens)
                keep_pictures(request, Path(folder))
                shown[request.name] = own, tuple(order)
                yield request

    with tqdm(total=len(sets), initial=len(ledger.kept), desc="detection", disable=not progress) as bar:
        for request, reply in chat.ask(requests()):
            ledger.add(_detection(*shown.pop(request.name), reply))
            bar.update()
    rows = [_detection_from(row) for row in ledger.rows()]
    ledger.close(detection_summary(rows))
    return rows


def detection_summary(rows: Sequence[Detection]) -> dict[str, Any]:
    """Counts per status and the means over all answered and unparsed units."""
    judged = [row for row in rows if row.balanced_accuracy is not None]
    mean = {
        name: sum(getattr(row, name) for row in judged) / len(judged) if judged else None
        for name in ("balanced_accuracy", "f1")
    }
    return {"units": len(rows), "status": dict(sorted(Counter(row.status for row in rows).items())), **mean}


def second_look(
    chat: Chat,
    cases: Sequence[Case],
    candidates: Mapping[int, Sequence[str]],
    folder: Path | str,
    *,
    seed: int = 0,
    prompt: str = "second_look",
    look: Look | None = None,
    max_tokens: int = 50,
    progress: bool = True,
) -> list[Choice]:
    """Let the model choose, for each case, among the unit's candidates (the top labels of a scorer, such as CSP).

    Candidates are shown in an order shuffled by seed, so that a liking for the first place favours none. Rows go to
    `<folder>/second_look.jsonl` as they come; those that are there are not asked again, failed ones are.
    """
    template, look = prompts.load(prompt), look or Look()
    recipe = {"chat": chat.recipe, "seed": seed, "template": _sha(template), "look": asdict(look)}
    recipe |= {"max_tokens": max_tokens, "images": cases[0].images.fingerprint if cases else None}
    recipe |= {"cases": _sha(repr([(c.unit, c.positives, c.contrasts, list(candidates[c.unit])) for c in cases]))}
    ledger = Ledger(Path(folder), "second_look", recipe)
    shown: dict[str, tuple[int, tuple[str, ...]]] = {}

    def requests() -> Iterator[Request]:
        for case in cases:
            if case.unit not in ledger.kept:
                look.check(case)
                order = list(candidates[case.unit])
                random.Random(f"{seed}/{case.unit}").shuffle(order)
                groups = {"positives": look.positives(case), "contrasts": look.contrasts(case)}
                listed = "\n".join(f"{number}. {name}" for number, name in enumerate(order, start=1))
                parts = prompts.fill(template, groups, candidates=listed, layout=look.layout, tiles=look.tiles)
                request = Request(f"choose/{case.unit}", parts, CHOICE_SCHEMA, max_tokens)
                keep_pictures(request, Path(folder))
                shown[request.name] = case.unit, tuple(order)
                yield request

    with tqdm(total=len(cases), initial=len(ledger.kept), desc="second look", disable=not progress) as bar:
        for request, reply in chat.ask(requests()):
            ledger.add(_choice(*shown.pop(request.name), reply))
            bar.update()
    rows = [Choice(**{**row, "candidates": tuple(row["candidates"])}) for row in ledger.rows()]
    ledger.close({"units": len(rows), "status": dict(sorted(Counter(row.status for row in rows).items()))})
    return rows


def _detection(own: DetectionSet, order: tuple[int, ...], reply: Reply) -> Detection:
    fires = tuple(image in own.positives for image in order)
    if reply.text is None:
        return Detection(own.unit, own.label, "failed", order, fires, None, None, None, None, reply.record)
    numbers = parse.numbers(reply.text, "fits", len(order))
    if numbers is None:
        return Detection(own.unit, own.label, "unparsed", order, fires, None, 0.0, 0.0, reply.text, reply.record)
    said = [place + 1 in numbers for place in range(len(order))]
    hits = sum(s and f for s, f in zip(said, fires, strict=True))
    quiet = sum(not s and not f for s, f in zip(said, fires, strict=True))
    balanced = (hits / sum(fires) + quiet / (len(fires) - sum(fires))) / 2
    f1 = 2 * hits / (sum(fires) + sum(said))
    return Detection(
        own.unit, own.label, "answered", order, fires, tuple(numbers), balanced, f1, reply.text, reply.record
    )


def _detection_from(row: dict[str, Any]) -> Detection:
    values: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in row.items()}
    return Detection(**values)


def _choice(unit: int, order: tuple[str, ...], reply: Reply) -> Choice:
    if reply.text is None:
        return Choice(unit, "failed", None, order, None, reply.record)
    numbers = parse.numbers(reply.text, "choice", len(order))
    if numbers is None or len(numbers) > 1:
        return Choice(unit, "unparsed", None, order, reply.text, reply.record)
    label = order[numbers[0] - 1] if numbers else None
    return Choice(unit, "answered" if label else "none", label, order, reply.text, reply.record)


def _sets(sets: Sequence[DetectionSet]) -> str:
    return _sha(repr([asdict(own) for own in sets]))


def _sha(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()
