"""A small, complete run folder for the report's tests: real photos, activations computed from their pixels.

Bases: `neuron` (pooled colours and edges), `sae-s0`, `sae-s1` (sparse codes of them) and `random_rotation`. Labels are
the pictures' own words, placed in the same space as the pictures. Small, but every number comes from the pictures.
"""

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from PIL import Image
from torch import Tensor

import saelab
from saelab import artifacts, compare, evaluate
from saelab.images import ImageSet
from saelab.label import exemplars, pipeline
from saelab.label.vocabulary import Vocabulary
from saelab.truth import Similarity, from_descriptions
from saelab.units import UnitActivations

MINING = exemplars.MiningSettings(k=8, rare_below=5)
LABELS = pipeline.LabelSettings(scorers=("csp", "csp_0.5", "semanticlens"), final="csp", nulls=40)


class Picture(NamedTuple):
    """One photo with the words that are true of it."""

    image: Image.Image
    caption: str
    classes: tuple[str, ...]


def crops(side: int = 104) -> list[Picture]:
    """Crops of scikit-learn's two photos (china.jpg, flower.jpg; CC BY 2.0), named by photo, place and colour."""
    from sklearn.datasets import load_sample_images

    pictures = []
    for name, pixels in zip(("temple", "flower"), load_sample_images().images, strict=True):
        height, width = pixels.shape[:2]
        for row, top in enumerate(range(0, height - side + 1, 80)):
            for left in range(0, width - side + 1, 66):
                crop = pixels[top : top + side, left : left + side]
                red, green, blue = crop.reshape(-1, 3).mean(0)
                words = [name, "upper" if row < 2 else "lower"]
                words += ["red"] * bool(red > 1.25 * blue) + ["blue"] * bool(blue > 1.15 * red)
                words += ["dark"] * bool((red + green + blue) < 300) + ["bright"] * bool((red + green + blue) > 480)
                pictures.append(Picture(Image.fromarray(crop), f"{words[1]} part of the {name}", tuple(words)))
    return pictures


def features(pictures: Sequence[Picture]) -> np.ndarray:
    """[images, 63]: 4 x 4 colours and the edges of a 4 x 4 grid less one, standardised."""
    rows = []
    for picture in pictures:
        pixels = np.asarray(picture.image.convert("RGB").resize((32, 32)), np.float64) / 255
        grey = pixels.mean(2)
        edges = np.hypot(*np.gradient(grey)).reshape(4, 8, 4, 8).mean((1, 3)).ravel()[:15]
        rows.append(np.concatenate([pixels.reshape(4, 8, 4, 8, 3).mean((1, 3)).ravel(), edges]))
    x = np.stack(rows)
    return (x - x.mean(0)) / (x.std(0) + 1e-9)


SETUP = compare.Setup("pixels", "blocks.3", "0" * 64, "0", "max", "positive", MINING.k, "pixels", "pixels", "words")


class World(NamedTuple):
    """Pictures, words and one space that holds both."""

    pictures: Sequence[Picture]
    x: np.ndarray  # [images, features]
    e: Tensor  # [images, features] unit length
    words: tuple[str, ...]
    t: Tensor  # [words, features] unit length

    @classmethod
    def of(cls, pictures: Sequence[Picture]) -> "World":
        """Words lie where the pictures of which they are true lie, less the mean picture."""
        x = features(pictures)
        e = x / np.linalg.norm(x, axis=1, keepdims=True)
        words = tuple(sorted({word for p in pictures for word in p.classes}))
        of_word = [np.array([word in p.classes for p in pictures]) for word in words]
        t = np.stack([e[has].mean(0) - e.mean(0) for has in of_word])
        t /= np.linalg.norm(t, axis=1, keepdims=True)
        return cls(pictures, x, torch.tensor(e).float(), words, torch.tensor(t).float())


