"""The calls: what can be asked about a unit of a finished run, and what can be done to it."""

import base64
import binascii
from collections.abc import Sequence
from functools import lru_cache
from typing import Any

import numpy as np
import torch
from PIL import Image

from saelab import units
from saelab.errors import UserError
from saelab.images.decode import Unreadable, decode
from saelab.label import sheets
from saelab.label.strengths import Strengths
from saelab.label.tools import Answer, Argument, Tool
from saelab.label.vlm.chat import Picture
from saelab.report import what_it_does
from saelab.report.live.search import Models, Search
from saelab.report.live.what_if import STRONGEST, WhatIf, check_host, check_unit, find_basis
from saelab.report.reading import ReadBasis, Run

PICTURES = 16  # of a call at most
BASE64 = 44 * 2**20  # characters of a picture that is sent: 33 MB of it
SIDE = 448  # pixels of the longer side of a picture that is sent back
DIGITS = 4  # of a heat map's numbers

UNIT = {
    "basis": Argument("string", "name of a set of units, as `bases` lists it"),
    "unit": Argument("integer", "its number in the basis"),
}
COUNT = Argument("integer", "how many, strongest first", default=9, low=1, high=PICTURES)
SHOW = Argument("boolean", "whether the pictures come along, as JPEG", default=True)
IMAGES = Argument("integer", "numbers of images of the run", most=PICTURES, optional=True)
SENT = Argument("string", "picture files of your own, in base64", most=PICTURES, longest=BASE64, optional=True)


def tools(run: Run, models: Models) -> list[Tool]:
    """Every call on the units of a run. The models are loaded by the first call that needs them."""
    calls = Calls(run, models)
    one = {"image": Argument("integer", "number of an image of the run", optional=True)}
    one |= {"picture": Argument("string", "or a picture file of your own, in base64", longest=BASE64, optional=True)}
    strength = Argument("number", "times what the unit has there; 1 changes nothing", low=0, high=STRONGEST)
    return [
        Tool("bases", "The run and its sets of units: neurons, SAE features, controls.", {}, calls.bases),
        Tool(
            "exemplars",
            "The images for mining that fire a unit most.",
            UNIT | {"count": COUNT, "show": SHOW},
            calls.exemplars,
        ),
        Tool(
            "contrasts",
            "Images that resemble a unit's exemplars and do not fire it.",
            UNIT | {"count": COUNT, "show": SHOW},
            calls.contrasts,
        ),
        Tool(
            "labels",
            "A unit's label, how far it can be trusted, what other scorers say, and how it held on test images.",
            UNIT,
            calls.labels,
        ),
        Tool("effects", "What a unit does to the model's outputs, as far as it was measured.", UNIT, calls.effects),
        Tool(
            "activate",
            "How strongly pictures fire a unit, and where. Each picture goes through the model.",
            UNIT | {"images": IMAGES, "pictures": SENT},
            calls.activate,
        ),
        Tool("ablate", "The model's outputs for a picture, with a unit and without it.", UNIT | one, calls.ablate),
        Tool(
            "steer",
            "The model's outputs for a picture, as things are and with a unit made weaker or stronger.",
            UNIT | one | {"strength": strength},
            calls.steer,
        ),
    ]


