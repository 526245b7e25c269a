"""The cosy stage: do a basis' units fire on pictures of their labels? (CoSy, Kopf et al., NeurIPS 2024)"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from saelab import images as image_sources
from saelab import truth, units
from saelab.acts import columns
from saelab.artifacts import Artifact, digest, ensure
from saelab.errors import UserError
from saelab.evaluate import cosy, prompted
from saelab.evaluate.painters import SOURCES as PAINTERS
from saelab.evaluate.painters import Generation
from saelab.images import ImageSet
from saelab.images.sources import folder as folder_listing
from saelab.label import pipeline
from saelab.label.mine import top_images
from saelab.run.basis import Basis

SMALL = 224  # pixels of a picture that is kept for the unit page
CODE = 5  # version of this stage; part of every recipe
SOURCES = ("heldout", "folder", *PAINTERS, "prompts")


@dataclass(frozen=True)
class CosySettings:
    """Where pictures of labels come from, and whose labels are measured."""

    source: str = "heldout"  # heldout: described test pictures; folder: one sub-folder a label; diffusers, openai:
    # generated; prompts: of descriptions that a text model writes for each label
    scorer: str = "final"  # whose labels: final, or a scorer's name
    folder: str | None = None  # of `folder`
    paint: str = "openai"  # of `prompts`: diffusers, openai, or folder, with a sub-folder a description
    controls: str | None = None  # folder of other pictures to hold labels against; None: the test split's
    dry_run: bool = False  # only say how many pictures would be painted
    generate: Generation = field(default_factory=Generation)  # of `diffusers` and `openai`

    def __post_init__(self) -> None:
        """Raise UserError for an unknown source, and for `folder` without one."""
        if self.source not in SOURCES:
            raise UserError("cosy.source", self.source, "unknown", f"known: {', '.join(SOURCES)}")
        if self.paint not in ("folder", *PAINTERS):
            raise UserError("cosy.paint", self.paint, "unknown", f"known: folder, {', '.join(PAINTERS)}")
        if self.shown_in == "folder" and self.folder is None:
            what = "a label" if self.source == "folder" else "a description"
            raise UserError("cosy.folder", None, "source folder needs one", f"give a folder with one sub-folder {what}")
        if self.source == "prompts" and self.controls is not None:
            what = "pictures of prompts are held against those of the label's other prompts"
            raise UserError("cosy.controls", self.controls, what, "set it to null")

    @property
    def shown_in(self) -> str:
        """Where the pictures themselves come from."""
        return self.paint if self.source == "prompts" else self.source


@dataclass(frozen=True)
class Shown:
    """New pictures, and what one basis' units do on them."""

    pictures: ImageSet
    acts: Float[Tensor, "pictures units"]
    prompts: Mapping[str, prompted.Prompts] | None = None  # by label, where a text model described the pictures


def labels_of(basis: Basis, scorer: str) -> list[str | None]:
    """Each unit's label by the scorer; final labels that abstain count as none."""
    assert basis.labels is not None
    rows = pipeline.read(basis.labels.path)
    if scorer == "final":
        return [None if row["abstained"] else row["label"] for row in rows]
    known = {name for row in rows for name in row["scores"]}
    if scorer not in known:
        raise UserError("cosy.scorer", scorer, "gave no labels", f"known: final, {', '.join(sorted(known))}")
    return [row["scores"].get(scorer, {}).get("label") for row in rows]


def open_like(images: ImageSet, folder: Path | str, files: Sequence[str] | None = None) -> ImageSet:
    """The pictures of a folder, padded to squares if the run's own are: the host has to see them alike.

    `files`: relative names of those that count, as far as they are there; None: all. Raises UserError for no picture.
    """
    listing = folder_listing(folder)
    if files is not None:
        wanted = set(files)
        listing = replace(listing, entries=[entry for entry in listing.entries if entry.file in wanted])
    return replace(image_sources.build(listing), square=images.square)


