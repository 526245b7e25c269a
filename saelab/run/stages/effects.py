"""The effects stage: what the units of a basis do to the host's outputs, and whether it is what their labels say.

Rows go to <root>/effects/<basis>-<hash>/effects.jsonl, a line a unit. A row depends on its own unit and on the basis'
labels alone, so which units are asked for is no part of the recipe: later calls add the units that are missing.
"""

import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from saelab import artifacts, bars, effects, settings, units
from saelab.acts import columns
from saelab.cache import ActivationCache
from saelab.effects import wordnet
from saelab.effects.amounts import usual_amounts
from saelab.effects.heads import HEADS
from saelab.effects.simulate import FITS
from saelab.effects.targets import RULES, Embed
from saelab.errors import UserError
from saelab.hosts import Host
from saelab.images import ImageSet
from saelab.label import pipeline, selection
from saelab.label.mine import top_images
from saelab.run.basis import Basis

CODE = 4  # version of this stage; part of every recipe
CHECKPOINT = 30  # units between two writings
ROWS, SUMMARY, TARGETS, GROUPS = "effects.jsonl", "effects.json", "targets.json", "groups.jsonl"


@dataclass(frozen=True)
class EffectsSettings:
    """Whose labels are held against what their units do, of which units, and how it is measured."""

    units: str = "random:100"  # which units of each basis: all, ids, status:ok, top:100, random:100
    labels_of: str = "final"  # whose labels: final, or a scorer's name
    head: str = "host"  # what gives outputs: host | probe (on the pictures' classes) | text (an image-text host)
    targets: tuple[str, ...] = RULES  # how a label finds the outputs that it means, in this order
    group: str | None = None  # label: also take out all units of one label together
    simulate: bool = False  # also whether what each scorer's label predicts of a unit does the unit's work
    fit: str = "norm"  # how a prediction is brought to the unit's scale: norm (least squares) | optim (by the loss)
    seconds: float | None = None  # stop after so many seconds a basis; the same call goes on later
    measure: effects.MeasureSettings = field(default_factory=effects.MeasureSettings)

    def __post_init__(self) -> None:
        """Raise UserError for settings that can't be used."""
        if self.head not in HEADS:
            raise UserError(
                "head", self.head, "unknown", f"{settings.nearest(self.head, HEADS)}known: {', '.join(HEADS)}"
            )
        for rule in self.targets:
            if rule not in RULES:
                raise UserError("targets", rule, "unknown", f"{settings.nearest(rule, RULES)}known: {', '.join(RULES)}")
        if self.group not in (None, "label"):
            near = settings.nearest(self.group, ["label"])
            raise UserError("group", self.group, "unknown", f"{near}known: label, or null for single units only")
        if self.fit not in FITS:
            raise UserError("fit", self.fit, "unknown", f"{settings.nearest(self.fit, FITS)}known: {', '.join(FITS)}")
        if self.seconds is not None and self.seconds <= 0:
            raise UserError("seconds", self.seconds, "expected a number above 0, or null for no limit")

    @property
    def facts(self) -> dict[str, Any]:
        """All settings but the budget, by the names that `read_effects` takes."""
        own, apart = asdict(self), ("measure", "group", "simulate", "fit", "seconds")
        return {name: value for name, value in own.items() if name not in apart} | own["measure"]


@dataclass(frozen=True)
class Seen:
    """The host that a basis belongs to, with what it saw."""

    host: Host
    store: ActivationCache
    images: ImageSet
    vectors: Callable[[], tuple[tuple[str, ...], Tensor]]  # labels and their vectors, for head=text
    embed: Embed  # sentences as vectors of length 1, for targets=text


def measure_basis(basis: Basis, seen: Seen, own: EffectsSettings, root: Path) -> Path:
    """Measure the chosen units of a labelled basis, as far as they are not there; the folder with rows and summary.

    Raises UserError for labels that the run lacks, a head that the host or the pictures don't allow, and a split
    without enough test pictures.
    """
    assert basis.labels is not None
    rows = pipeline.read(basis.labels.path)
    labels, beats = read_labels(rows, own.labels_of)
    recipe = _recipe(basis, seen, own)
    folder = artifacts.folder(root, "effects", basis.name, recipe)
    folder.parent.mkdir(parents=True, exist_ok=True)
    with artifacts.locked(folder.with_name(folder.name + ".lock")):  # two runs don't measure the same at once
        folder.mkdir(exist_ok=True)
        artifacts.write_json(folder / "recipe.json", recipe)
        found = {row["unit"]: row for row in _read(folder / ROWS)}
        chosen = choose_units(basis, rows, own)
        missing = [unit for unit in chosen if unit not in found]
        if missing or not (folder / TARGETS).is_file():
            ground = make_ground(basis, seen, own, labels)
            artifacts.write_json(folder / TARGETS, _named_targets(ground))
            _measure(missing, ground, basis, seen, own, found, folder)
        kept = _choose(found.values(), chosen)
        summary = effects.summarise(kept, [beats[row["unit"]] for row in kept], len(labels))
        facts = {"basis": basis.name, "layer": basis.layer, "kind": basis.kind, "control": basis.control}
        facts |= {"group": basis.group}
        asked = {"head": own.head, "labels_of": own.labels_of, "wanted": own.units, "left": len(chosen) - len(kept)}
        artifacts.write_json(folder / SUMMARY, facts | asked | {"dtype": str(seen.host.dtype)} | summary)
    return folder


