"""What proposers share: a unit's case, the proposal that answers it, what asking takes, and the records on disk."""

import dataclasses
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
from jaxtyping import Float, Int
from PIL.Image import Image as PILImage
from torch import Tensor

from saelab import artifacts
from saelab.errors import UserError
from saelab.label.vlm.completion import amount, count
from saelab.label.vlm.text import one_line
from saelab.settings import nearest

# The fields of a proposal that say what an answer took, not what was asked and answered.
TAKEN = ("request", "prompt_tokens", "completion_tokens", "cost", "cached", "attempts", "uncertain", "seconds", "error")

if TYPE_CHECKING:
    from saelab.images import ImageSet

LONGEST = 160  # characters of a reason in a sentence
MODES = ("positives", "contrast", "shuffled_contrast")
SYNTHESISED = ("none", "beside", "alone")  # are pictures made to raise a unit shown, beside its photos or instead?
HeatMap = Callable[[int, int], np.ndarray | None]  # (unit, image id) -> float [height, width] in 0..1, or None


class Bench(Protocol):
    """A basis at work: what its units do on pictures, and on photos of words."""

    @property
    def recipe(self) -> dict[str, Any]:
        """What its answers depend on beside the exemplars, as plain values."""
        ...

    def fire(self, unit: int, pictures: Sequence[PILImage]) -> Float[Tensor, "pictures"]:
        """The unit's activation on pictures that are in no set."""
        ...

    def described(self, unit: int, label: str) -> tuple[Float[Tensor, "photos"], Float[Tensor, "photos"]]:
        """Of held-out photos that people described so: the unit's activation, and mean cosine with its exemplars."""
        ...


@dataclass(frozen=True)
class ShownExemplars:
    """What proposers look at of the mined images (`saelab.label.exemplars`). Row u belongs to unit u."""

    positives: Int[Tensor, "units k"]  # image ids, strongest first; -1 = none
    contrasts: Int[Tensor, "units k"]  # the paired contrast of each positive; -1 = none
    activations: Float[Tensor, "units k"]  # of the positives: those that are not above 0 are not shown
    column: Callable[[int], Float[Tensor, "images"]] | None = None  # a unit's activation on every image, for agents
    bench: Bench | None = None  # for proposers that try units on pictures


@dataclass(frozen=True)
class MadePictures:
    """Pictures that were made to raise units (`saelab synthesise`)."""

    folder: Path  # its name says how they were made
    files: Mapping[int, tuple[str, ...]]  # unit -> its pictures

    def of(self, unit: int) -> tuple[Path, ...]:
        """The unit's pictures."""
        return tuple(self.folder / name for name in self.files.get(unit, ()))


@dataclass(frozen=True)
class Case:
    """One unit as it is put to a proposer."""

    unit: int  # row in the exemplars
    mode: str  # one of MODES
    positives: tuple[int, ...]  # image ids in the order shown (shuffled by seed)
    contrasts: tuple[int, ...]  # contrasts[i] goes with positives[i], -1 = none; empty in mode "positives"
    images: "ImageSet"  # to load the pictures from
    heat: HeatMap | None = None  # where the unit fires within an image, if the caller has such maps
    column: Callable[[], Float[Tensor, "images"]] | None = None  # its activation on every image, if the caller has it
    made: tuple[Path, ...] = ()  # pictures that were made to raise the unit
    bench: Bench | None = None  # its basis at work, if the caller has it


@dataclass(frozen=True)
class Proposal:
    """One line of proposals.jsonl: what was asked about a unit, what came back, what it cost. None = not known."""

    unit: int  # row in the exemplars
    labels: tuple[str, ...]  # the candidates, best first; empty unless status is "answered"
    status: str  # answered | none (nothing in common) | unparsed | failed | no_positives
    proposer: str  # name of the proposer
    mode: str  # one of MODES
    positives: tuple[int, ...]  # image ids in the order shown
    contrasts: tuple[int, ...]  # paired with the positives, -1 = none
    raw: str | None = None  # the answer, verbatim
    evidence: str | None = None  # what the model says it saw
    confidence: float | None = None  # 0..1, as the model states it
    prompt: str | None = None  # the text that was sent, with a marker where each picture stood
    sheets: tuple[str, ...] = ()  # the pictures that were sent, as files relative to the folder
    model: str | None = None  # as the server or the folder names it
    request: str | None = None  # digest of the request: equal digests are one request, paid once
    prompt_tokens: int | None = None  # as the backend counts them
    completion_tokens: int | None = None
    cost: float | None = None  # US dollars for this answer; None without a price or without token counts
    cached: bool = False  # the answer had been bought before, by another unit or an earlier run
    attempts: int = 0  # times that it was sent
    uncertain: int = 0  # attempts that ended without an answer and may have been charged all the same
    seconds: float | None = None  # from the first attempt to the answer
    error: str | None = None  # why it failed, or why the model stopped in the middle of an answer that is unparsed


