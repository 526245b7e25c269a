"""Pictures of single units with everything that their rows say, for the synthesis stage."""

from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, fields
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from saelab import artifacts
from saelab.encoders import Encoder
from saelab.errors import UserError
from saelab.hosts import Host
from saelab.images import ImageSet
from saelab.label import pipeline
from saelab.label.exemplars import Exemplars
from saelab.run.basis import Basis
from saelab.synthesise import Photos, Sight, SynthesisSettings, measure_photos, synthesise_unit
from saelab.synthesise.honesty import path, place, reach
from saelab.synthesise.natural import Natural, measure_natural
from saelab.synthesise.photos import to_pixels
from saelab.synthesise.robust import generator_for, shake
from saelab.units import Projection, UnitActivations

CODE = 1  # version of what photos are measured for
MEASURED = 256  # mining photos at most that say what photos are like
HELD = 128  # mining photos at most whose ways through earlier layers pictures are held to
COMPARED = 8  # exemplars of a unit whose way through the network is compared with the picture's
OTHERS = 24  # photos drawn from mining, the same for all units, that the comparison is held against
BATCH, UNITS = 16, 1024  # photos, and units, at once


@dataclass(frozen=True)
class Viewers:
    """Who looks at the pictures: the host that units belong to, and an encoder that has no part in it."""

    host: Host
    policy: str
    images: ImageSet
    encoder: Encoder
    embeddings: Tensor  # of the images in the encoder's space
    vectors: Callable[[], tuple[tuple[str, ...], Tensor]]  # labels and theirs