def measure_label_groups(basis: Basis, seen: Seen, own: EffectsSettings, folder: Path) -> dict[str, Any]:
    """All units of one label taken out together, for labels of the chosen units; what `groups.jsonl` then sums up to.

    `folder`: that of the basis' effects, where rows are kept. `pictures`, `value` and `count` are as for single units.
    """
    assert basis.labels is not None
    rows = pipeline.read(basis.labels.path)
    labels, _ = read_labels(rows, own.labels_of)
    chosen = {labels[unit] for unit in choose_units(basis, rows, own)}
    with artifacts.locked(folder.with_name(folder.name + ".lock")):
        found = {row["label"]: row for row in _read(folder / GROUPS)}
        if chosen - found.keys():
            ground = make_ground(basis, seen, own, labels)
            wanted = {k: v for k, v in effects.groups_of(labels, ground.targets).items() if k in chosen - found.keys()}
            every = sorted(unit for units_ in wanted.values() for unit in units_)
            means, usual = usual_amounts(seen.store, ground.project, every, len(labels), own.measure.seed)
            ground = replace(ground, means=means, usual=usual)
            for label in bars.show(sorted(wanted), what=f"labels, {basis.name}", unit="label", leave=True):
                found[label] = effects.measure_group(label, wanted[label], ground, own.measure)
            artifacts.write_jsonl(folder / GROUPS, [found[label] for label in sorted(found)])
    return effects.summarise_groups([row for label, row in found.items() if label in chosen])


def chosen_rows(basis: Basis, own: EffectsSettings) -> list[dict[str, Any]]:
    """The rows of a measured basis that these settings ask for, with `causal_q` over all that were ever measured."""
    assert basis.labels is not None and basis.effects is not None
    return _choose(_read(basis.effects / ROWS), choose_units(basis, pipeline.read(basis.labels.path), own))


def _choose(rows: Iterable[dict[str, Any]], chosen: Iterable[int]) -> list[dict[str, Any]]:
    wanted, every = set(chosen), effects.add_corrected(sorted(rows, key=lambda row: row["unit"]))
    return [row for row in every if row["unit"] in wanted]


def read_effects(given: Mapping[str, Any], over: EffectsSettings | None = None) -> EffectsSettings:
    """Settings by name, those of measuring among them; `over`: what is not given. UserError for one that is wrong."""
    over = over or EffectsSettings()
    inner = {field.name for field in fields(effects.MeasureSettings)}
    how = settings.make(effects.MeasureSettings, asdict(over.measure) | {k: v for k, v in given.items() if k in inner})
    outer = {field.name: getattr(over, field.name) for field in fields(EffectsSettings)}
    own = {name: value for name, value in given.items() if name not in inner}
    if "targets" in own and isinstance(own["targets"], str):
        own["targets"] = [own["targets"]]
    return settings.make(EffectsSettings, outer | own | {"measure": how})


def table_line(found: Mapping[str, Any]) -> dict[str, Any]:
    """What a table shows of effects.json: one line a basis."""
    means = {name: entry and entry["mean"] for name, entry in found["mean"].items()}
    line = {"layer": found["layer"], "basis": found["basis"], "measured": found["measured"], "chosen": found["chosen"]}
    line |= {name: means[name] for name in ("causal_pct", "causal_chance", "causal_control", "causal_net")}
    line |= {"net_se": (found["mean"]["causal_net"] or {}).get("se"), "permuted": means["permuted_pct"]}
    line |= {name: means[name] for name in ("top1", "top10")}
    line |= {name: found[name] if found["measured"] else None for name in ("uses", "uses_corrected")}
    steered = found["steer_pct"].get("1")
    return line | {"steer": steered and steered["mean"], "push": means["push"], "screen_r": found["screen_r"]}


def choose_units(basis: Basis, rows: Sequence[dict[str, Any]], own: EffectsSettings) -> list[int]:
    """The units that are asked for, in the order in which they are measured."""
    acts = units.UnitActivations.load(basis.units.path)
    strength = top_images(columns(acts.acts), 1)[1][:, 0].nan_to_num().tolist()
    status = [row["status"] for row in rows]
    chosen, budget = selection.choose(own.units, len(rows), status=status, strength=strength, seed=own.measure.seed)
    if budget is not None:
        raise UserError("units", own.units, "tokens and money pay for answers, not for passes", "use seconds=N")
    return chosen