def write_run(folder: Path, pictures: Sequence[Picture] | None = None, units: int = 24, seed: int = 0) -> Path:
    """Write photos, artifacts and `run.json` under `folder`; returns the path of run.json."""
    world = World.of(crops() if pictures is None else pictures)
    root = folder / "runs"
    images = artifacts.ensure(
        root, "images", "crops", {"n": len(world.pictures)}, partial(_images, world, folder / "photos")
    )
    bases, evaluated = [], []
    for name, kind, s, acts in _bases(world.x, units, np.random.default_rng(seed)):
        at, rows = _basis(root, name, kind, acts, ImageSet.read(images.path), world)
        places = {stage: str(path.relative_to(root)) for stage, path in at.items()}
        bases.append({"name": name, "basis": kind, "layer": "blocks.3", "seed": s, "sae": None} | places)
        control = kind == "random_rotation"
        evaluated.append(compare.Basis(name, kind, kind, s, "none", control, SETUP, rows))
    result = compare.compare(evaluated, compare.Settings(resamples=200, fewest=20))
    compared = artifacts.ensure(root, "comparison", "fixture", {"of": "fixture"}, partial(_comparison, result))
    run = {
        "name": "fixture",
        "version": saelab.__version__,
        "created": "2026-11-23T04:00:00+00:00",
        "command": "python tests/report_fixture.py",
        "images": str(images.path.relative_to(root)),
        "encoder": "pixel statistics",
        "bases": bases,
        "comparison": str(compared.path.relative_to(root)),
        "timings": {"images": 0.8, "activations": 12.5, "sae": 31.0, "labels": 7.25, "evaluation": 3.0},
        "reused": [],
        "notes": ["Activations are colours and edges of the pictures: a fixture, not a vision model."],
    }
    artifacts.write_json(root / "fixture.json", run)
    return root / "fixture.json"


def _comparison(result: dict[str, Any], at: Path) -> None:
    artifacts.write_json(at / "comparison.json", result)


def _bases(x: np.ndarray, units: int, rng: np.random.Generator) -> list[tuple[str, str, int | None, np.ndarray]]:
    neuron = np.maximum(x[:, rng.permutation(x.shape[1])[:units]], 0)
    neuron[:, -1] = 0  # a dead unit
    found = [("neuron", "neuron", None, neuron)]
    for seed in (0, 1):
        own = np.random.default_rng(seed)
        centres = x[own.permutation(len(x))[: 2 * units]]
        codes = x @ (centres / np.linalg.norm(centres, axis=1, keepdims=True)).T
        floor = np.partition(codes, -4, axis=1)[:, -4:-3]
        found.append((f"sae-s{seed}", "sae", seed, np.where(codes >= floor, np.maximum(codes, 0), 0)))
    rotation = np.linalg.qr(rng.normal(size=(x.shape[1], x.shape[1])))[0][:, :units]
    return [*found, ("random_rotation", "random_rotation", 0, np.maximum(x @ rotation, 0))]


def _images(world: World, photos: Path, at: Path) -> None:
    photos.mkdir(parents=True, exist_ok=True)
    for i, picture in enumerate(world.pictures):
        picture.image.save(photos / f"{i:05d}.jpg", quality=88)
    n = len(world.pictures)
    ImageSet(
        name="crops",
        root=photos,
        files=tuple(f"{i:05d}.jpg" for i in range(n)),
        captions=tuple(p.caption for p in world.pictures),
        classes=tuple(p.classes for p in world.pictures),
        splits=np.resize(["mine", "mine", "show", "test", "mine", "mine"], n),
        groups=np.arange(n),
        fingerprint="0" * 64,
        skipped=(("broken.jpg", "not a picture: 0 bytes"),),
        credit="scikit-learn's sample photos (CC BY 2.0)",
        sizes=tuple(p.image.size for p in world.pictures),
    ).save(at)


def _basis(
    root: Path, name: str, kind: str, acts: np.ndarray, images: ImageSet, world: World
) -> tuple[dict[str, Path], list[dict[str, Any]]]:
    """The artifacts of one basis through the library's own mining, labelling and evaluation; and the evaluated rows."""
    dense = torch.tensor(acts, dtype=torch.float32)
    kept = dense.to_sparse_csr() if (acts > 0).mean() < 0.1 else dense
    units = UnitActivations(kept, kind, {"layer": "blocks.3", "pool": "max"})
    found = exemplars.find(units, images, world.e, MINING)
    vocabulary = Vocabulary(world.words, tuple(("classes",) for _ in world.words))
    rows = pipeline.assign_all(units, found, images, world.e, world.t, vocabulary, LABELS, MINING)
    evidence = evaluate.Evidence(
        judge=Similarity.of("pixels", world.e, world.words, world.t),
        captions=None,
        truth=from_descriptions(world.words, images.captions, images.classes),
    )
    splits = evaluate.Splits(images.ids("mine"), images.ids("test"))
    measured, summary = evaluate.evaluate(units, rows, evidence, splits, MINING.k)

    def labels(at: Path) -> None:
        artifacts.write_jsonl(at / "labels.jsonl", rows)
        found.save(at)

    def write(stage: str, build: Any) -> Path:
        return artifacts.ensure(root, stage, name, {"basis": name, "units": acts.shape[1]}, build).path

    places = {"units": write("units", units.save), "labels": write("labels", labels)}
    places["evaluation"] = write("evaluation", lambda at: evaluate.write(at, measured, summary))
    return places, measured
