"""The verification stage: a vision-language model looks again at the labels of one basis of a finished run."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from saelab import artifacts, cache, units, verify
from saelab.errors import UserError
from saelab.label import propose, selection
from saelab.label.assign import SCORERS
from saelab.label.proposal import Case, Estimate, HeatMap
from saelab.label.vlm.proposer import VLMProposer
from saelab.report import reading
from saelab.run.config import ProposerSettings
from saelab.verify.asking import restore_replies

CODE = 1  # version of this stage; part of every recipe
TESTS = ("detect", "second_look")
STATUSES = ("answered", "none", "unparsed", "failed")
NUMBERS = ("balanced acc", "F1", "scorer's best", "tokens", "cost")
HEAD = ("basis", "test", "units", *STATUSES, "not sent", *NUMBERS)


@dataclass(frozen=True)
class VerifySettings:
    """Which tests, of whose labels."""

    tests: tuple[str, ...] = TESTS
    labels_of: str = "final"  # whose labels `detect` tries: final, or a scorer's name
    per_side: int = 4  # `detect`: positives of a unit, and as many negatives
    candidates_of: str = "csp"  # `second_look`: the scorer whose best labels are the candidates
    candidates: int = 5  # at most so many

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


class Verification:
    """The tests of one basis of a finished run."""

    def __init__(
        self,
        settings: VerifySettings,
        asked: ProposerSettings,
        run: reading.Run,
        basis: reading.ReadBasis,
        proposer: VLMProposer,
    ) -> None:
        self.settings, self.mode, self.run_path = settings, asked.mode, run.path
        self.images, self.basis, self.proposer = run.images, basis, proposer
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
            "chat": proposer.chat.recipe,
            "look": proposer.look,
            "shown": proposer.shown,
            "mode": self.mode,
            "seed": self.seed,
            **{name: getattr(settings, name) for name in ("labels_of", "per_side", "candidates_of", "candidates")},
        }
        self.folder = artifacts.folder(self.root, "verification", f"{basis.name}-{proposer.name}", self.recipe)

    def estimates(self) -> dict[str, Estimate]:
        """What each test would take; nothing is sent and nothing is written."""
        chat, found = self.proposer.chat, {}
        if "detect" in self.tests:
            found["detect"] = verify.detection_estimate(chat, self.sets(), part_px=self.proposer.look.part_px)
        if "second_look" in self.tests:
            best = self.candidates()
            found["second_look"] = verify.choice_estimate(chat, self.cases(best), best, look=self.proposer.look)
        return found

    def run(self, budget: selection.Budget | None) -> tuple[list[list[str]], selection.Budget | None]:
        """Ask; the table's lines and what is left of the budget. Rows that are there are not asked again."""
        self.folder.parent.mkdir(parents=True, exist_ok=True)
        lines = []
        with artifacts.locked(self.folder.with_name(self.folder.name + ".lock")):  # two runs don't ask the same at once
            self.folder.mkdir(exist_ok=True)
            artifacts.write_json(self.folder / "recipe.json", self.recipe)
            for test in self.tests:
                line, records = self._detect(budget) if test == "detect" else self._second_look(budget)
                budget = budget and budget.less(restore_replies(records))
                lines.append([self.basis.name, test, *line])
        return lines, budget

    def _detect(self, budget: selection.Budget | None) -> tuple[list[str], list[dict[str, Any]]]:
        sets, look = self.sets(), self.proposer.look
        rows = verify.detect(
            self.proposer.chat, sets, self.images, self.folder, seed=self.seed, part_px=look.part_px, budget=budget
        )
        found = verify.detection_summary(rows)
        numbers = [_number(found["balanced_accuracy"]), _number(found["f1"]), "-"]
        return _counts(found, len(sets)) + numbers + _show_spending(found), [row.record for row in rows]

    def _second_look(self, budget: selection.Budget | None) -> tuple[list[str], list[dict[str, Any]]]:
        best = self.candidates()
        cases, look = self.cases(best), self.proposer.look
        rows = verify.second_look(
            self.proposer.chat, cases, best, self.folder, seed=self.seed, look=look, budget=budget
        )
        found = verify.choice_summary(rows)
        chosen = [row for row in rows if row.label is not None]
        agrees = sum(row.label == best[row.unit][0] for row in chosen) / len(chosen) if chosen else None
        numbers = ["-", "-", _number(agrees)]
        return _counts(found, len(cases)) + numbers + _show_spending(found), [row.record for row in rows]

    def sets(self) -> list[verify.DetectionSet]:
        """The photos of each chosen unit that has a label, in the order in which units are sent."""
        ids = self.images.ids("show")
        labels = {unit: best[0] for unit in self.units if (best := self._best(unit, "labels_of"))}
        acts = units.UnitActivations.load(self.basis.units).rows(ids)
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

        folder = self._find_made("embeddings", self.basis.recipes["labels"]["encoder"])
        return load_file(str(folder / "embeddings.safetensors"))["images"]

    def _heat(self) -> HeatMap | None:
        """Where the units fire, if that is to be shown."""
        if self.proposer.look.tiles == "raw":
            return None
        store = cache.open(self._find_made("activations", self.basis.recipes["units"]["cache"]))
        project = units.Projection.load(self.basis.units, self.basis.sae)
        return units.heat_maps(store, project, self.exemplars.activations[:, 0])

    def _find_made(self, stage: str, digest: str) -> Path:
        """The folder of an artifact of the run by its recipe's digest."""
        found = next((self.root / stage).glob(f"*-{digest[:10]}"), None)
        if found is None:
            raise UserError("run", self.run_path, f"its {stage} are not there any more", "run its stages again")
        return artifacts.open_artifact(found).path


def table(lines: Sequence[Sequence[str]]) -> str:
    """The lines under their heads, as text."""
    rows = [HEAD, *lines]
    widths = [max(len(row[i]) for row in rows) for i in range(len(HEAD))]
    aligned = [[c.ljust(w) if i < 2 else c.rjust(w) for i, (c, w) in enumerate(zip(r, widths))] for r in rows]
    return "\n".join("  ".join(row).rstrip() for row in aligned)


def _counts(found: dict[str, Any], wanted: int) -> list[str]:
    status = [str(found["status"].get(name, 0)) for name in STATUSES]
    return [str(wanted), *status, str(wanted - found["units"])]


def _show_spending(found: dict[str, Any]) -> list[str]:
    money = "unknown" if found["cost"] is None else f"${found['cost']:.4f}"
    return [f"{found['prompt_tokens']} + {found['completion_tokens']}", money]


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.3f}"
