"""The intruder test: of a few photos, which does not fire the unit? It needs no label (Paulo & Belrose, 2025)."""

import random
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import normalize

from saelab.errors import UserError
from saelab.label.proposal import Estimate, ShownExemplars
from saelab.label.selection import Budget, key_of
from saelab.label.vlm import parse, prompts
from saelab.label.vlm.chat import Chat, Picture, Reply, Request
from saelab.label.vlm.show import Look
from saelab.verify.asking import Question, ask, open_ledger, sum_spending

if TYPE_CHECKING:
    from saelab.images import ImageSet

PROMPT, MAX_TOKENS = "intruder", 50
INTRUDER_SCHEMA: dict[str, Any] = {
    "type": "object",
    "properties": {"intruder": {"type": "integer"}},
    "required": ["intruder"],
    "additionalProperties": False,
}


@dataclass(frozen=True)
class Trial:
    """A few photos of one unit, all but one of which fire it."""

    unit: int  # row number, as in the exemplars
    trial: int  # 0, 1, ... of this unit
    images: tuple[int, ...]  # image ids in the order shown
    intruder: int  # number of the photo that does not fire the unit, from 1
    odd: int  # number of the photo that is least like the others to the encoder: the floor that needs no model


@dataclass(frozen=True)
class Intrusion:
    """One line of intruder.jsonl."""

    name: str  # of the request; a file of recorded answers finds it by it
    unit: int  # row number, as in the exemplars
    trial: int  # 0, 1, ... of this unit
    status: str  # answered | none (no intruder named) | unparsed (both count as wrong) | failed (is asked again)
    images: tuple[int, ...]  # in the order shown; photo 1 is the first
    intruder: int  # number of the photo that does not fire the unit
    odd: int  # number of the photo that is least like the others to the encoder
    said: int | None  # number of the photo that the model named
    correct: bool | None  # None where it failed
    raw: str | None  # the answer, verbatim
    record: dict[str, Any]  # request, model, tokens, cost, attempts, seconds, error


@dataclass(frozen=True)
class Accuracy:
    """How often the intruder was found."""

    correct: int  # trials in which it was named
    trials: int  # answered or unparsed ones
    chance: float  # of blind choice, 1 / photos
    interval: tuple[float, float]  # exact 95 % binomial interval (Clopper & Pearson, 1934), trials taken as independent

    @property
    def share(self) -> float:
        """correct / trials, 0..1."""
        return self.correct / self.trials


def intruder_trials(
    exemplars: ShownExemplars,
    image_emb: Float[Tensor, "images d_text"],
    units: Sequence[int],
    trials: int = 5,
    photos: int = 5,
    seed: int = 0,
) -> list[Trial]:
    """At most `trials` trials of each unit, in the order of `units`, each of `photos` - 1 positives and one intruder.

    The intruder is the mined contrast of a positive and stands in its place: that positive, which it resembles, isn't
    shown, so that no pair of look-alikes gives it away. No two trials of a unit have the same intruder. Places are
    dealt out evenly: of each `photos` trials in a row, one has the intruder first, one second, and so on, so that a
    judge with a favourite place gets 1 / photos. A unit with fewer than `photos` positives or without contrasts is left
    out. A unit's trials depend neither on other units nor on how many trials there are.

    exemplars: of all units, ids of rows of image_emb. Raises UserError for fewer than 3 photos or no trial.
    """
    if photos < 3:
        raise UserError("photos", photos, "must be at least 3: of two, either may be the intruder")
    if trials < 1:
        raise UserError("trials", trials, "must be at least 1")
    emb = normalize(image_emb.float(), dim=1)
    return [made for unit in units for made in _trials_of(exemplars, emb, unit, trials, photos, seed)]


def find_intruders(
    chat: Chat,
    trials: Sequence[Trial],
    images: "ImageSet",
    folder: Path | str,
    *,
    seed: int = 0,
    part_px: int = 448,
    budget: Budget | None = None,
    progress: bool = True,
) -> list[Intrusion]:
    """Ask in each trial which photo does not belong; one request a trial.

    Rows go to `<folder>/intruder.jsonl` as they come; those that are there are not asked again, failed ones are. Trials
    that the budget holds back have no row. Raises UserError for a folder with rows of another recipe or other photos,
    and where every unit failed. Eight parameters: who is asked about what, where it is written, and four with defaults.
    """
    folder, template, look = Path(folder), prompts.load(PROMPT), Look(layout="parts", part_px=part_px)
    facts = {"seed": seed, "part_px": part_px, "max_tokens": MAX_TOKENS}
    ledger = open_ledger(chat, folder, "intruder", template, images.fingerprint, **facts)
    for own in trials:
        kept = ledger.kept.get(key_of(own))
        if kept and tuple(kept["images"]) != own.images:
            found = f"holds trial {own.trial} of unit {own.unit} with other photos"
            raise UserError("folder", folder, found, "give these a folder of their own")

    def request(own: Trial) -> Request:
        return _request(own, look.photos(images, own.images, f"unit-{own.unit:05d}-intruder-{own.trial}"), template)

    def outline(own: Trial) -> Request:
        return _outline(own, look, template)

    kept_rows = ask(chat, ledger, trials, Question(request, outline, _intrusion), budget, progress)
    ledger.close(intruder_summary([_intrusion_from(kept) for kept in ledger.rows()]))
    return [_intrusion_from(kept) for kept in kept_rows]


