"""Explaining one picture: what the host says it shows, which labelled units carry that, and where."""

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from saelab import artifacts, settings, units
from saelab.effects import Head
from saelab.effects.attribute import METHODS, check_method
from saelab.effects.classes import compare_to_class
from saelab.effects.explain import Explanation, OnePicture, explain, grid_of, look, top_outputs
from saelab.effects.pixels import find_causes
from saelab.errors import UserError
from saelab.files import folder_name
from saelab.hosts import Host
from saelab.images.decode import Unreadable, decode
from saelab.label import pipeline
from saelab.label.vocabulary import key
from saelab.report.why import crop_to_seen, write_explanation
from saelab.run.basis import Basis
from saelab.run.stages.classes import read_classes


@dataclass(frozen=True)
class ExplainSettings:
    """What is explained, and how much of it is shown."""

    output: str | None = None  # name of the output to explain; None: the host's first choice
    top: int = 10  # units shown of each basis
    head: str = "host"  # what gives outputs: host | probe | text, as of `saelab effects`
    method: str = METHODS[0]  # what screens units and says where: gradient_x_part | integrated_gradients | captum:NAME
    pixels: bool = False  # also which pixels make each unit fire

    def __post_init__(self) -> None:
        """Raise UserError for settings that can't be used."""
        check_method(self.method)
        settings.check(self, "", {"top": (1, float("inf"))})


@dataclass(frozen=True)
class Seeing:
    """The host that looks at the picture."""

    host: Host
    policy: str
    head: Callable[[Basis], Head]
    classes: Callable[[Basis], Path]  # the folder of a basis' class units
    call: Callable[[Basis], str]  # a basis in words, beside its layer
    square: bool = False  # are the run's pictures padded to squares?


def explain_picture(
    picture: str | Path, bases: Sequence[Basis], seeing: Seeing, own: ExplainSettings, root: Path
) -> Path:
    """The folder <root>/explain/<name>-<digest>/ with index.html and explanation.json.

    Raises UserError for a file that is no picture, a host without named outputs, and an output that it lacks.
    """
    path = Path(picture).expanduser()
    image = open_picture(path, seeing.square)
    head = seeing.head(bases[0])
    batch = seeing.host.load_images([image])
    found: dict[str, Any] = {"picture": _readable(path.name), "host": seeing.host.name, "head": head.how, "bases": []}
    found |= {"method": own.method}
    seen = look(seeing.host, [basis.layer for basis in bases], seeing.policy, batch, head)
    for basis in bases:
        answers = seen[basis.layer]
        if "predicted" not in found:
            logits = answers.before[0]
            output = find_output(own.output, head.outputs.names, logits)
            found |= {"predicted": top_outputs(logits, head.outputs.names), "output": head.outputs.names[output]}
        one = _explain_basis(basis, answers, output, own, seeing.classes(basis))
        found["bases"].append({"words": seeing.call(basis)} | one)
    folder = root / "explain" / f"{folder_name(path.stem)}-{_digest(path, own, bases)}"
    folder.mkdir(parents=True, exist_ok=True)
    artifacts.write_json(folder / "explanation.json", found)
    write_explanation(folder / "index.html", found, crop_to_seen(image, seeing.host.transform_spec))
    return folder


def open_picture(path: Path, square: bool = False) -> Image.Image:
    """The picture in a file, upright RGB. Raises UserError for one that is not there or no picture."""
    try:
        return decode(path, square)
    except (OSError, Unreadable) as error:
        raise UserError("image", path, f"is unreadable ({error})", "give a picture file") from None


def find_output(wanted: str | None, names: Sequence[str], logits: torch.Tensor) -> int:
    """Place of the output of that name; the highest without a name. Raises UserError for a name that no output has."""
    if wanted is None:
        return int(logits.argmax())
    same = [place for place, name in enumerate(names) if key(name) == key(wanted)]
    if not same:
        remedy = f"{settings.nearest(wanted, list(names))}leave it out to explain the host's first choice"
        raise UserError("output", wanted, f"is none of the host's {len(names)} outputs", remedy)
    return same[0]


def _explain_basis(
    basis: Basis, answers: OnePicture, output: int, own: ExplainSettings, classes: Path
) -> dict[str, Any]:
    assert basis.labels is not None
    rows = pipeline.read(basis.labels.path)
    project = units.Projection.load(basis.units.path, basis.sae_path)
    made = explain(answers, project, project.writes(answers.own.shape[-1]), output, own.top, own.method)
    grid = answers.host.choice(basis.layer, answers.policy).grid
    facts = {"name": basis.name, "layer": basis.layer, "kind": basis.kind, "firing": made.firing}
    facts |= {"whole": made.whole, "all_units": made.units, "first_order_sum": made.summed}
    shares = [
        {"unit": share.unit, "label": rows[share.unit]["label"], "abstained": rows[share.unit]["abstained"]}
        | {"effect": share.effect, "first_order": share.first_order, "where": grid_of(share.tokens, grid)}
        for share in made.shares
    ]
    if own.pixels:
        where = (answers.host, basis.layer, answers.policy, project)
        causes = find_causes(*where, [share.unit for share in made.shares], answers.batch).places()
        shares = [share | {"causes": places.tolist()} for share, places in zip(shares, causes)]
    facts |= {"class": _class_of(made, output, classes, grid, [row["label"] for row in rows])}
    return facts | {"units": shares, "where": grid_of(made.where, grid)}


def _class_of(
    made: Explanation, output: int, classes: Path, grid: tuple[int, int] | None, labels: Sequence[str | None]
) -> dict[str, Any]:
    """The units that usually carry the class, where they fire on the picture, and how typical it is of its class.

    `why`: None, or why there is nothing to say: no_pictures of the class among those for mining, no_place where tokens
    have no place in the picture, no_unit that raises the class. `below`: share of `compared` mining pictures, each held
    against its own class, that are less typical.
    """
    found, facts = read_classes(classes)
    usual = found.usual(output)
    own: dict[str, Any] = {"why": None, "pictures": found.pictures(output), "units": [], "typicality": None}
    if usual is None or grid is None:
        return own | {"why": "no_pictures" if usual is None else "no_place"}
    carried = compare_to_class(made.active, made.totals, usual, grid)
    if not carried.units:
        return own | {"why": "no_unit"}
    own["units"] = [
        {"unit": unit, "label": labels[unit], "share": share, "here": unit in carried.own_units}
        | {"where": grid_of(where, grid)}
        for unit, share, where in zip(carried.units, carried.shares, carried.shown)
    ]
    others = found.typicality[~np.isnan(found.typicality)]
    same = carried.typicality
    below = None if same is None or not len(others) else float((others < same).mean())
    maps = {"usual": grid_of(carried.usual, grid), "own": grid_of(carried.here, grid)}
    own |= {"typicality": same, "below": below, "compared": len(others), "by_class": facts["by_class"]}
    return own | {"own_units": carried.own_units, **maps}


def _readable(name: str) -> str:
    """A file's name as text that can be written, whatever bytes it is of."""
    return name.encode("utf-8", "replace").decode("utf-8")


def _digest(path: Path, own: ExplainSettings, bases: Sequence[Basis]) -> str:
    content = hashlib.sha256(path.read_bytes()).hexdigest()
    return artifacts.digest([content, own, [b.labels.digest for b in bases if b.labels is not None]])[:10]
