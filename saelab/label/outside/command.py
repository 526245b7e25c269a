"""The proposer that runs a program of yours: MILAN, MAIA, a script, anything that turns pictures into labels.

It reads a JSON line a unit from its standard input and writes one a unit to its standard output, or a file
(docs/proposals.md). It is run once for many units, and never again for a unit that it has answered.
"""

import json
import logging
import shutil
from collections.abc import Iterable, Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

from saelab.errors import UserError
from saelab.label import milan
from saelab.label.outside.answers import Answer, Unreadable, read_file, read_line
from saelab.label.outside.program import GRACE, Clock, Ended, digest_files, fill, hold, run_program, split_command
from saelab.label.proposal import Case, Estimate, Proposal
from saelab.label.rerank import WEIGHT, order_by_information
from saelab.label.vlm.chat import Picture
from saelab.label.vlm.show import Look
from saelab.units import HeatMaps

log = logging.getLogger("saelab")
EXEMPLARS, ANSWERS = "@exemplars", "@answers"  # words of a command that stand for a folder and a file
TOLD = 3  # unreadable lines of a run that are reported


class CommandProposer:
    """Runs `command` for up to `batch` units at a time.

    command: a command line, split as a shell would, without a shell. @exemplars in it becomes a folder in MILAN's
    layout; @answers the file that the program will write. Without @exemplars pictures are files named on its standard
    input. timeout: seconds that it may take from one unit's answer to the next, or to write @answers. weight: of the
    prior, where it answers with log-probabilities (`rerank`). shown: positives, the strongest (15 in MILAN). tiles,
    part_px: how those files look, as for a vision-language model.
    """

    name = "command"

    def __init__(
        self,
        command: str,
        timeout: float = 600.0,
        batch: int = 256,
        weight: float = WEIGHT,
        shown: int = 15,
        tiles: str = "raw",
        part_px: int = 448,
    ) -> None:
        self.words = split_command(command, (EXEMPLARS, ANSWERS))
        if not timeout > 0 or batch < 1 or shown < 1:
            setting, value = next(
                (name, value) for name, value in (("timeout", timeout), ("batch", batch), ("shown", shown)) if value < 1
            )
            raise UserError(f"proposer.{setting}", value, "expected a number of at least 1")
        order_by_information([], weight)
        self.printed = "output.txt"
        self.written = "answers.csv" if ANSWERS in self.words else None  # then what it prints is for people
        self.look = Look(layout="parts", tiles=tiles, part_px=part_px)
        self.command, self.timeout, self.batch, self.weight = command, timeout, batch, weight
        self.shown: int | None = shown
        self.recipe: dict[str, Any] = {"name": self.name, "command": command, "files": digest_files(self.words)}
        self.recipe |= {"weight": weight, "shown": shown, "tiles": tiles, "part_px": part_px}

    def estimate(self, case: Case) -> Estimate:
        """Nothing: what a program costs, it alone knows."""
        return Estimate()

    def propose(self, cases: Iterable[Case], folder: Path) -> Iterator[Proposal]:
        """A proposal for each case as the program answers; those that it leaves out fail.

        A case with a photo that can't be read any more fails alone, and the program is not asked about it.

        What it wrote is kept in `<folder>/command/`, a folder a run of it; answers that a killed run left there are
        taken from there. Raises UserError where it answers nothing at all, and where one of an earlier run is still
        at work.
        """
        place = folder / "command"
        with hold(place / "lock") as lock:
            found = self._left_behind(place)
            rest = iter(cases)
            while batch := list(islice(rest, self.batch)):
                todo = []
                for case in batch:
                    if case.unit in found:
                        yield self._proposal(case, found[case.unit])
                    else:
                        todo.append(case)
                todo, gone = self._readable(todo)
                for case, why in gone:
                    yield self._failed(case, why)
                if todo:
                    yield from self._ask(todo, _next_run(place), lock)

    def _left_behind(self, place: Path) -> dict[int, Answer]:
        """The first answer about each unit that earlier runs left."""
        found: dict[int, Answer] = {}
        for file in sorted(place.glob(f"run-*/{self.written or self.printed}")):
            for own in read_file(file, self.weight):
                if isinstance(own, Answer):
                    found.setdefault(own.unit, own)
        return found

    def _readable(self, cases: Sequence[Case]) -> tuple[list[Case], list[tuple[Case, str]]]:
        """The cases whose photos can all be read, and the others with the reason; each photo is tried once."""
        faults: dict[int, str | None] = {}
        found: list[Case] = []
        gone: list[tuple[Case, str]] = []
        for case in cases:
            contrasts = () if EXEMPLARS in self.words else case.contrasts
            own = [image for image in (*case.positives, *contrasts) if image >= 0]
            for image in own:
                if image not in faults:
                    faults[image] = _fault(case, image)
            why = next((faults[image] for image in own if faults[image]), None)
            if why is None:
                found.append(case)
            else:
                gone.append((case, f"was not asked: {why}"))
        return found, gone

    def _ask(self, cases: Sequence[Case], own: Path, lock: int) -> Iterator[Proposal]:
        """Run the program for these cases."""
        places = {EXEMPLARS: own.resolve() / "exemplars", ANSWERS: own.resolve() / "answers.csv"}
        words = fill(self.words, places)
        waiting, told = {case.unit: case for case in cases}, Told(self.command)
        self._write(cases, own)
        clock, why = Clock(self.timeout), "ended without an answer about this unit"
        try:
            for line in run_program(words, own / "cases.jsonl", own / self.printed, lock, clock):
                if self.written is None and line.strip():
                    for proposal in self._take(line, waiting, told):
                        clock.wind()
                        yield proposal
                    if not waiting and clock.seconds > GRACE:  # nothing to wait for but its end
                        clock.seconds = GRACE
                        clock.wind()
        except Ended as error:
            why = str(error)
        if self.written is not None:
            for answer in read_file(own / self.written, self.weight):
                yield from self._take(answer, waiting, told)
        shutil.rmtree(own / "exemplars", ignore_errors=True)
        told.close()
        for case in waiting.values():
            yield self._failed(case, why)
        if len(waiting) == len(cases):
            remedy = f"see {own / 'output.log'}; run again to go on, what was answered is kept"
            raise UserError("proposer.command", self.command, why.replace("this unit", "any unit"), remedy)

    def _take(self, given: "str | Answer | Unreadable", waiting: dict[int, Case], told: "Told") -> Iterator[Proposal]:
        """The proposal of a line, if it is an answer about a unit that waits for one."""
        try:
            answer = read_line(given, self.weight) if isinstance(given, str) else given
        except Unreadable as error:
            answer = error
        if isinstance(answer, Unreadable):
            told.unreadable(answer)
        elif answer.unit in waiting:
            told.units.add(answer.unit)
            yield self._proposal(waiting.pop(answer.unit), answer)
        else:
            told.unwanted(answer.unit)

    def _write(self, cases: Sequence[Case], own: Path) -> None:
        """What the program is given: `cases.jsonl`, a line a unit, and pictures or exemplars."""
        exemplars = EXEMPLARS in self.words
        own.mkdir(parents=True)
        if exemplars:
            _write_exemplars(cases, own / "exemplars")
        with (own / "cases.jsonl").open("w", encoding="utf-8") as file:
            for row, case in enumerate(cases):
                facts: dict[str, Any] = {"unit": case.unit, "mode": case.mode}
                facts |= {"row": row} if exemplars else self._pictures(case, own.parent.parent / "sheets")
                file.write(json.dumps(facts) + "\n")

    def _pictures(self, case: Case, sheets: Path) -> dict[str, list[str]]:
        self.look.check(case)
        sheets.mkdir(parents=True, exist_ok=True)
        groups = {"positives": self.look.positives(case), "contrasts": self.look.contrasts(case)}
        found: dict[str, list[str]] = {}
        for name, parts in groups.items():
            found[name] = []
            for picture in parts:
                if isinstance(picture, Picture):
                    file = sheets / f"{picture.name}.jpg"
                    file.write_bytes(picture.jpeg)
                    found[name].append(str(file.resolve()))
        return found

    def _proposal(self, case: Case, answer: Answer) -> Proposal:
        return Proposal(
            case.unit,
            answer.labels,
            "answered" if answer.labels else "none",
            self.name,
            case.mode,
            case.positives,
            case.contrasts,
            raw=answer.raw,
            evidence=answer.evidence,
            confidence=answer.confidence,
            attempts=1,
        )

    def _failed(self, case: Case, why: str) -> Proposal:
        shown = (case.mode, case.positives, case.contrasts)
        return Proposal(case.unit, (), "failed", self.name, *shown, attempts=1, error=f"the command {why}")


