"""The simulation stage: ablation scores of every labeller, and of controls, on the units of a basis.

Rows go to <root>/ablation_scores/<basis>-<hash>/ablation_scores.jsonl, a line a unit; later calls add units.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from saelab import artifacts, bars, effects, units
from saelab.effects.classes import outputs_of
from saelab.effects.simulate import Stand, Tried, score_unit
from saelab.effects.summary import Mean, mean_of
from saelab.evaluate import Judges
from saelab.evaluate.evaluate import shuffled
from saelab.label import pipeline
from saelab.label.scorers.linear import concept_activations
from saelab.run.basis import Basis
from saelab.run.stages.effects import CHECKPOINT, EffectsSettings, Seen, choose_units, make_head
from saelab.truth import Truth

CODE = 6  # version of this stage; part of every recipe
SCORED = 100  # test pictures that the loss is taken on, drawn by seed; as many for mining, with fit=optim
ROWS = "ablation_scores.jsonl"
DEALT = "dealt"  # a predictor beside the scorers: final labels dealt out
TRUTH = "truth"  # another: what people call the pictures, for units whose final label is one of their words
BEST = "best_truth"  # another: of all that people call the pictures, what follows the unit best while mining
AGAINST = (DEALT, TRUTH, BEST)  # that every labeller is held against on the same units
FEWEST = 5  # mining pictures of a class or word that may be a unit's best
LINEAR = "linear_explanations"
NOT_OF_TEXT = (TRUTH, BEST, LINEAR)  # whose predictions don't follow from a label's text alone


def measure_simulation(basis: Basis, seen: Seen, own: EffectsSettings, judges: Judges, root: Path) -> dict[str, Any]:
    """Score the chosen units of a labelled basis, as far as they are not there; a summary, and the `path` of rows."""
    assert basis.labels is not None
    rows = pipeline.read(basis.labels.path)
    recipe = {
        "stage": "ablation_scores",
        "code": CODE,
        "labels": basis.labels.digest,
        "units": basis.units.digest,
        "cache": seen.store.digest,
        "host": seen.host.recipe,
        "images": seen.images.fingerprint,
        "head": own.head,
        "judge": judges.judge.name,
        "truth": None if judges.truth is None else judges.truth.rule,
        "fit": own.fit,
        "scored": SCORED,
        "seed": own.measure.seed,
    }
    folder = artifacts.folder(root, "ablation_scores", basis.name, recipe)
    folder.parent.mkdir(parents=True, exist_ok=True)
    chosen = choose_units(basis, rows, own)
    with artifacts.locked(folder.with_name(folder.name + ".lock")):
        folder.mkdir(exist_ok=True)
        artifacts.write_json(folder / "recipe.json", recipe)
        path = folder / ROWS
        found = {row["unit"]: row for row in (artifacts.read_jsonl(path) if path.is_file() else [])}
        missing = [unit for unit in chosen if unit not in found]
        if missing:
            stand, acts = make_stand(basis, seen, own), units.UnitActivations.load(basis.units.path)
            predictors = Predictors(rows, judges, own.measure.seed, stand.mine)
            for first in bars.show(
                range(0, len(missing), CHECKPOINT), what=f"ablation scores, {basis.name}", leave=True
            ):
                for unit in missing[first : first + CHECKPOINT]:
                    found[unit] = predictors.score(unit, stand, acts.column(unit))
                artifacts.write_jsonl(path, [found[unit] for unit in sorted(found)])
    summary = summarise([found[unit] for unit in sorted(chosen)], [row["label"] for row in rows])
    return summary | {"path": str(path)}


def make_stand(basis: Basis, seen: Seen, own: EffectsSettings) -> Stand:
    """The pictures, the host and the basis that units are scored on."""
    head, mine = make_head(seen, own), np.asarray(seen.images.ids("mine"))
    test = _some(np.asarray(seen.images.ids("test")), own.measure.seed)
    classes = _classes(test, seen, head)
    tried = None
    if own.fit == "optim":
        some = _some(mine, own.measure.seed)
        tried = Tried(some, _classes(some, seen, head))
    project = units.Projection.load(basis.units.path, basis.sae_path)
    answers = effects.HostAnswers(seen.host, seen.store, seen.images, head)
    return Stand(answers, project, project.writes(seen.store.d_in), mine, test, classes, tried)


def _some(ids: Int[np.ndarray, "images"], seed: int) -> Int[np.ndarray, "some"]:
    """SCORED of the images, drawn by seed, or all."""
    return np.sort(np.random.default_rng(seed).choice(ids, SCORED, replace=False)) if len(ids) > SCORED else ids


def _classes(ids: Int[np.ndarray, "images"], seen: Seen, head: effects.Head) -> Int[np.ndarray, "images"]:
    """The output that each image belongs to; -1 where none has the name of its class."""
    unknown = np.full(len(ids), -1, np.int64)
    return outputs_of([seen.images.classes[i] for i in ids], head.outputs, unknown)[0]


class Predictors:
    """What each labeller predicts of each unit on every image."""

    def __init__(
        self, rows: Sequence[dict[str, Any]], judges: Judges, seed: int, mine: Int[np.ndarray, "mine"]
    ) -> None:
        self.rows, self.judges, self.mine = rows, judges, torch.as_tensor(mine)
        self.dealt = shuffled([row["label"] for row in rows], seed)

    def score(self, unit: int, stand: Stand, acts: Float[Tensor, "images"]) -> dict[str, Any]:
        """The unit's row: `score_unit`'s, with the `labels` that were scored; equal predictions are made once."""
        labels, values = self._of(unit, acts)
        keys = {name: f"{labels[name]} {name if name in NOT_OF_TEXT else ''}" for name in values}
        once = {same: values[name] for name, same in keys.items()}
        row = score_unit(unit, stand, acts, once)
        named = {
            part: {name: row[part][same] for name, same in keys.items()} for part in ("scores", "fits") if part in row
        }
        return row | {"labels": labels} | named

    def _of(
        self, unit: int, acts: Float[Tensor, "images"]
    ) -> tuple[dict[str, Any], dict[str, Float[Tensor, "images"]]]:
        """Labels by labeller, and what they predict: similarity of image and label, an explanation's sum, or truth."""
        row = self.rows[unit]
        labels = {name: entry.get("label") for name, entry in row["scores"].items()}
        labels |= {DEALT: self.dealt[unit]}
        values = {name: self._similarity(label) for name, label in labels.items() if label is not None}
        explained = row["scores"].get(LINEAR, {})
        if explained.get("labels"):
            values[LINEAR] = self._explained(explained)
        truth = self.judges.truth
        if truth is not None and row["label"] in truth.column:
            labels[TRUTH] = row["label"]
            values[TRUTH] = truth.member[:, truth.column[row["label"]]].double()
        best = None if truth is None else best_concept(truth, acts, self.mine)
        if truth is not None and best is not None:
            labels[BEST], values[BEST] = truth.names[best], truth.member[:, best].double()
        none = {BEST: None} if truth is not None and best is None else {}
        return {name: labels[name] for name in values} | none, values

    def _similarity(self, label: str) -> Float[Tensor, "images"]:
        judge = self.judges.judge
        return judge.images @ judge.labels[judge.row[label]]

    def _explained(self, found: Mapping[str, Any]) -> Float[Tensor, "images"]:
        parts = [weight * concept_activations(self._similarity(label)) for label, weight in found["labels"]]
        return torch.stack(parts).sum(0) + float(found["bias"])


