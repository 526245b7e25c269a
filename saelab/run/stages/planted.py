"""The planted basis: units whose meaning is known, drawn from what people wrote of a run's pictures."""

from pathlib import Path
from typing import Any

import torch

from saelab import truth
from saelab.artifacts import digest, ensure, read_json
from saelab.cache import ActivationCache
from saelab.images import ImageSet
from saelab.label import pipeline, propose
from saelab.label.planted import measure, plant
from saelab.label.vocabulary import Vocabulary, key
from saelab.run.basis import KINDS, Basis
from saelab.units import UnitActivations

CODE = 1  # version of this stage; part of every recipe


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
    return (
        f"Of {best['units']} planted units, whose concepts are known, {best['labeller']} names {best['recall']:.0%} of "
        f"the concepts, and {best['precision'] or 0:.0%} of the labels that it gives are right (dealt out among the "
        f"units: {best['dealt'] or 0:.0%})."
    )


def measure_planted(basis: Basis, stated: truth.Truth) -> list[dict[str, Any]]:
    """The rows of `saelab.label.planted.measure` for a labelled planted basis; its proposer is a labeller too."""
    assert basis.labels is not None
    units = read_json(basis.units.path / "units.json")["info"]["planted"]
    columns = {key(label): column for label, column in stated.column.items()}
    said = {} if basis.proposals is None else {row.unit: row for row in propose.read(basis.proposals)}
    rows = [row | {"proposed": said.get(row["unit"])} for row in pipeline.read(basis.labels.path)]
    kinds, concepts = [u["kind"] for u in units], [u["concepts"] for u in units]
    return measure(rows, kinds, concepts, lambda name: columns.get(key(name)))