def intruder_estimate(chat: Chat, trials: Sequence[Trial], *, part_px: int = 448) -> Estimate:
    """What `find_intruders` would take; nothing is drawn or sent."""
    template, look = prompts.load(PROMPT), Look(layout="parts", part_px=part_px)
    return sum((chat.estimate(_outline(own, look, template)) for own in trials), Estimate())


def intruder_accuracy(rows: Sequence[Intrusion]) -> Accuracy | None:
    """How often the intruder was found in these trials, of one unit or of many; None where none was answered.

    Of several units the interval is too narrow where units differ: their trials are not independent.
    """
    from scipy.stats import binomtest

    judged = [row for row in rows if row.correct is not None]
    if not judged:
        return None
    correct = sum(bool(row.correct) for row in judged)
    chance = sum(1 / len(row.images) for row in judged) / len(judged)
    interval = binomtest(correct, len(judged)).proportion_ci(0.95, method="exact")
    return Accuracy(correct, len(judged), chance, (float(interval.low), float(interval.high)))


def intruder_summary(rows: Sequence[Intrusion]) -> dict[str, Any]:
    """Counts per status, accuracy over all trials with chance and interval, the encoder's own, and what was spent."""
    found, judged = intruder_accuracy(rows), [row for row in rows if row.correct is not None]
    numbers: dict[str, Any] = {"accuracy": None, "interval": None, "chance": None, "encoder_accuracy": None}
    if found is not None:
        odd = sum(row.odd == row.intruder for row in judged) / len(judged)
        numbers = {"accuracy": found.share, "interval": found.interval, "chance": found.chance, "encoder_accuracy": odd}
    status = dict(sorted(Counter(row.status for row in rows).items()))
    units = len({row.unit for row in rows})
    return {"units": units, "trials": len(rows), "status": status, **numbers, **sum_spending(rows)}


def _trials_of(exemplars: ShownExemplars, emb: Tensor, unit: int, trials: int, photos: int, seed: int) -> list[Trial]:
    ids, fires = exemplars.positives[unit].tolist(), (exemplars.activations[unit] > 0).tolist()
    contrasts = exemplars.contrasts[unit].tolist()
    shown = [place for place, (image, on) in enumerate(zip(ids, fires, strict=True)) if image >= 0 and on]
    if len(shown) < photos:
        return []
    draw, intruders = random.Random(f"{seed}/{unit}/intruder"), dict[int, int]()  # intruder -> place of its positive
    for place in draw.sample(shown, len(shown)):
        if contrasts[place] >= 0:
            intruders.setdefault(contrasts[place], place)
    made, places = [], list[int]()
    for trial, (intruder, paired) in enumerate(list(intruders.items())[:trials]):
        places = places or draw.sample(range(photos), photos)
        images = [ids[place] for place in draw.sample([p for p in shown if p != paired], photos - 1)]
        images.insert(at := places.pop(), intruder)
        made.append(Trial(unit, trial, tuple(images), at + 1, _least_alike(emb[images])))
    return made


def _least_alike(emb: Float[Tensor, "photos d_text"]) -> int:
    """Number, from 1, of the photo whose mean cosine to the others is lowest."""
    return int((emb @ emb.sum(0) - (emb * emb).sum(1)).argmin()) + 1


def _request(own: Trial, photos: Sequence[str | Picture], template: str) -> Request:
    parts = prompts.fill(template, {"photos": photos}, count=len(own.images))
    return Request(f"intruder/{own.unit}/{own.trial}", parts, INTRUDER_SCHEMA, MAX_TOKENS)


def _outline(own: Trial, look: Look, template: str) -> Request:
    return _request(own, look.outline(len(own.images), "photos"), template)


def _intrusion(own: Trial, reply: Reply) -> Intrusion:
    def row(status: str, said: int | None, correct: bool | None, **more: Any) -> Intrusion:
        name, shown = f"intruder/{own.unit}/{own.trial}", (own.images, own.intruder, own.odd)
        return Intrusion(name, own.unit, own.trial, status, *shown, said, correct, reply.text, reply.record | more)

    if reply.text is None:
        return row("failed", None, None)
    numbers = parse.numbers(reply.text, "intruder", len(own.images))
    if numbers is None or len(numbers) > 1:
        return row("unparsed", None, False, error=reply.unfinished)
    return row("answered", numbers[0], numbers[0] == own.intruder) if numbers else row("none", None, False)


def _intrusion_from(row: dict[str, Any]) -> Intrusion:
    return Intrusion(**row | {"images": tuple(row["images"])})
