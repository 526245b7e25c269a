"""The fuzzing test: is the label true of the region in which the unit fires, and not of another of the same photo?"""

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from jaxtyping import Float, Int
from PIL import Image, ImageDraw

from saelab.acts import Acts, dense, pick
from saelab.errors import UserError
from saelab.label import mine, sheets
from saelab.label.proposal import Estimate, HeatMap
from saelab.label.selection import Budget
from saelab.label.vlm import prompts
from saelab.label.vlm.chat import Chat, Picture, Reply, Request
from saelab.label.vlm.show import Look
from saelab.verify.asking import Question, ask, open_ledger
from saelab.verify.detection import FITS_SCHEMA, MAX_TOKENS, detection_summary, judge

if TYPE_CHECKING:
    from saelab.images import ImageSet

PROMPT = "fuzzing"
WHOLE = 1000  # boxes are in thousandths of the photo's width and height
STEPS = 11  # places tried along each side for a box elsewhere
RED, PAPER = (255, 0, 0), (255, 255, 255)

Box = tuple[int, int, int, int]  # left, top, right, bottom


@dataclass(frozen=True)
class FuzzingSet:
    """Photos that fire one unit, half of them framed where it fires and half elsewhere."""

    unit: int  # row number, as in the exemplars
    label: str  # what the model is asked to find
    images: tuple[int, ...]  # image ids in the order shown
    boxes: tuple[Box, ...]  # the frame of each, in thousandths of width and height
    fires: tuple[bool, ...]  # whether each frame is where the unit fires


@dataclass(frozen=True)
class Fuzzing:
    """One line of fuzzing.jsonl."""

    name: str  # of the request; a file of recorded answers finds them by it
    unit: int  # row number, as in the exemplars
    label: str  # what was asked for
    status: str  # answered | unparsed (counts as all wrong) | failed (counts as nothing, is asked again)
    images: tuple[int, ...]  # in the order shown; photo 1 is the first
    boxes: tuple[Box, ...]  # the frame of each
    fires: tuple[bool, ...]  # whether each frame is where the unit fires
    said: tuple[int, ...] | None  # numbers of the photos in whose frame the model found the label
    balanced_accuracy: float | None  # mean of the shares of true and of false frames that were judged right, 0..1
    f1: float | None  # 0..1
    raw: str | None  # the answer, verbatim
    record: dict[str, Any]  # request, model, tokens, cost, attempts, seconds, error


