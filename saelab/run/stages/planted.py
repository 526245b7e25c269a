"""The planted basis: units whose meaning is known, drawn from what people wrote of a run's pictures."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Int
from torch import Tensor

from saelab import evaluate, metrics, truth
from saelab.artifacts import digest, ensure, read_json
from saelab.cache import ActivationCache
from saelab.images import ImageSet
from saelab.label import pipeline, propose
from saelab.label.planted import measure, plant
from saelab.label.vocabulary import Vocabulary, key
from saelab.run.basis import KINDS, Basis
from saelab.units import UnitActivations

CODE = 2  # version of this stage; part of every recipe
SEEN = 0.9  # AUROC of a concept's word from which an encoder sees the concept


def plant_units(
    vocabulary: Vocabulary, images: ImageSet, rule: str, store: ActivationCache, weights: str, root: Path
) -> Basis:
    """Planted units beside those of a layer. Their concepts are labels of the vocabulary; the layer has no say in them.

    `rule`: when a label is true of a picture (`saelab.truth.RULES`). `weights`: digest of the layer's host. Raises
    UserError where people wrote too little.
    """
    stated = truth.from_descriptions(vocabulary.labels, images.captions, images.classes, rule)
    first = {column: label for label, column in reversed(list(stated.column.items()))}
    names = [first.get(column, name) for column, name in enumerate(stated.names)]
    found = plant(names, stated.member, torch.as_tensor(images.ids("mine")))  # before the folder: it may refuse
    recipe = {"stage": "units", "code": CODE, "basis": "planted", "images": images.fingerprint, "truth": rule}
    recipe |= {"labels": digest(list(vocabulary.labels)), "layer": store.layer}

    def build(folder: Path) -> None:
        units = [{"kind": kind, "concepts": list(own)} for kind, own in zip(found.kinds, found.concepts)]
        info = {"pool": "none", "signed": "positive", "layer": store.layer, "host": "none", "planted": units}
        UnitActivations(found.acts, "planted", info).save(folder)

    made = ensure(root, "units", f"planted-{store.layer}", recipe, build)
    return Basis("planted", KINDS["planted"].group, "planted", 0, store.layer, made, weights, control=True)


def sentence(rows: list[dict[str, Any]]) -> str:
    """What the best labeller of planted units reaches, and what its labels reach when they are dealt out."""
    whole = [row for row in rows if row["kind"] == "all" and row["labeller"] not in ("final", "meanings")]
    best = max(whole, key=lambda row: row["recall"])
    seen = "" if best["recall_seen"] is None else f" ({best['recall_seen']:.0%} of those that the encoder sees)"
    return (
        f"Of {best['units']} planted units, whose concepts are known, {best['labeller']} names {best['recall']:.0%} of "
        f"the concepts{seen}, and {best['precision'] or 0:.0%} of the labels that it gives are right (dealt out among "
        f"the units: {best['dealt'] or 0:.0%})."
    )


def find_seen(
    names: Sequence[str], judge: truth.Similarity, stated: truth.Truth, ids: Int[Tensor, "images"]
) -> set[int]:
    """Concepts (columns of `stated`) that an encoder sees: no labeller that looks through it can name the others.

    A concept is seen where the word for it is nearer to the pictures that people called so than to others, with an
    AUROC of at least SEEN (.9), ties counting half. `names`: words of concepts. `judge`: the encoder. `ids`: pictures
    to ask it about; of a concept that holds on none or all of them nothing is known, and it is not seen.
    """
    ids = ids[judge.known[ids] & stated.known[ids]]
    found = set()
    for name in dict.fromkeys(names):
        column = stated.column[name]
        there = stated.member[ids, column]
        near = (judge.images[ids] @ judge.labels[judge.row[name]])[:, None]
        if 0 < int(there.sum()) < len(ids) and float(metrics.auroc(near[there], near[~there])) >= SEEN:
            found.add(column)
    return found


def measure_planted(basis: Basis, judges: evaluate.Judges, images: ImageSet) -> list[dict[str, Any]]:
    """The rows of `saelab.label.planted.measure` for a labelled planted basis; its proposer is a labeller too.

    What the encoder sees is asked on pictures that no unit was mined on.
    """
    assert basis.labels is not None and judges.truth is not None
    stated = judges.truth
    units = read_json(basis.units.path / "units.json")["info"]["planted"]
    columns = {key(label): column for label, column in stated.column.items()}
    said = {} if basis.proposals is None else {row.unit: row for row in propose.read(basis.proposals)}
    rows = [row | {"proposed": said.get(row["unit"])} for row in pipeline.read(basis.labels.path)]
    kinds, concepts = [u["kind"] for u in units], [u["concepts"] for u in units]
    others = torch.as_tensor(np.setdiff1d(images.ids(), images.ids("mine")))
    seen = find_seen([name for own in concepts for name in own], judges.judge, stated, others)
    return measure(rows, kinds, concepts, lambda name: columns.get(key(name)), seen)