def best_concept(truth: Truth, acts: Float[Tensor, "images"], mine: Int[Tensor, "mine"]) -> int | None:
    """The concept whose truth correlates most with the unit on described mining images.

    None where no concept has FEWEST images, and where none correlates above 0: then no word follows the unit. A
    labeller that sees what people wrote in place of an encoder's similarities: how well a label could do.
    """
    seen = mine[truth.known[mine]]
    member, own = truth.member[seen].double(), acts[seen].double()
    usable = (member.sum(0) >= FEWEST) & (member.sum(0) < len(seen))
    if not bool(usable.any()) or not float(own.std(correction=0)) > 0:
        return None
    apart = member - member.mean(0)
    r = (own - own.mean()) @ apart / apart.norm(dim=0).clamp(min=1e-12)
    best = int(torch.where(usable, r, -torch.inf).argmax())
    return best if float(r[best]) > 0 else None


def summarise(rows: Sequence[dict[str, Any]], labels: Sequence[str | None]) -> dict[str, Any]:
    """Mean ablation score by labeller, and above each of AGAINST on the same units (paired, with 95 % intervals).

    `labels`: of every unit; those of one label are a cluster. Scores below -1 count as -1: how far below the mean is no
    news, and one such unit would outweigh all others.
    """
    names = dict.fromkeys(name for row in rows for name in row["scores"])
    own = [labels[row["unit"]] for row in rows]
    columns = {name: np.array([bounded(row["scores"].get(name)) for row in rows]) for name in names}
    found: dict[str, Any] = {}
    for name, values in columns.items():
        gaps = {f"above_{other}": values - columns[other] for other in AGAINST if other in columns and other != name}
        found[name] = {"mean": _plain(mean_of(values, own))} | {key: _plain(mean_of(x, own)) for key, x in gaps.items()}
    independent = sum(all(score is None for score in row["scores"].values()) for row in rows)
    wordless = sum(BEST in labels_ and labels_[BEST] is None for labels_ in (row.get("labels", {}) for row in rows))
    return {"units": len(rows), "independent": independent, "wordless": wordless, "labellers": found}


def _plain(mean: Mean | None) -> dict[str, Any] | None:
    if mean is None:
        return None
    low, high = mean.interval() or (None, None)
    return {"mean": mean.mean, "se": mean.se, "low": low, "high": high, "units": mean.units}


def bounded(score: float | None) -> float:
    """A score as means take it: -1 at least; NaN where there is none."""
    return float("nan") if score is None else max(-1.0, score)