def read_labels(rows: Sequence[dict[str, Any]], whose: str) -> tuple[list[str | None], list[bool | None]]:
    """Every unit's label, abstained or not, and whether it beats its null (None without a label).

    Raises UserError for a scorer that labelled no unit.
    """
    if whose == "final":
        labels = [row["label"] for row in rows]
        return labels, [None if row["label"] is None else not row["abstained"] for row in rows]
    known = dict.fromkeys(name for row in rows for name in row["scores"])
    if whose not in known:
        near = settings.nearest(whose, list(known))
        raise UserError("labels_of", whose, "gave no labels", f"{near}known: final, {', '.join(known)}")
    given = [row["scores"].get(whose) or {"label": None} for row in rows]
    beats = [None if g["label"] is None else (g.get("null_percentile") or 0.0) > 0.95 for g in given]
    return [g["label"] for g in given], beats


def make_ground(basis: Basis, seen: Seen, own: EffectsSettings, labels: Sequence[str | None]) -> effects.Ground:
    """Everything that the units of a basis are measured on, without their usual amounts."""
    head = make_head(seen, own)
    answers = effects.HostAnswers(seen.host, seen.store, seen.images, head)
    embed = seen.embed if "text" in own.targets else None
    named = [label for label in labels if label is not None]
    project = units.Projection.load(basis.units.path, basis.sae_path)
    acts, test = units.UnitActivations.load(basis.units.path), seen.images.ids("test")
    nothing = torch.full((acts.units,), torch.nan)
    return effects.Ground(
        answers,
        project,
        project.writes(seen.store.d_in),
        columns(acts.rows(test)),
        np.asarray(test),
        labels,
        effects.find_targets(named, head.outputs, own.targets, embed),
        head.outputs.names,
        nothing,
        nothing,
        own.measure.seed,
    )


def make_head(seen: Seen, own: EffectsSettings) -> effects.Head:
    """The outputs that labels are held against."""
    raw = effects.HostAnswers(seen.host, seen.store, seen.images, lambda answer: answer.float())
    ids = {split: np.asarray(seen.images.ids(split)) for split in ("mine", "test")}
    if not len(ids["test"]):
        raise UserError("splits", "0 test images", "effects are measured on test images", "give more images")
    width = int(raw.logits(ids["test"][:1], raw.tokens(ids["test"][:1])[None]).shape[-1])
    if own.head == "text":
        return effects.text_head(*seen.vectors(), width)
    if own.head == "host":
        return effects.host_head(seen.host.model, width)

    def answers(some: np.ndarray) -> Tensor:
        parts = np.array_split(some, max(1, len(some) // 64))
        return torch.cat([raw.logits(part, raw.tokens(part)[None])[0] for part in parts])

    classes = [[seen.images.classes[i] for i in ids[split]] for split in ("mine", "test")]
    return effects.fit_probe(answers(ids["mine"]), classes[0], answers(ids["test"]), classes[1])


def _named_targets(ground: effects.Ground) -> dict[str, Any]:
    """What each label means: the outputs of the largest shares by name, for pages."""
    found = {}
    for label, (places, shares) in sorted(ground.targets.weights.items()):
        best = np.argsort(-shares, kind="stable")[: effects.causal.SHOWN]
        found[label] = [[ground.names[places[i]], float(shares[i])] for i in best]
    return {"outputs": len(ground.names), "labels": found}


def _measure(
    missing: Sequence[int],
    ground: effects.Ground,
    basis: Basis,
    seen: Seen,
    own: EffectsSettings,
    found: dict[int, dict[str, Any]],
    folder: Path,
) -> None:
    """Add the rows of the missing units, writing as it goes. Seven parameters: what is known, wanted and found."""
    start = time.monotonic()
    with bars.show(total=len(missing), what=f"effects, {basis.name}", unit="unit", leave=True) as bar:
        for first in range(0, len(missing), CHECKPOINT):
            if own.seconds is not None and time.monotonic() - start > own.seconds:
                return
            block = list(missing[first : first + CHECKPOINT])
            amounts = usual_amounts(seen.store, ground.project, block, len(ground.labels), own.measure.seed)
            here = replace(ground, means=amounts[0], usual=amounts[1])
            for unit in block:
                if own.seconds is not None and time.monotonic() - start > own.seconds:
                    break
                found[unit] = effects.measure(unit, here, own.measure)
                bar.update()
            artifacts.write_jsonl(folder / ROWS, [found[unit] for unit in sorted(found)])


def _recipe(basis: Basis, seen: Seen, own: EffectsSettings) -> dict[str, Any]:
    assert basis.labels is not None
    how = own.measure
    return {
        "stage": "effects",
        "code": CODE,
        "labels": basis.labels.digest,
        "units": basis.units.digest,
        "cache": seen.store.digest,
        "host": seen.host.recipe,
        "images": seen.images.fingerprint,
        "labels_of": own.labels_of,
        "head": own.head,
        "targets": list(own.targets),
        "wordnet": "hypernym" in own.targets and wordnet.folder() is not None,
        "measure": {"count": how.count, "pictures": how.pictures, "value": how.value, "seed": how.seed},
    }


def _read(path: Path) -> list[dict[str, Any]]:
    return artifacts.read_jsonl(path) if path.is_file() else []
