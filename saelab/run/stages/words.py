"""Output words: what each unit adds to the host's outputs by what it writes, without a picture.

The vision twin of the logit lens, for layers that only a linear read-out follows. Rows go to
<root>/words/<basis>-<hash>/words.jsonl, a line a unit.
"""

from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from saelab import artifacts, effects, units
from saelab.artifacts import Artifact
from saelab.effects.attribute import check_linear, direct, read_out
from saelab.effects.causal import SHOWN
from saelab.label import pipeline
from saelab.run.basis import Basis
from saelab.run.stages.effects import EffectsSettings, Seen, make_head, read_labels

CODE = 1  # version of this stage; part of every recipe
WORDS = "words.jsonl"


def find_words(basis: Basis, seen: Seen, own: EffectsSettings, root: Path) -> Artifact:
    """The outputs that each unit of a labelled basis raises and lowers most: words.jsonl and words.json.

    A line: `{"unit", "label", "raised", "lowered": [[output, added by 1 of activation]], "pct": mid-rank percentile of
    the label's own outputs, "first": is one of them raised most? null where no output means it}`. Raises UserError
    where more than a linear read-out follows the layer.
    """
    assert basis.labels is not None
    labels, _ = read_labels(pipeline.read(basis.labels.path), own.labels_of)
    recipe = {"stage": "words", "code": CODE, "labels": basis.labels.digest, "units": basis.units.digest}
    recipe |= {"host": seen.host.recipe, "labels_of": own.labels_of, "head": own.head, "targets": list(own.targets)}

    head, test = make_head(seen, own), np.asarray(seen.images.ids("test"))
    answers = effects.HostAnswers(seen.host, seen.store, seen.images, head)
    check_linear(answers, test, basis.layer)

    def make(folder: Path) -> None:
        matrix = read_out(answers, test)
        writes = units.Projection.load(basis.units.path, basis.sae_path).writes(matrix.shape[1])
        named = [label for label in labels if label is not None]
        embed = seen.embed if "text" in own.targets else None
        targets = effects.find_targets(named, head.outputs, own.targets, embed)
        rows = word_rows(direct(writes, matrix), labels, targets, head.outputs.names)
        artifacts.write_jsonl(folder / WORDS, rows)
        artifacts.write_json(folder / "words.json", summarise(rows) | {"basis": basis.name, "layer": basis.layer})

    return artifacts.ensure(root, "words", basis.name, recipe, make)


def word_rows(
    table: Float[Tensor, "units outputs"],
    labels: list[str | None],
    targets: effects.Targets,
    names: tuple[str, ...],
) -> list[dict[str, Any]]:
    """A line a unit, of the table that `direct` gives."""
    ranks = effects.percentiles(table)
    order = torch.argsort(table, dim=1, stable=True)
    rows = []
    for unit, label in enumerate(labels):
        row: dict[str, Any] = {"unit": unit, "label": label, "pct": None, "first": None}
        if label is not None and label in targets:
            places, shares = targets.weights[label]
            row["pct"] = float(ranks[unit, places] @ torch.from_numpy(shares))
            row["first"] = int(order[unit, -1]) in places
        low, high = order[unit, :SHOWN].tolist(), order[unit, -SHOWN:].flip(0).tolist()
        for name, chosen in (("raised", high), ("lowered", low)):
            row[name] = [[names[i], float(table[unit, i])] for i in chosen]
        rows.append(row)
    return rows


def summarise(rows: list[dict[str, Any]]) -> dict[str, Any]:
    """How many units have a label that some output means, and where its outputs stand among all, on average."""
    known = [row for row in rows if row["pct"] is not None]
    mean = float(np.mean([row["pct"] for row in known])) if known else None
    return {"units": len(rows), "known": len(known), "pct": mean, "first": sum(row["first"] for row in known)}
