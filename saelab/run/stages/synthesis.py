"""The synthesis stage: pictures made to raise units, and what each of them is worth.

Pictures and rows go to <root>/synthesised/<basis>-<hash>/: unit-00012-0.png, unit-00012-0-where.png (how much the unit
depended on each pixel) and synthesised.jsonl, a line a picture. A picture depends on its unit and its number alone, so
which units are asked for is no part of the recipe: later calls add those that are missing. Labels are none either: what
rows say of a label is measured anew when the label is another one.
"""

import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

import torch

from saelab import artifacts, bars, settings
from saelab.errors import UserError
from saelab.label import selection
from saelab.label.exemplars import Exemplars
from saelab.run.basis import Basis
from saelab.run.stages.synthesis_pictures import PictureMaker, Viewers
from saelab.synthesise import SynthesisSettings
from saelab.synthesise.ascend import centre
from saelab.synthesise.summary import summarise_pictures

CODE = 2  # version of this stage; part of every recipe
WHERE = 2  # version of -where.png, which once showed the penalty and the diversity too; part of the recipes with them
ROWS, SUMMARY = "synthesised.jsonl", "synthesised.json"


@dataclass(frozen=True)
class SynthesisRequest:
    """Pictures of which units, and how."""

    units: str = "random:20"  # of each basis: all, ids such as 3,17,20-29, status:ok, top:20, random:20
    seconds: float | None = None  # stop after so many seconds a basis; the same call goes on later
    how: SynthesisSettings = field(default_factory=SynthesisSettings)

    def __post_init__(self) -> None:
        """Raise UserError for settings that can't be used."""
        if self.seconds is not None and self.seconds <= 0:
            raise UserError("seconds", self.seconds, "expected a number above 0, or null for no limit")


def read_request(given: Mapping[str, Any], over: SynthesisRequest | None = None) -> SynthesisRequest:
    """Settings by name, those of making among them; `over`: what is not given. UserError for one that is wrong."""
    over = over or SynthesisRequest()
    inner = {f.name for f in fields(SynthesisSettings)}
    how = settings.make(SynthesisSettings, asdict(over.how) | {k: v for k, v in given.items() if k in inner})
    outer = {"units": over.units, "seconds": over.seconds} | {k: v for k, v in given.items() if k not in inner}
    return settings.make(SynthesisRequest, outer, fixed={"how": how}, beside=sorted(inner))


def synthesise_basis(basis: Basis, viewers: Viewers, own: SynthesisRequest, root: Path) -> Path:
    """Make and measure pictures of the chosen units, as far as they are not there; the folder with rows and summary.

    `basis`: with exemplars; labels are used where there are any. Raises UserError for a transform that gradients can't
    pass, and for units that are not there.
    """
    assert basis.exemplars is not None
    chosen = choose_units(basis, own)
    if own.how.pool == "centre":
        centre(viewers.host, basis.layer, viewers.policy)
    viewers.host.transform.normalize(torch.zeros(1, 3, 1, 1))  # before the long work
    recipe = _recipe(basis, viewers, own.how)
    folder = artifacts.folder(root, "synthesised", basis.name, recipe)
    folder.parent.mkdir(parents=True, exist_ok=True)
    with artifacts.locked(folder.with_name(folder.name + ".lock")):
        folder.mkdir(exist_ok=True)
        artifacts.clear_temporary(folder)
        artifacts.write_json(folder / "recipe.json", recipe)
        rows = _read(folder)
        maker = PictureMaker(basis, viewers, own.how, root, folder)
        rows = _make([u for u in chosen if u not in {row["unit"] for row in rows}], maker, own.seconds, rows)
        rows = [maker.judge_again(row) for row in rows]
        artifacts.write_jsonl(folder / ROWS, rows)
        kept = [row for row in rows if row["unit"] in set(chosen)]
        facts: dict[str, Any] = {"basis": basis.name, "layer": basis.layer, "kind": basis.kind, "wanted": own.units}
        facts |= {"method": own.how.method, "left": len(set(chosen) - {row["unit"] for row in kept})}
        artifacts.write_json(folder / SUMMARY, facts | summarise_pictures(kept))
    return folder


def choose_units(basis: Basis, own: SynthesisRequest) -> list[int]:
    """The units that are asked for, in their order. Raises UserError for a budget in tokens or money."""
    assert basis.exemplars is not None
    found = Exemplars.load(basis.exemplars.path)
    strength = found.activations[:, 0].tolist()
    chosen, budget = selection.choose(
        own.units, len(found.status), status=found.status, strength=strength, seed=own.how.seed
    )
    if budget is not None:
        raise UserError("units", own.units, "tokens and money pay for answers, not for passes", "use seconds=N")
    return chosen


def chosen_pictures(folder: Path, chosen: Sequence[int]) -> list[dict[str, Any]]:
    """The rows of these units."""
    return [row for row in _read(folder) if row["unit"] in set(chosen)]


def _make(
    missing: Sequence[int], maker: PictureMaker, seconds: float | None, rows: list[dict[str, Any]]
) -> list[dict[str, Any]]:
    start = time.monotonic()
    with bars.show(total=len(missing), what=f"synthesise, {maker.basis.name}", unit="unit", leave=True) as bar:
        for unit in missing:
            if seconds is not None and time.monotonic() - start > seconds:
                break
            rows = sorted([*rows, *maker.make(unit)], key=lambda row: (row["unit"], row["number"]))
            artifacts.write_jsonl(maker.folder / ROWS, rows)
            bar.update()
    return rows


def _recipe(basis: Basis, viewers: Viewers, how: SynthesisSettings) -> dict[str, Any]:
    assert basis.exemplars is not None
    pulled = how.method == "accentuate" or (how.diversity > 0 and how.count > 1)  # by more than the unit
    held = {"natural": how.natural} if how.natural else {}
    return (
        ({"where": WHERE} if pulled else {})
        | held
        | {
            "stage": "synthesised",
            "code": CODE,
            "units": basis.units.digest,
            "exemplars": basis.exemplars.digest,
            "host": viewers.host.recipe,
            "policy": viewers.policy,
            "images": viewers.images.fingerprint,
            "encoder": viewers.encoder.recipe,
            "how": {name: value for name, value in asdict(how).items() if name != "natural"},
        }
    )


def _read(folder: Path) -> list[dict[str, Any]]:
    return artifacts.read_jsonl(folder / ROWS) if (folder / ROWS).is_file() else []