def measure_labels(
    basis: Basis,
    labels: list[str | None],
    images: ImageSet,
    settings: CosySettings,
    rule: str,
    root: Path,
    shown: Shown | None = None,
    control: Shown | None = None,
) -> Artifact:
    """The `cosy` artifact of one basis' labels. Eight parameters: two picture sets besides what the recipe names.

    `rule`: when a label counts as true of a picture. `shown`: pictures of the labels, by sub-folder; None: the test
    pictures that people described so. `control`: pictures to hold them against; None: all test pictures.
    """
    assert basis.labels is not None
    recipe: dict[str, Any] = {"stage": "cosy", "code": CODE, "labels": basis.labels.digest, "truth": rule}
    recipe |= {"images": images.fingerprint, "pictures": None if shown is None else shown.pictures.fingerprint}
    recipe |= {"scorer": settings.scorer}
    recipe |= {} if control is None else {"controls": control.pictures.fingerprint}
    if shown is not None and shown.prompts is not None:
        recipe |= {"prompts": digest({label: [x.fire, x.silent] for label, x in shown.prompts.items()})}

    def build(folder: Path) -> None:
        acts, test = units.UnitActivations.load(basis.units.path), images.ids("test")
        distinct = sorted({label for label in labels if label is not None})
        stated = truth.from_descriptions(distinct, images.captions, images.classes, rule)
        if shown is None:  # an image that nobody described is no control
            test = test[stated.known[torch.as_tensor(test)].numpy()]
        true_of, own = cosy.match_descriptions(distinct, stated, test), acts.rows(test)
        shown_of = true_of if shown is None else cosy.in_folders(distinct, shown.pictures)
        quiet = own
        if control is not None:
            pictures = control.pictures
            described = truth.from_descriptions(distinct, pictures.captions, pictures.classes, rule)
            true_of, quiet = cosy.match_descriptions(distinct, described, pictures.ids()), control.acts
        silent: dict[str, np.ndarray] = {}
        if shown is not None and shown.prompts is not None:
            shown_of, silent = prompted.sides(distinct, shown.prompts, shown.pictures)
            silent, _ = leave_out_black(silent, shown.pictures)
            every, quiet = shown.pictures.ids(), shown.acts
            true_of = {label: np.setdiff1d(every, ids) for label, ids in silent.items()}
        shown_of, black = (shown_of, {}) if shown is None else leave_out_black(shown_of, shown.pictures)
        strongest = top_images(columns(acts.rows(images.ids("mine"))), 1)[1][:, 0].nan_to_num()
        rows = cosy.cosy(labels, own if shown is None else shown.acts, shown_of, quiet, true_of, strongest)
        if shown is not None and shown.prompts is not None:
            prompted.add_differences(rows, shown.acts, shown_of, silent, strongest)
        for row in rows:
            row["black"] = black.get(row["label"], 0)
            row["strip"] = [] if shown is None else _strip(shown, shown_of.get(row["label"]), row["unit"])
        if shown is not None:
            _keep_small(shown.pictures, sorted({i for row in rows for i, _ in row["strip"]}), folder)
        by = settings.generate.model if settings.shown_in in PAINTERS else None
        cosy.write(folder, rows, cosy.summarise(rows) | {"source": settings.source, "by": by})

    return ensure(root, "cosy", basis.name, recipe, build)


def leave_out_black(
    shown_of: dict[str, np.ndarray], pictures: ImageSet
) -> tuple[dict[str, np.ndarray], dict[str, int]]:
    """Each label's pictures without black ones, and how many of these it has."""
    black = cosy.find_black(pictures)
    kept = {label: ids[~black[ids]] for label, ids in shown_of.items()}
    return kept, {label: int(black[ids].sum()) for label, ids in shown_of.items()}


def _strip(shown: Shown, ids: np.ndarray | None, unit: int) -> list[list[Any]]:
    """The first pictures of a label, [number, activation] each: a strip for the unit's page."""
    some = [] if ids is None else ids[: cosy.STRIP].tolist()
    return [[i, float(shown.acts[i, unit])] for i in some]


def _keep_small(pictures: ImageSet, ids: Sequence[int], folder: Path) -> None:
    """Small copies, `pictures/<number>.jpg`: generated folders may be gone when a report is made."""
    (folder / "pictures").mkdir(exist_ok=True)
    for i in ids:
        picture = pictures.load(i)
        picture.thumbnail((SMALL, SMALL))
        picture.save(folder / "pictures" / f"{i}.jpg", quality=85)