def fuzzing_sets(
    acts: Acts,
    ids: Int[np.ndarray, "show"],
    labels: Mapping[int, str],
    heat: HeatMap,
    per_side: int = 4,
    seed: int = 0,
) -> list[FuzzingSet]:
    """For each labelled unit up to 2 `per_side` of its strongest photos out of `ids`, half framed truly, half falsely.

    Row i of acts [show, units] (dense or sparse) belongs to image ids[i]: give those of the `show` split. A true frame
    is the smallest box around the points that reach half of the photo's largest heat. A false one is the true one of
    another of the photos, so that its place and size give nothing away, if it holds no such point here; else the true
    one moved to where it holds none. Which photos are framed truly is drawn by seed, as are false frames. Photos
    without heat or place for a false frame are passed over; a unit with fewer than two others is left out.
    """
    if per_side < 1:
        raise UserError("per_side", per_side, "must be at least 1")
    units = sorted(labels)
    own = dense(pick(acts, torch.tensor(units, dtype=torch.long))).float()
    top, _ = mine.positive_images(own, min(2 * per_side, len(ids)))
    sets = []
    for column, unit in enumerate(units):
        draw = random.Random(f"{seed}/{unit}/fuzzing")
        photos = [int(ids[place]) for place in top[column].tolist() if place >= 0]
        maps = {image: found for image in photos if (found := heat(unit, image)) is not None and found.max() > 0}
        framed = _frames(maps, draw)
        order = draw.sample(list(framed), len(framed) // 2 * 2)
        if order:
            truly = set(draw.sample(order, len(order) // 2))
            fires = tuple(image in truly for image in order)
            boxes = tuple(framed[image][0 if on else 1] for image, on in zip(order, fires, strict=True))
            sets.append(FuzzingSet(unit, labels[unit], tuple(order), boxes, fires))
    return sets


def find_regions(
    chat: Chat,
    sets: Sequence[FuzzingSet],
    images: "ImageSet",
    folder: Path | str,
    *,
    part_px: int = 448,
    budget: Budget | None = None,
    progress: bool = True,
) -> list[Fuzzing]:
    """Ask of each set in which photos the framed region shows the label; one request a unit.

    Rows go to `<folder>/fuzzing.jsonl` as they come; those that are there are not asked again, failed ones are. Units
    that the budget holds back have no row. Raises UserError for a folder with rows of another recipe, label or set, and
    where every unit failed.
    """
    folder, template, look = Path(folder), prompts.load(PROMPT), Look(layout="parts", part_px=part_px)
    facts = {"part_px": part_px, "max_tokens": MAX_TOKENS}
    ledger = open_ledger(chat, folder, "fuzzing", template, images.fingerprint, **facts)
    for own in sets:
        kept = ledger.kept.get(own.unit)
        asked = (own.label, own.images, own.boxes)
        if kept and (kept["label"], tuple(kept["images"]), tuple(map(tuple, kept["boxes"]))) != asked:
            found = f"holds unit {own.unit} with another label or other photos"
            raise UserError("folder", folder, found, "give these a folder of their own")

    def request(own: FuzzingSet) -> Request:
        shown = [frame(images.load(image), box) for image, box in zip(own.images, own.boxes, strict=True)]
        return _request(own, look.numbered(shown, f"unit-{own.unit:05d}-fuzzing"), template)

    def outline(own: FuzzingSet) -> Request:
        return _outline(own, look, template)

    kept_rows = ask(chat, ledger, sets, Question(request, outline, _row), budget, progress)
    ledger.close(fuzzing_summary([_row_from(kept) for kept in ledger.rows()]))
    return [_row_from(kept) for kept in kept_rows]


def fuzzing_estimate(chat: Chat, sets: Sequence[FuzzingSet], *, part_px: int = 448) -> Estimate:
    """What `find_regions` would take; nothing is drawn or sent."""
    template, look = prompts.load(PROMPT), Look(layout="parts", part_px=part_px)
    return sum((chat.estimate(_outline(own, look, template)) for own in sets), Estimate())


def fuzzing_summary(rows: Sequence[Fuzzing]) -> dict[str, Any]:
    """Counts per status, the means over all answered and unparsed units, and what was spent."""
    return detection_summary(rows)


def frame(image: Image.Image, box: Box) -> Image.Image:
    """The picture with a red frame, edged in white, around a box in thousandths of its width and height."""
    framed = image.convert("RGB").copy()
    sides = (framed.width, framed.height) * 2
    left, top, right, bottom = (round(at * side / WHOLE) for at, side in zip(box, sides, strict=True))
    line = max(2, min(framed.size) // 60)
    draw = ImageDraw.Draw(framed)
    draw.rectangle((left, top, right - 1, bottom - 1), outline=PAPER, width=2 * line)
    draw.rectangle((left, top, right - 1, bottom - 1), outline=RED, width=line)
    return framed


def _frames(maps: Mapping[int, np.ndarray], draw: random.Random) -> dict[int, tuple[Box, Box]]:
    """(true box, false box) of each photo that has both."""
    true = {image: sheets.hot_box(heat, (WHOLE, WHOLE)) for image, heat in maps.items()}
    found = {}
    for image, heat in maps.items():
        others = [box for other, box in true.items() if other != image and _is_cold(heat, box)]
        if cold := others or [box for box in _moved(true[image]) if _is_cold(heat, box)]:
            found[image] = true[image], draw.choice(cold)
    return found


def _moved(box: Box) -> list[Box]:
    """The box at places all over the photo."""
    width, height = box[2] - box[0], box[3] - box[1]
    lefts, tops = (np.linspace(0, WHOLE - side, STEPS).round().astype(int).tolist() for side in (width, height))
    return [(left, top, left + width, top + height) for left in lefts for top in tops]


def _is_cold(heat: Float[np.ndarray, "height width"], box: Box) -> bool:
    """Whether no point within the box, not even in part, reaches half of the largest heat."""
    rows, columns = np.nonzero(heat >= sheets.CROP_LEVEL * heat.max())
    across, down = (WHOLE / side for side in (heat.shape[1], heat.shape[0]))
    inside = (columns * across < box[2]) & ((columns + 1) * across > box[0])
    return not (inside & (rows * down < box[3]) & ((rows + 1) * down > box[1])).any()


def _request(own: FuzzingSet, photos: Sequence[str | Picture], template: str) -> Request:
    parts = prompts.fill(template, {"photos": photos}, count=len(own.images), label=own.label)
    return Request(f"fuzzing/{own.unit}", parts, FITS_SCHEMA, MAX_TOKENS)


def _outline(own: FuzzingSet, look: Look, template: str) -> Request:
    return _request(own, look.outline(len(own.images), "photos"), template)


def _row(own: FuzzingSet, reply: Reply) -> Fuzzing:
    status, said, found, record = judge(reply, own.fires)
    shown = own.images, own.boxes, own.fires
    return Fuzzing(f"fuzzing/{own.unit}", own.unit, own.label, status, *shown, said, *found, reply.text, record)


def _row_from(row: dict[str, Any]) -> Fuzzing:
    values: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in row.items()}
    return Fuzzing(**values | {"boxes": tuple(tuple(box) for box in row["boxes"])})
