"""The verification stage: a vision-language model looks again at the labels of one basis of a finished run."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from saelab import artifacts, tables, units, verify
from saelab.errors import UserError
from saelab.label import propose, selection
from saelab.label.assign import SCORERS
from saelab.label.proposal import Case, Estimate, HeatMap
from saelab.label.vlm.proposer import VLMProposer
from saelab.report import reading
from saelab.run.config import ProposerSettings
from saelab.verify.asking import restore_replies

CODE = 2  # version of this stage; part of every recipe
TESTS = ("detect", "second_look", "intruder", "fuzzing", "embedding")
FREE = ("embedding",)  # tests that ask nobody
STATUSES = ("answered", "none", "unparsed", "failed")
NUMBERS = ("balanced acc", "F1", "scorer's best", "accuracy", "AUROC")
HEAD = ("basis", "test", "units", *STATUSES, "not sent", *NUMBERS, "tokens", "cost")
Line = list[str]  # a line of the table


@dataclass(frozen=True)
class VerifySettings:
    """Which tests, of whose labels."""

    tests: tuple[str, ...] = ("detect", "second_look")
    labels_of: str = "final"  # whose labels `detect` tries: final, or a scorer's name
    per_side: int = 4  # `detect`: positives of a unit, and as many negatives; `fuzzing`: true and false frames
    candidates_of: str = "csp"  # `second_look`: the scorer whose best labels are the candidates
    candidates: int = 5  # at most so many
    photos: int = 5  # `intruder`: photos of a trial, one of them the intruder
    trials: int = 5  # `intruder`: trials of a unit, at most; more are added to those that are there

    def __post_init__(self) -> None:
        """Raise UserError for settings that can't be used."""
        for test in self.tests:
            if test not in TESTS:
                raise UserError("tests", test, "unknown", f"known: {', '.join(TESTS)}")
        for setting in ("labels_of", "candidates_of"):
            name = getattr(self, setting)
            if name not in (*SCORERS, "final"):
                raise UserError(setting, name, "unknown", f"known: final, {', '.join(sorted(SCORERS))}")
        if self.candidates < 2:
            raise UserError("candidates", self.candidates, "must be at least 2: one candidate is no choice")
        if not self.tests:
            raise UserError("tests", "[]", "at least one is needed", f"known: {', '.join(TESTS)}")


