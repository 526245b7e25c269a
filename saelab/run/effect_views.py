"""What a pipeline shows of what units do: effects, classes, an explained picture, an edited concept."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from saelab.artifacts import Artifact, read_json, read_jsonl
from saelab.effects.classes import ClassUnits, carriers
from saelab.errors import UserError
from saelab.images import ImageSet
from saelab.run.basis import Basis
from saelab.run.stages.classes import read_classes
from saelab.run.stages.effects import ROWS, SUMMARY, EffectsSettings, read_effects, table_line
from saelab.run.stages.simulation import AGAINST
from saelab.run.stages.words import WORDS

if TYPE_CHECKING:
    from pandas import DataFrame


@dataclass(frozen=True)
class Effects:
    """What the units of one basis or several do to the host's outputs; measured when asked for."""

    bases: Sequence[Basis]  # labelled
    settings: EffectsSettings
    make: Callable[[Basis, EffectsSettings], Path]
    simulate: Callable[[Basis, EffectsSettings], dict[str, Any]]
    find_words: Callable[[Basis, EffectsSettings], Artifact]

    def measure(self, **changes: Any) -> "Effects":
        """The same with other settings: those of EffectsSettings (`units="all"`) and of MeasureSettings (`count=10`).

        Raises UserError for a setting that does not exist or can't be used.
        """
        return replace(self, settings=read_effects(changes, self.settings))

    def rows(self) -> list[dict[str, Any]]:
        """The lines of effects.jsonl, basis by basis, each with its `basis` and `layer`."""
        folders = [(basis, self.make(basis, self.settings)) for basis in self.bases]
        own = [(basis, row) for basis, folder in folders for row in read_jsonl(folder / ROWS)]
        return [row | {"basis": basis.name, "layer": basis.layer} for basis, row in own]

    def summaries(self) -> list[dict[str, Any]]:
        """effects.json of each basis."""
        return [read_json(self.make(basis, self.settings) / SUMMARY) for basis in self.bases]

    def table(self) -> "DataFrame":
        """A row a basis: how many units were measured, and the means of their numbers."""
        import pandas as pd

        return pd.DataFrame([table_line(found) for found in self.summaries()])

    def ablation_scores(self) -> "DataFrame":
        """Basis x labeller: does what its labels predict of units do their work?

        `above_dealt`, `above_truth`, `above_best_truth`: paired differences from labels dealt out, from people's
        word for the final label, and from the best of their words for the unit, with 95 % intervals and units.
        """
        import pandas as pd

        lines = []
        for basis in self.bases:
            for name, entry in self.simulate(basis, self.settings)["labellers"].items():
                line = {"layer": basis.layer, "basis": basis.name, "labeller": name}
                line |= {key: (entry["mean"] or {}).get(key) for key in ("mean", "se", "units")}
                for gap in (f"above_{other}" for other in AGAINST):
                    own = entry.get(gap) or {}
                    parts = ("se", "low", "high", "units")
                    line |= {gap: own.get("mean")} | {f"{gap}_{key}": own.get(key) for key in parts}
                lines.append(line)
        return pd.DataFrame(lines)

    def words(self) -> "DataFrame":
        """A row a unit: layer, basis, unit, label, outputs that it raises and lowers most, without a picture.

        `pct`: percentile of the label's own outputs among all. Bases of layers that more than a linear read-out follows
        are left out; raises UserError where that leaves none.
        """
        import pandas as pd

        lines = []
        refused: list[UserError] = []
        for basis in self.bases:
            try:
                found = self.find_words(basis, self.settings)
            except UserError as error:
                refused.append(error)
                continue
            for row in read_jsonl(found.path / WORDS):
                words = {side: ", ".join(name for name, _ in row[side]) for side in ("raised", "lowered")}
                line = {"layer": basis.layer, "basis": basis.name}
                lines.append(line | {k: row[k] for k in ("unit", "label", "pct")} | words)
        if refused and not lines:
            raise refused[0]
        return pd.DataFrame(lines)

    def _repr_html_(self) -> str:
        return str(self.table().to_html(index=False))


@dataclass(frozen=True)
class Explained:
    """Why a host says what it says of one picture."""

    folder: Path  # of index.html and explanation.json

    @property
    def page(self) -> Path:
        """The page to open in a browser; it needs nothing beside it."""
        return self.folder / "index.html"

    @property
    def facts(self) -> dict[str, Any]:
        """explanation.json: the host's first choices, the output explained, and each basis' units with their maps."""
        found: dict[str, Any] = read_json(self.folder / "explanation.json")
        return found

    def table(self) -> "DataFrame":
        """A row a unit: basis, layer, unit, label, effect, first_order; largest effect of each basis first."""
        import pandas as pd

        names = ("unit", "label", "abstained", "effect", "first_order")
        return pd.DataFrame(
            [
                {"basis": basis["name"], "layer": basis["layer"]} | {name: unit[name] for name in names}
                for basis in self.facts["bases"]
                for unit in basis["units"]
            ]
        )

    def _repr_html_(self) -> str:
        return str(self.table().to_html(index=False))


@dataclass(frozen=True)
class Classes:
    """What the host's classes are made of in one basis, as pictures for mining show it."""

    folder: Path  # of the basis' class_units artifact
    labels: Sequence[str | None]  # of every unit
    images: ImageSet

    @property
    def matrix(self) -> ClassUnits:
        """Class x unit: how much each unit raises each class; and how typical each picture is of its class."""
        return read_classes(self.folder)[0]

    def table(self, count: int = 5) -> "DataFrame":
        """The `count` units that carry each class, strongest first: class, pictures, unit, label, score, share."""
        import pandas as pd

        found, facts = read_classes(self.folder)
        lines = []
        for (name, pictures), scores in zip(facts["classes"], found.scores):
            for unit, share in zip(*carriers(scores, count)):
                own = {"unit": unit, "label": self.labels[unit], "score": float(scores[unit]), "share": float(share)}
                lines.append({"class": name, "pictures": pictures} | own)
        return pd.DataFrame(lines, columns=["class", "pictures", "unit", "label", "score", "share"])

    def pictures(self) -> "DataFrame":
        """Pictures for mining, the least typical of its class first: image, file, class, typicality."""
        import pandas as pd

        found, facts = read_classes(self.folder)
        name = dict(zip(found.outputs.tolist(), (entry[0] for entry in facts["classes"])))
        files = [self.images.files[i] for i in found.ids]
        table = {"image": found.ids, "file": files, "class": [name[c] for c in found.of.tolist()]}
        return pd.DataFrame(table | {"typicality": found.typicality}).sort_values("typicality", kind="stable")

    def _repr_html_(self) -> str:
        return str(self.table().to_html(max_rows=20, index=False))


@dataclass(frozen=True)
class EditedConcept:
    """What a classifier does on each group of pictures without the units named as a concept."""

    folder: Path  # of index.html and edit.json

    @property
    def page(self) -> Path:
        """The page to open in a browser; it needs nothing beside it."""
        return self.folder / "index.html"

    @property
    def facts(self) -> dict[str, Any]:
        """edit.json: the units taken out, accuracies by group, changes with intervals, and random sets."""
        found: dict[str, Any] = read_json(self.folder / "edit.json")
        return found

    def table(self) -> "DataFrame":
        """A row a group: class, group, pictures, accuracy before and after, and the mean of random sets."""
        import pandas as pd

        lines = [group | {"random": sum(group["random"]) / len(group["random"])} for group in self.facts["groups"]]
        return pd.DataFrame(lines)

    def _repr_html_(self) -> str:
        return str(self.table().to_html(index=False))