@dataclass(frozen=True)
class Estimate:
    """What asking would take. Sums with +."""

    requests: int = 0  # number of requests; those that a cache holds count too
    prompt_tokens: int = 0  # text and pictures
    completion_tokens: int = 0  # at most: the limit that is sent along
    cost: float | None = 0.0  # US dollars; None = a price is missing

    def __add__(self, other: "Estimate") -> "Estimate":
        cost = None if self.cost is None or other.cost is None else self.cost + other.cost
        return Estimate(
            self.requests + other.requests,
            self.prompt_tokens + other.prompt_tokens,
            self.completion_tokens + other.completion_tokens,
            cost,
        )

    @property
    def tokens(self) -> int:
        """Prompt and completion together."""
        return self.prompt_tokens + self.completion_tokens

    def __str__(self) -> str:
        money = "cost unknown (no price is set)" if self.cost is None else f"at most ${self.cost:.4f}"
        return (
            f"{self.requests} requests, about {self.prompt_tokens} + at most {self.completion_tokens} tokens, {money}"
        )


class Proposer(Protocol):
    """Whatever turns a unit's images into candidate labels.

    One whose answers come at once and for free may say `instant = True`: they are then written many together.
    """

    name: str
    shown: int | None  # how many positives a unit is judged by; None = all that were mined
    recipe: dict[str, Any]  # all that its answers depend on, as plain values

    def propose(self, cases: Iterable[Case], folder: Path) -> Iterator[Proposal]:
        """A proposal for each case, in any order, as they come. Pictures that it sends are kept under `folder`.

        Takes cases no faster than it can work on them. A case that fails gives a proposal of status "failed"; a
        failure that every further case would share raises UserError.
        """
        ...

    def estimate(self, case: Case) -> Estimate:
        """What `propose` would take for this case; sends nothing."""
        ...


def check_synthesised(value: str) -> str:
    """One of SYNTHESISED. Raises UserError for another word."""
    if value not in SYNTHESISED:
        near = nearest(value, SYNTHESISED)
        raise UserError("proposer.synthesised", value, "unknown", f"{near}known: {', '.join(SYNTHESISED)}")
    return value


def summary(proposals: Sequence[Proposal], units: Sequence[int]) -> dict[str, Any]:
    """Counts per status, units without a row, tokens and money (each request counted once), and one line of text.

    The text gives the reason of the first unit that has no label for a reason.
    """
    counts = Counter(p.status for p in proposals)
    unsent = len(set(units) - {p.unit for p in proposals})
    requests = {p.request: p for p in proposals if p.request is not None and p.status != "failed"}.values()
    costs = [p.cost for p in requests]
    cost = None if any(c is None for c in costs) else float(sum(c for c in costs if c is not None))
    result: dict[str, Any] = {
        "units": len(set(units)),
        "status": dict(sorted(counts.items())),
        "unsent": unsent,
        "requests": len(requests),
        "prompt_tokens": sum(p.prompt_tokens or 0 for p in requests),
        "completion_tokens": sum(p.completion_tokens or 0 for p in requests),
        "cost": cost,
        "attempts": sum(p.attempts for p in proposals),
        "uncertain": sum(p.uncertain for p in proposals),
    }
    why = {p.status: f" (unit {p.unit}: {one_line(p.error, LONGEST)})" for p in reversed(proposals) if p.error}
    parts = [f"{n} {status}{why.get(status, '')}" for status, n in sorted(counts.items())]
    parts += [f"{unsent} not sent"] if unsent else []
    money = "cost unknown (no price is set)" if cost is None else f"${cost:.4f}"
    spent = f"; {result['prompt_tokens']} + {result['completion_tokens']} tokens, {money}" if requests else ""
    return {**result, "text": f"{result['units']} units: {', '.join(parts) or 'nothing asked'}{spent}"}


def read(folder: Path | str) -> list[Proposal]:
    """The proposals of a folder, in the order of its file (the last row of a unit counts). Missing: UserError."""
    rows = {row["unit"]: row for row in artifacts.read_jsonl(Path(folder) / "proposals.jsonl")}
    return [from_row(row) for row in rows.values()]


def answers_digest(folder: Path | str) -> str:
    """SHA-256 of what was asked and answered in a folder's proposals; equal answers give equal digests.

    What an answer took (seconds, attempts, tokens, money, whether it was cached) and the order of rows don't count.
    """
    rows = {row["unit"]: row for row in artifacts.read_jsonl(Path(folder) / "proposals.jsonl")}
    said = [{name: value for name, value in rows[unit].items() if name not in TAKEN} for unit in sorted(rows)]
    return artifacts.digest(said)


def from_row(row: dict[str, Any]) -> Proposal:
    """The proposal that a line of proposals.jsonl holds. Raises UserError for fields that it doesn't know."""
    known = {f.name for f in dataclasses.fields(Proposal)}
    if extra := set(row) - known:
        raise UserError("proposals.jsonl", ", ".join(sorted(extra)), "unknown fields", "delete the folder")
    values: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in row.items()}
    values |= {name: count(row.get(name)) for name in ("prompt_tokens", "completion_tokens")}
    return Proposal(**values | {"cost": amount(row.get("cost"))})