class Calls:
    """The calls of one run; the models take one at a time."""

    def __init__(self, run: Run, models: Models) -> None:
        self.run, self.models = run, models
        self.changes = WhatIf(Search(run, models))
        self._project = lru_cache(maxsize=None)(units.Projection.load)
        self._mine = run.images.ids("mine")

    def bases(self) -> Answer:
        """The run's sets of units."""
        found = [
            {"basis": b.name, "kind": b.kind, "layer": b.layer, "units": len(b.labels), "control": b.control}
            for b in self.run.bases
        ]
        return Answer({"run": self.run.facts["name"], "images": len(self.run.images), "bases": found})

    def exemplars(self, basis: str, unit: int, count: int, show: bool) -> Answer:
        """Positives, strongest first: image, file, activation, share, percentile."""
        own, strengths = self._unit(basis, unit)
        ids = [i for i in own.exemplars["positives"][unit].tolist() if i >= 0][:count]
        rows = [strengths.of(i) | {"file": self.run.images.files[i]} for i in ids]
        return Answer({"exemplars": rows}, self._show(ids) if show else ())

    def contrasts(self, basis: str, unit: int, count: int, show: bool) -> Answer:
        """Contrasts in the order of the positives that they resemble."""
        own, strengths = self._unit(basis, unit)
        columns = (own.exemplars[name][unit].tolist() for name in ("positives", "contrasts", "similarity"))
        pairs = [(p, c, s) for p, c, s in zip(*columns, strict=True) if c >= 0][:count]
        rows = [
            strengths.of(c) | {"file": self.run.images.files[c], "resembles": p, "similarity": _number(s)}
            for p, c, s in pairs
        ]
        return Answer({"contrasts": rows}, self._show([c for _, c, _ in pairs]) if show else ())

    def labels(self, basis: str, unit: int) -> Answer:
        """The unit's line of labels.jsonl without its images, with the numbers of evaluation.jsonl under `held_out`."""
        own, _ = self._unit(basis, unit)
        row = {k: v for k, v in own.labels[unit].items() if k not in ("positives", "contrasts")}
        return Answer(_finite(row | {"held_out": own.evaluation[unit].get("final")}))

    def effects(self, basis: str, unit: int) -> Answer:
        """What the unit's page shows of its effects. Raises UserError where they were not measured."""
        own, _ = self._unit(basis, unit)
        (found,) = what_it_does.of_units(own.effects, [own.labels[unit]])
        if found is None:
            what = "its effects were not measured, or it fires on too few test pictures"
            remedy = f"saelab effects run={self.run.path} measures them"
            raise UserError("unit", f"{own.name} {unit}", what, remedy)
        return Answer(_finite(found))

    def activate(self, basis: str, unit: int, images: list[int] | None, pictures: list[str] | None) -> Answer:
        """For each picture activation, share, percentile, and `map` [height][width], or null without a grid."""
        own, strengths = self._unit(basis, unit)
        project = self._projection(own)
        loaded = [(i, self._image(i)) for i in images or ()] + [(None, read_picture(p, self)) for p in pictures or ()]
        if not loaded:
            raise UserError("images", "null", "there is no picture to look at", "give images or pictures")
        with self.changes.search.turn, torch.inference_mode():
            host, policy = self.changes.search.host(), self.models.policy
            batch = host.load_images([picture for _, picture in loaded])
            tokens = host.tokens(batch, [own.layer], policy)[own.layer].float().cpu()
            grid = host.choice(own.layer, policy).grid
            each = project(tokens.flatten(0, 1))[:, unit].unflatten(0, tokens.shape[:2])
            pooled = units.pool_units(project, tokens, self.models.pool)[:, unit]
        rows = []
        for (image, _), value, own_map in zip(loaded, pooled.tolist(), each, strict=True):
            heat = None if grid is None else own_map[-grid[0] * grid[1] :].reshape(grid).double().numpy()
            known = {} if image is None else {"image": image}
            rows.append(known | strengths.rate(value) | {"map": None if heat is None else heat.round(DIGITS).tolist()})
        return Answer({"activations": rows})

    def ablate(self, basis: str, unit: int, image: int | None, picture: str | None) -> Answer:
        """Outputs before and after; `silent`: the unit does not fire on the picture, so nothing changes."""
        return self.steer(basis, unit, image, picture, 0.0)

    def steer(self, basis: str, unit: int, image: int | None, picture: str | None, strength: float) -> Answer:
        """Outputs before and after. A silent unit is added everywhere, `strength` times what it usually has."""
        own, _ = self._unit(basis, unit)
        self._projection(own)
        if (image is None) == (picture is None):
            raise UserError("image", image, "expected one picture", "give either image or picture")
        shown = self._image(image) if image is not None else read_picture(str(picture), self)
        found = self.changes.change(shown, own, unit, float(strength))
        rows = [{"output": name, "before": before, "after": after} for name, before, after in found["outputs"]]
        return Answer(_finite({"outputs": rows, "silent": found["silent"]}))

    # ---- parts -------------------------------------------------------------------------------------------------

    @property
    def square(self) -> bool:
        """Whether the run's pictures are padded to a square."""
        return self.run.images.square

    def _unit(self, basis: str, unit: int) -> tuple[ReadBasis, Strengths]:
        own = find_basis(self.run, basis)
        column = own.acts[:, [check_unit(own, unit)]].toarray().ravel()
        return own, Strengths(column, self._mine)

    def _projection(self, own: ReadBasis) -> units.Projection:
        """Raises UserError for units that no layer's tokens give, or only those of another host."""
        check_host(own)
        return self._project(own.units, own.sae)

    def _image(self, image: int) -> Image.Image:
        if image >= len(self.run.images):
            raise UserError("image", image, "is no image of this run", f"use 0 to {len(self.run.images) - 1}")
        return self.run.images.load(image)

    def _show(self, ids: Sequence[int]) -> list[Picture]:
        found = []
        for image in ids:
            small = self._image(image).copy()
            small.thumbnail((SIDE, SIDE))
            found.append(Picture(sheets.jpeg(small), small.size, f"image-{image}"))
        return found


def read_picture(text: str, calls: Calls) -> Image.Image:
    """The picture of a file in base64; its pixels are counted before any is decoded. Raises UserError."""
    try:
        return decode(
            base64.b64decode(text.partition(",")[2] if text.startswith("data:") else text, validate=True), calls.square
        )
    except (binascii.Error, ValueError):
        raise UserError("picture", "...", "is no base64", "send the file's bytes in base64") from None
    except Unreadable as error:
        raise UserError("picture", "...", f"is not readable ({error})", "send a JPEG, PNG or WebP file") from None


def _number(value: float) -> float | None:
    return value if np.isfinite(value) else None


def _finite(value: Any) -> Any:
    """The same without numbers that JSON does not have."""
    if isinstance(value, dict):
        return {key: _finite(own) for key, own in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(own) for own in value]
    return _number(value) if isinstance(value, float) else value