def measured_photos(host: Host, images: ImageSet, root: Path) -> Photos:
    """What the mining photos of a run are like, as the host crops them; measured once and kept."""
    from safetensors.torch import load_file, save_file

    recipe = {"stage": "photos", "code": CODE, "images": images.fingerprint, "transform": host.transform_spec}

    def build(folder: Path) -> None:
        ids = images.ids("mine")
        some = ids[np.linspace(0, len(ids) - 1, min(MEASURED, len(ids))).round().astype(int)]
        found = measure_photos([_pixels(host, images, part) for part in np.array_split(some, -(-len(some) // BATCH))])
        tensors = {field.name: getattr(found, field.name).contiguous() for field in fields(found)}
        save_file(tensors, str(folder / "photos.safetensors"))

    made = artifacts.ensure(root, "photos", images.name, recipe, build)
    return Photos(**load_file(str(made.path / "photos.safetensors")))


class PictureMaker:
    """Pictures of single units with their rows; what all units share is measured when it is first needed."""

    def __init__(self, basis: Basis, viewers: Viewers, how: SynthesisSettings, root: Path, folder: Path) -> None:
        assert basis.exemplars is not None
        self.basis, self.viewers, self.how, self.root, self.folder = basis, viewers, how, root, folder
        self.exemplars = Exemplars.load(basis.exemplars.path)

    def make(self, unit: int) -> list[dict[str, Any]]:
        """Write the unit's pictures; a row for each."""
        photos = self._natural.column(unit)[torch.as_tensor(self.viewers.images.ids("mine"))]
        strongest = self._exemplars(unit)
        base = self._pixels(strongest[:1])[0] if self.how.method == "accentuate" and len(strongest) else None
        if self.how.method == "accentuate" and base is None:
            return []  # no photo fires it, so there is none to change
        made = synthesise_unit(self._sight, unit, self.how, max(float(photos.max()), 1e-6), base)
        rows = []
        for number, (picture, weight) in enumerate(zip(made.pictures, made.weight)):
            name = f"unit-{unit:05d}-{number}"
            self._save(name, picture, weight)
            row = {"unit": unit, "number": number, "file": f"{name}.png", "where": f"{name}-where.png"}
            row |= {"method": self.how.method, "photo": int(strongest[0]) if base is not None else None}
            row |= {"objective": [float(made.objective[0, number]), float(made.objective[-1, number])]}
            rows.append(row | self._measure(unit, picture, photos, strongest))
        return rows

    def judge_again(self, row: dict[str, Any]) -> dict[str, Any]:
        """The row as the basis' labels are now, from the picture on disk; as it is where there are none."""
        if self.basis.labels is None or row["labels"] == self.basis.labels.digest:
            return row
        with Image.open(self.folder / row["file"]) as picture:
            return row | self._judge_label(row["unit"], self._embed(picture.convert("RGB")))

    @cached_property
    def _sight(self) -> Sight:
        basis, viewers = self.basis, self.viewers
        photos = measured_photos(viewers.host, viewers.images, self.root)
        pool, natural = self._natural.info["pool"], self._ways if self.how.natural else None
        return Sight(viewers.host, basis.layer, viewers.policy, self._project, pool, photos, natural)

    @cached_property
    def _ways(self) -> Natural | None:
        """Mining photos at earlier layers, shaken as pictures are; None without earlier layers."""
        host, policy = self.viewers.host, self.viewers.policy
        layers = [name for name in self._earlier if policy == "all" or _gives(host, name, policy)]
        ids = self.viewers.images.ids("mine")
        some = ids[np.linspace(0, len(ids) - 1, min(HELD, len(ids))).round().astype(int)]
        if not layers or len(some) < 2:
            return None

        def parts() -> Iterator[dict[str, Tensor]]:
            for part in np.array_split(some, -(-len(some) // BATCH)):
                seen = shake(self._pixels(part), 1, [generator_for("natural", int(i)) for i in part])
                yield host.tokens(host.transform.normalize(255 * seen), layers, policy)

        return measure_natural(parts())

    @cached_property
    def _project(self) -> Projection:
        return Projection.load(self.basis.units.path, self.basis.sae_path)

    @cached_property
    def _natural(self) -> UnitActivations:
        return UnitActivations.load(self.basis.units.path)

    @cached_property
    def _labels(self) -> list[str | None] | None:
        if self.basis.labels is None:
            return None
        return [row["label"] for row in pipeline.read(self.basis.labels.path)]

    @cached_property
    def _label_vectors(self) -> Tensor:
        """Of every unit's label; NaN without one."""
        names, vectors = self.viewers.vectors()
        at = {name: i for i, name in enumerate(names)}
        assert self._labels is not None
        found = torch.full((len(self._labels), vectors.shape[1]), torch.nan)
        for unit, label in enumerate(self._labels):
            if label in at:
                found[unit] = vectors[at[label]]
        return found

    @cached_property
    def _meanings(self) -> Tensor:
        """Mean embedding of every unit's exemplars; NaN of a unit that fires on none."""
        ids, fires = self.exemplars.positives, (self.exemplars.positives >= 0) & (self.exemplars.activations > 0)
        parts = zip(ids.clamp(min=0).split(UNITS), fires.split(UNITS))
        return torch.cat(
            [(self.viewers.embeddings[i] * f[..., None]).sum(1) / f.sum(1, keepdim=True) for i, f in parts]
        )

    @cached_property
    def _earlier(self) -> list[str]:
        """The usual layers that run before this one."""
        host, layer = self.viewers.host, self.basis.layer
        order = [known.name for known in host.layers()]
        path = layer.removeprefix("in:")
        before = set(order[: order.index(path)] if path in order else order)
        return [usual.name for usual in host.usual_layers() if usual.name in before]

    @cached_property
    def _others(self) -> dict[str, Tensor]:
        """The earlier layers' mean tokens of photos that stand for any."""
        ids = self.viewers.images.ids("mine")
        drawn = np.random.default_rng(self.how.seed).choice(ids, min(OTHERS, len(ids)), replace=False)
        return self._means(self._pixels(drawn))

    def _measure(self, unit: int, picture: Tensor, photos: Tensor, strongest: np.ndarray) -> dict[str, Any]:
        pixels = picture.permute(2, 0, 1)[None] / 255
        activation = float(self._sight.activations(pixels)[0, unit])
        fires = self.exemplars.activations[unit][self.exemplars.activations[unit] > 0]
        row: dict[str, Any] = asdict(reach(activation, photos, fires))
        if self._earlier and len(strongest) > 1:
            own = self._means(self._pixels(strongest[:COMPARED]))
            way = path({k: v[0] for k, v in self._means(pixels).items()}, own, self._others)
            row |= {"path": way.similarity, "path_most": way.most, "path_share": way.share, "path_layers": way.layers}
        else:
            row |= {"path": None, "path_most": None, "path_share": None, "path_layers": {}}
        seen = self._embed(Image.fromarray(picture.numpy()))
        found = None if seen is None else place(seen, self._meanings, unit)
        row |= {"retrieval": None if found is None else asdict(found), "retrieval_photo": self._find_photo(unit)}
        row |= {"encoder": self.viewers.encoder.name, "independent": self._independent}
        return row | self._judge_label(unit, seen)

    def _find_photo(self, unit: int) -> float | None:
        """`retrieval`'s percentile of the unit's strongest photo for testing: what a real photo reaches.

        None where none of them fires it.
        """
        test = torch.as_tensor(self.viewers.images.ids("test"))
        activations = self._natural.column(unit)[test]
        if not len(test) or activations.max() <= 0:
            return None
        photo = self.viewers.embeddings[test[activations.argmax()]]
        found = place(photo.float().cpu(), self._meanings, unit)
        return None if found is None else found.percentile

    def _judge_label(self, unit: int, seen: Tensor | None) -> dict[str, Any]:
        label = None if self._labels is None else self._labels[unit]
        said = {"label": label, "labels": self.basis.labels and self.basis.labels.digest}
        if seen is None or label is None:
            return said | {"label_agrees": None}
        found = place(seen, self._label_vectors, unit)
        return said | {"label_agrees": found and found.percentile}

    @property
    def _independent(self) -> bool:
        """Is the encoder another network than the host?"""
        return self.viewers.encoder.recipe.get("weights") != self.viewers.host.digest

    def _exemplars(self, unit: int) -> np.ndarray:
        fires = (self.exemplars.positives[unit] >= 0) & (self.exemplars.activations[unit] > 0)
        return self.exemplars.positives[unit][fires].numpy()

    def _pixels(self, ids: np.ndarray) -> Tensor:
        return _pixels(self.viewers.host, self.viewers.images, ids)

    def _means(self, pixels: Tensor) -> dict[str, Tensor]:
        host = self.viewers.host
        found = host.tokens(host.transform.normalize(255 * pixels), self._earlier)
        return {name: tokens.float().mean(1).cpu() for name, tokens in found.items()}

    def _embed(self, picture: Image.Image) -> Tensor | None:
        """The picture in the encoder's space; None where that holds vectors of given pictures only."""
        encoder = self.viewers.encoder
        try:
            return encoder.embed_batch(encoder.transform(picture)[None])["images"][0].float().cpu()
        except UserError:
            return None

    def _save(self, name: str, picture: Tensor, weight: Tensor) -> None:
        for file, made in (
            (f"{name}.png", Image.fromarray(picture.numpy())),
            (f"{name}-where.png", Image.fromarray((255 * weight).round().byte().numpy())),
        ):
            with artifacts.atomic(self.folder / file) as temporary:
                made.save(temporary, "PNG")


def _gives(host: Host, layer: str, policy: str) -> bool:
    try:
        host.choice(layer, policy)
    except UserError:
        return False
    return True


def _pixels(host: Host, images: ImageSet, ids: np.ndarray) -> Tensor:
    """Photos as the host crops them, [images, 3, height, width] in 0..1."""
    batch = host.load_images([images.load(int(i)) for i in ids])
    return to_pixels(host.transform.normalize, batch)