class Told:
    """What is odd about a run's answers, in a line each, however many there are."""

    def __init__(self, command: str) -> None:
        self.command, self.units = command, set[int]()
        self._bad, self._again, self._strange = 0, list[int](), list[int]()

    def unreadable(self, error: Unreadable) -> None:
        """A line that is no answer; the first few are shown."""
        self._bad += 1
        if self._bad <= TOLD:
            log.warning("a line of the command's answers %s: left out", error)

    def unwanted(self, unit: int) -> None:
        """An answer about a unit that was answered before, or wasn't asked about."""
        (self._again if unit in self.units else self._strange).append(unit)

    def close(self) -> None:
        """Say what there was, in a line each."""
        if self._bad > TOLD:
            log.warning("%d lines of the command's answers can't be read", self._bad)
        for units, what in (
            (self._again, "answered again: the first answer counts"),
            (self._strange, "not asked about"),
        ):
            if units:
                log.warning("unit %s: %s", ", ".join(map(str, sorted(set(units))[:10])), what)


def _write_exemplars(cases: Sequence[Case], folder: Path) -> None:
    maps = cases[0].heat
    if not isinstance(maps, HeatMaps):
        raise UserError("proposer.command", "@exemplars", "needs maps, which these units lack", "leave @exemplars out")
    chosen = []
    for case in cases:
        own = sorted(case.positives, key=lambda image: -_peak(maps, case.unit, image))
        chosen.append(milan.Strongest(case.unit, tuple(own), tuple(_peak(maps, case.unit, i) for i in own)))
    milan.write_exemplars(folder, chosen, cases[0].images, maps)


def _fault(case: Case, image: int) -> str | None:
    """Why a photo can't be read any more; None if it can."""
    try:
        case.images.load(image)
    except UserError as error:
        return str(error)
    return None


def _peak(maps: HeatMaps, unit: int, image: int) -> float:
    found = maps.activations(unit, image)
    return 0.0 if found is None else float(found.max())


def _next_run(place: Path) -> Path:
    taken = [int(path.name.removeprefix("run-")) for path in place.glob("run-*") if path.name[4:].isdigit()]
    return place / f"run-{max(taken, default=0) + 1:03}"