class Verification:
    """The tests of one basis of a finished run."""

    def __init__(
        self,
        settings: VerifySettings,
        asked: ProposerSettings,
        run: reading.Run,
        basis: reading.ReadBasis,
        proposer: VLMProposer | None,
    ) -> None:
        """proposer: whom the tests ask; None where only those in FREE are wanted."""
        self.settings, self.mode, self.run_path = settings, asked.mode, run.path
        self.images, self.basis, self._proposer = run.images, basis, proposer
        self.root, self.tests, self.seed = run.path.parent, settings.tests, asked.seed
        shown = {name: torch.from_numpy(array) for name, array in basis.exemplars.items()}
        self.exemplars = propose.ShownExemplars(shown["positives"], shown["contrasts"], shown["activations"])
        strength = self.exemplars.activations.mean(1).tolist()
        status = [row["status"] for row in basis.labels]
        chosen = selection.choose(asked.units, len(status), status=status, strength=strength, seed=self.seed)
        self.units, self.budget = chosen
        self.recipe: dict[str, Any] = {
            "stage": "verification",
            "code": CODE,
            "labels": artifacts.digest(basis.recipes["labels"]),
            "chat": proposer and proposer.chat.recipe,
            "look": proposer and proposer.look,
            "shown": proposer and proposer.shown,
            "mode": self.mode,
            "seed": self.seed,
            **{name: getattr(settings, name) for name in ("labels_of", "per_side", "candidates_of", "candidates")},
        }
        if settings.photos != VerifySettings.photos:
            self.recipe["photos"] = settings.photos
        who = proposer.name if proposer else asked.name
        self.folder = artifacts.folder(self.root, "verification", f"{basis.name}-{who}", self.recipe)

    @property
    def proposer(self) -> VLMProposer:
        """Whom the tests ask."""
        assert self._proposer is not None, "only the tests in FREE run without"
        return self._proposer

    def estimates(self) -> dict[str, Estimate]:
        """What each test would take; nothing is sent and nothing is written."""
        found = {}
        for test in self.tests:
            if test in FREE:
                found[test] = Estimate()
                continue
            chat, px = self.proposer.chat, self.proposer.look.part_px
            if test == "detect":
                found[test] = verify.detection_estimate(chat, self.sets(), part_px=px)
            elif test == "second_look":
                best = self.candidates()
                found[test] = verify.choice_estimate(chat, self.cases(best), best, look=self.proposer.look)
            elif test == "intruder":
                found[test] = verify.intruder_estimate(chat, self.trials(), part_px=px)
            else:
                found[test] = verify.fuzzing_estimate(chat, self.fuzzing_sets(), part_px=px)
        return found

    def run(self, budget: selection.Budget | None) -> tuple[list[Line], selection.Budget | None]:
        """Ask; the table's lines and what is left of the budget. Rows that are there are not asked again."""
        self.folder.parent.mkdir(parents=True, exist_ok=True)
        of = {"detect": self._detect, "second_look": self._second_look, "intruder": self._intruder}
        of |= {"fuzzing": self._fuzzing, "embedding": self._embedding}
        lines = []
        with artifacts.locked(self.folder.with_name(self.folder.name + ".lock")):  # two runs don't ask the same at once
            self.folder.mkdir(exist_ok=True)
            artifacts.write_json(self.folder / "recipe.json", self.recipe)
            for test in self.tests:
                line, records = of[test](budget)
                budget = budget and budget.less(restore_replies(records))
                lines.append([self.basis.name, test, *line])
        return lines, budget

    def _detect(self, budget: selection.Budget | None) -> tuple[Line, list[dict[str, Any]]]:
        sets, look = self.sets(), self.proposer.look
        rows = verify.detect(
            self.proposer.chat, sets, self.images, self.folder, seed=self.seed, part_px=look.part_px, budget=budget
        )
        found = verify.detection_summary(rows)
        return _line(found, len(sets), **_judged(found)), [row.record for row in rows]

    def _second_look(self, budget: selection.Budget | None) -> tuple[Line, list[dict[str, Any]]]:
        best = self.candidates()
        cases, look = self.cases(best), self.proposer.look
        rows = verify.second_look(
            self.proposer.chat, cases, best, self.folder, seed=self.seed, look=look, budget=budget
        )
        found = verify.choice_summary(rows)
        chosen = [row for row in rows if row.label is not None]
        agrees = sum(row.label == best[row.unit][0] for row in chosen) / len(chosen) if chosen else None
        return _line(found, len(cases), **{"scorer's best": tables.number(agrees)}), [row.record for row in rows]

    def _intruder(self, budget: selection.Budget | None) -> tuple[Line, list[dict[str, Any]]]:
        trials, px = self.trials(), self.proposer.look.part_px
        rows = verify.find_intruders(
            self.proposer.chat, trials, self.images, self.folder, seed=self.seed, part_px=px, budget=budget
        )
        found, own = verify.intruder_summary(rows), verify.intruder_accuracy(rows)
        line = _line(found, len({trial.unit for trial in trials}), accuracy=describe(own, found["encoder_accuracy"]))
        line[len(STATUSES) + 1] = str(len(trials) - len(rows))  # what isn't sent are trials, as are the statuses
        return line, [row.record for row in rows]

    def _fuzzing(self, budget: selection.Budget | None) -> tuple[Line, list[dict[str, Any]]]:
        sets, px = self.fuzzing_sets(), self.proposer.look.part_px
        rows = verify.find_regions(self.proposer.chat, sets, self.images, self.folder, part_px=px, budget=budget)
        found = verify.fuzzing_summary(rows)
        return _line(found, len(sets), **_judged(found)), [row.record for row in rows]

    def _embedding(self, budget: selection.Budget | None) -> tuple[Line, list[dict[str, Any]]]:
        """The scores of all units are written, the line tells of the chosen ones."""
        ids, loaded = (self.images.ids("mine"), self.images.ids("test")), units.UnitActivations.load(self.basis.units)
        acts = loaded.rows(ids[0]), loaded.rows(ids[1])
        rows = verify.embedding_scores(self.exemplars, self._embeddings(), acts, ids, range(len(self.basis.labels)))
        artifacts.write_jsonl(self.folder / "embedding.jsonl", [artifacts.plain(row) for row in rows])
        summary = {"recipe": self.recipe, "summary": verify.embedding_summary(rows)}
        artifacts.write_json(self.folder / "embedding.json", summary)
        found = verify.embedding_summary([rows[unit] for unit in self.units])
        counts = [str(found["units"]), *["-"] * (len(STATUSES) + 1)]
        auroc = f"{tables.number(found['auroc'])}, typical {tables.number(found['typical'])}"
        return counts + _numbers(AUROC=auroc) + ["-", "-"], []

    def trials(self) -> list[verify.Trial]:
        """The trials of each chosen unit that has enough exemplars, in the order in which units are sent."""
        settings = self.settings
        return verify.intruder_trials(
            self.exemplars, self._embeddings(), self.units, settings.trials, settings.photos, self.seed
        )

    def fuzzing_sets(self) -> list[verify.FuzzingSet]:
        """The framed photos of each chosen unit that has a label and heat maps, in the order of the choice."""
        ids = self.images.ids("show")
        acts = units.UnitActivations.load(self.basis.units).rows(ids)
        found = verify.fuzzing_sets(
            acts, ids, self._tried_labels(), self._heat_maps(), self.settings.per_side, self.seed
        )
        made = {own.unit: own for own in found}
        return [made[unit] for unit in self.units if unit in made]

    def sets(self) -> list[verify.DetectionSet]:
        """The photos of each chosen unit that has a label, in the order in which units are sent."""
        ids = self.images.ids("show")
        acts, labels = units.UnitActivations.load(self.basis.units).rows(ids), self._tried_labels()
        emb = self._embeddings()[torch.as_tensor(ids)]
        per_side, groups = self.settings.per_side, self.images.groups[ids]
        made = {own.unit: own for own in verify.detection_sets(acts, emb, ids, labels, per_side, groups, self.seed)}
        return [made[unit] for unit in self.units if unit in made]

    def candidates(self) -> dict[int, list[str]]:
        """The best labels, best first, of each chosen unit that has more than one."""
        best = {unit: self._best(unit, "candidates_of")[: self.settings.candidates] for unit in self.units}
        return {unit: labels for unit, labels in best.items() if len(labels) > 1}

    def cases(self, wanted: Sequence[int] | dict[int, list[str]]) -> list[Case]:
        """What a second look shows of these units; those that fire on no image are left out."""
        heat, mode, shown = self._heat(), self.mode, self.proposer.shown
        made = (propose.build_case(self.exemplars, self.images, unit, mode, self.seed, shown, heat) for unit in wanted)
        return [case for case in made if case.positives]

    def _tried_labels(self) -> dict[int, str]:
        """The label of each chosen unit that has one by the scorer `labels_of`."""
        return {unit: best[0] for unit in self.units if (best := self._best(unit, "labels_of"))}

    def _best(self, unit: int, setting: str) -> list[str]:
        """The labels of a unit by the scorer that the setting names, best first; none for a unit without a label."""
        row, name = self.basis.labels[unit], getattr(self.settings, setting)
        name = row["final"] if name == "final" else name
        if row["label"] is None:
            return []
        if name not in row["scores"]:
            known = dict.fromkeys(own for each in self.basis.labels for own in each["scores"])
            if name not in known:
                raise UserError(setting, name, "did not label this run", f"it has {', '.join(known)}")
            return []  # not this unit: it has no contrast, for example
        found = row["scores"][name]
        return [label for label in (found["label"], *(other for other, _ in found["runners_up"])) if label is not None]

    def _embeddings(self) -> Tensor:
        """The pictures in the space in which the labels were made."""
        from safetensors.torch import load_file

        folder = reading.find_made(self.run_path, "embeddings", self.basis.recipes["labels"]["encoder"])
        return load_file(str(folder / "embeddings.safetensors"))["images"]

    def _heat(self) -> HeatMap | None:
        """Where the units fire, if that is to be shown."""
        return None if self.proposer.look.tiles == "raw" else self._heat_maps()

    def _heat_maps(self) -> HeatMap:
        return reading.open_maps(self.run_path, self.basis)


def describe(found: verify.Accuracy | None, encoder: float | None) -> str:
    """An accuracy with its interval, chance and the encoder's own, in words."""
    if found is None:
        return "-"
    low, high = found.interval
    return f"{found.share:.3f} [{low:.3f}, {high:.3f}], chance {found.chance:.3f}, encoder {tables.number(encoder)}"


def _line(found: dict[str, Any], wanted: int, **numbers: str) -> Line:
    """From a summary: units wanted, statuses, units not sent, the numbers that the test has, what was spent."""
    status = [str(found["status"].get(name, 0)) for name in STATUSES]
    money = "unknown" if found["cost"] is None else f"${found['cost']:.4f}"
    counts = [str(wanted), *status, str(wanted - found["units"])]
    return counts + _numbers(**numbers) + [f"{found['prompt_tokens']} + {found['completion_tokens']}", money]


def _numbers(**numbers: str) -> list[str]:
    return [numbers.get(name, "-") for name in NUMBERS]


def _judged(found: dict[str, Any]) -> dict[str, str]:
    return {"balanced acc": tables.number(found["balanced_accuracy"]), "F1": tables.number(found["f1"])}
