"""A small, complete run for the report's tests, by the library's own stages: real photos through a bank of filters.

The host is a fixed bank of colour and edge filters (no weights to fetch, nothing random); bases are its neurons, two
SAE seeds trained on its tokens, and random directions. Labels are the pictures' own words, in one space with them.
Of the first SAE's features some have been put to a model whose answers are recorded here: proposals and verification.
"""

import atexit
import shutil
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from tempfile import mkdtemp
from typing import Any, NamedTuple
from unittest.mock import patch

import numpy as np
import torch
from PIL import Image
from safetensors.torch import save_file
from torch import Tensor, nn

import saelab
from saelab import artifacts, cache, compare, evaluate, verify
from saelab import units as basis_units
from saelab.hosts import Host
from saelab.hosts.transform import Transform
from saelab.images import ImageSet
from saelab.label import clusters, exemplars, pipeline, propose
from saelab.label.vlm.show import Look
from saelab.label.vocabulary import Vocabulary
from saelab.run.stages.quality import measure_sae
from saelab.sae import SAEConfig, TrainConfig, fit_many
from saelab.truth import Similarity, from_descriptions

MINING = exemplars.MiningSettings(k=8, rare_below=5)
ASKED = "sae seed 0"  # the basis that a model was asked about
MADE: dict[str, Path] = {}  # the standard run and its folder, once it is made
UNITS = (1, 2, 3, 5, 7)  # of it; the answer to the last can't be parsed
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
        for row, top in enumerate(range(0, height - side + 1, 40)):
            for left in range(0, width - side + 1, 53):
                crop = pixels[top : top + side, left : left + side]
                red, green, blue = crop.reshape(-1, 3).mean(0)
                words = [name, "upper" if row < 4 else "lower"]
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


SETUP = compare.Setup("filters", "fire", "0" * 64, "0", "max", "positive", MINING.k, "pixels", "pixels", "words")


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


class Filters(nn.Module):
    """24 rectified filters of 12 x 12 pixels in steps of 8: colours, colour oppositions and Gabor edges, both signs."""

    def __init__(self) -> None:
        super().__init__()
        colours = torch.tensor([[1, 1, 1], [1, -1, 0], [0.5, 0.5, -1], [1, 0, -1]]).float()
        place = (torch.arange(12) - 5.5) / 4
        y, x = torch.meshgrid(place, place, indexing="ij")
        window = torch.exp(-(x**2 + y**2) / 2)
        turns = [i * torch.pi / 4 for i in range(4)]
        edges = [window * torch.sin(f * (x * np.cos(t) + y * np.sin(t))) for f in (1.5, 4.0) for t in turns]
        bank = [c[:, None, None] * window for c in colours] + [e.expand(3, 12, 12) for e in edges]
        weight = torch.stack(bank)
        weight = weight / weight.flatten(1).norm(dim=1)[:, None, None, None]
        self.filters = nn.Conv2d(3, 24, 12, stride=8, bias=False)
        self.filters.weight.data = torch.cat([weight, -weight])
        self.fire = nn.ReLU()

    def forward(self, batch: Tensor) -> Tensor:
        """[batch, 3, height, width] -> [batch, 24, rows, columns]."""
        return self.fire(self.filters(batch))


def write_run(folder: Path, pictures: Sequence[Picture] | None = None) -> Path:
    """Write photos, artifacts and `run.json` under `folder`; returns the path of run.json.

    The run of the standard pictures is made once in a process and copied after that (its photos stay where they were).
    """
    if pictures is not None:
        return _write_run(folder, pictures)
    if "run" not in MADE:
        MADE["run"] = _write_run(MADE.setdefault("at", Path(mkdtemp(prefix="saelab-fixture-"))), crops())
        atexit.register(shutil.rmtree, MADE["at"], ignore_errors=True)
    shutil.copytree(MADE["run"].parent, folder / "runs")
    return folder / "runs" / MADE["run"].name


def _write_run(folder: Path, pictures: Sequence[Picture]) -> Path:
    world = World.of(pictures)
    root = folder / "runs"
    build = partial(_images, world, folder / "photos")
    at = artifacts.ensure(root, "images", "crops", {"n": len(world.pictures)}, build).path
    images = ImageSet.read(at)
    host = Host(Filters(), Transform(100, (92, 92), mean=(0.5,) * 3, std=(0.25,) * 3), "filters")
    store = cache.write(images, host, ["fire"], root)["fire"]
    bases, evaluated = [], []
    for name, kind, seed, unit, sae in _bases(store, root):
        places, rows = _basis(root, name, unit, images, world, asked=name == ASKED)
        measured = None if sae is None else _quality(sae, store, images, root)
        bases.append(
            {"name": name, "basis": kind, "layer": "fire", "seed": seed, "sae": sae and str(sae.relative_to(root))}
            | {"quality": measured and str(measured.relative_to(root)), "control": kind == "random_rotation"}
            | {stage: str(path.relative_to(root)) for stage, path in places.items()}
        )
        evaluated.append(compare.ComparedBasis(name, kind, kind, seed, "0", kind == "random_rotation", SETUP, rows))
    result = compare.compare(evaluated, compare.Settings(resamples=200))
    compared = artifacts.ensure(root, "comparison", "fire", {"of": "fixture"}, partial(_comparison, result))
    run = {
        "name": "fixture",
        "version": saelab.__version__,
        "created": "2026-11-23T04:00:00+0000",
        "config": {"pool": "max", "seeds": [0, 1]},
        "images": str(at.relative_to(root)),
        "host": host.name,
        "encoder": "pixel statistics",
        "bases": bases,
        "comparison": str(compared.path.relative_to(root)),
        "comparisons": {"fire": str(compared.path.relative_to(root))},
        "timings": {"images": 0.8, "activations": 12.5, "sae": 31.0, "labels": 7.25, "evaluation": 3.0},
        "reused": [],
        "notes": ["The host is a bank of colour and edge filters: a fixture, not a vision model."],
    }
    artifacts.write_json(root / "fixture.json", run)
    return root / "fixture.json"


def _quality(sae: Path, store: cache.ActivationCache, images: ImageSet, root: Path) -> Path:
    """The quality stage on one SAE, its seeds matched to each other."""
    others = [
        artifacts.open_artifact(path) for path in sorted(sae.parent.glob("fire-seed*")) if path.is_dir() and path != sae
    ]
    return measure_sae(artifacts.open_artifact(sae), others, store, images, root).path


def _comparison(result: dict[str, Any], at: Path) -> None:
    artifacts.write_json(at / "comparison.json", result)


def _bases(store: cache.ActivationCache, root: Path) -> list[tuple[str, str, int | None, artifacts.Artifact, Any]]:
    """(name, kind, seed, units, SAE folder) of each basis."""
    configs = [SAEConfig(d_in=24, latents=48, k=4, seed=seed, lr=3e-3) for seed in (0, 1)]
    train = TrainConfig(batch_size=512, steps=300)
    wanted = [(f"fire-seed{c.seed}", {"stage": "sae", "sae": c, "train": train}) for c in configs]

    def build(folders: dict[int, Path]) -> None:
        some = [configs[i] for i in folders]
        fit_many(np.asarray(store.tokens), some, train, list(folders.values()), progress=False)

    saes = [made.path for made in artifacts.ensure_all(root, "sae", wanted, build)]
    found: list[tuple[str, str, int | None, artifacts.Artifact, Any]] = []
    found.append(("neuron", "neuron", None, basis_units.neuron(store, root), None))
    found += [(f"sae seed {i}", "sae", i, basis_units.sae(store, root, path), path) for i, path in enumerate(saes)]
    return [*found, ("random rotation", "random_rotation", 0, basis_units.random_rotation(store, root), None)]


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
    root: Path, name: str, unit: artifacts.Artifact, images: ImageSet, world: World, asked: bool
) -> tuple[dict[str, Path], list[dict[str, Any]]]:
    """The artifacts of one basis through the library's mining, labelling and evaluation; and the evaluated rows."""
    units = basis_units.UnitActivations.load(unit.path)
    found = exemplars.find(units, images, world.e, MINING)
    vocabulary = Vocabulary(world.words, tuple(("classes",) for _ in world.words))
    with patch.object(clusters, "LEVEL", 0.0):  # eight words are too few for two meanings: pages are to have some
        evidence = pipeline.evidence(units, found, images, world.e, world.t, MINING)
        rows = pipeline.assign_all(evidence, found, vocabulary, LABELS, units.basis)
    evidence = evaluate.Judges(
        judge=Similarity.of("pixels", world.e, world.words, world.t),
        captions=_told(world),
        truth=from_descriptions(world.words, images.captions, images.classes),
    )
    splits = evaluate.Splits(images.ids("mine"), images.ids("test"))
    measured, summary = evaluate.evaluate(units, rows, evidence, splits, MINING.k)

    said = _proposals(root, found, images) if asked else None

    def labels(at: Path) -> None:
        artifacts.write_jsonl(at / "labels.jsonl", rows)
        artifacts.write_json(at / "vocabulary.json", vocabulary)
        found.save(at)
        if said:
            shutil.copyfile(said, at / "proposals.jsonl")

    def write(stage: str, build: Any, **more: Any) -> Path:
        return artifacts.ensure(root, stage, name, {"units": unit.digest, **more}, build).path

    own = {"proposals": artifacts.file_digest(said)} if said else {}
    own["encoder"] = artifacts.ensure(
        root, "embeddings", "pixels", {"of": "pixels"}, partial(_embeddings, world)
    ).digest
    places = {"units": unit.path, "labels": write("labels", labels, settings=LABELS, **own)}
    if asked:
        _verification(root, places["labels"], units, rows, found, images, world)
    places["evaluation"] = write("evaluation", lambda at: evaluate.write(at, measured, summary))
    return places, measured


def _embeddings(world: World, at: Path) -> None:
    save_file({"images": world.e.contiguous()}, at / "embeddings.safetensors")


def _told(world: World) -> Similarity:
    """What people wrote, in degrees: of each word, one over the root of how many words a picture has."""
    told = torch.tensor([[float(word in p.classes) for word in world.words] for p in world.pictures])
    images = torch.nn.functional.normalize(told, dim=1)
    return Similarity.of("words", images, world.words, torch.eye(len(world.words)))


def _shown(found: Any) -> propose.ShownExemplars:
    return propose.ShownExemplars(found.positives, found.contrasts, found.activations)


TALK = [  # an agent's, of the first unit: what stands in transcripts/
    {"round": 1, "said": None, "calls": [{"tool": "strongest", "arguments": '{"count": 2}', "answer": "x" * 3000}]},
    {"round": 2, "said": "curved eaves, then", "error": None, "pictures": []},
]


def _answers(path: Path, rows: list[dict[str, Any]]) -> Path:
    counted = {"model": "a model in a file", "prompt_tokens": 1234, "completion_tokens": 56, "cost": 0.00125}
    path.parent.mkdir(parents=True, exist_ok=True)
    artifacts.write_jsonl(path, [counted | row for row in rows])
    return path


def _proposals(root: Path, found: Any, images: ImageSet) -> Path:
    """proposals.jsonl of some units, with the sheets, by the library's own proposer from recorded answers."""
    said = '{"concepts": ["temple roof", "curved eaves"], "evidence": "tiles in every picture", "confidence": 0.8}'
    raw = {u: "Both groups look much alike to me." if u == UNITS[-1] else said for u in UNITS}
    answers = _answers(root.parent / "answers.jsonl", [{"unit": u, "raw": text} for u, text in raw.items()])
    proposer = propose.load_proposer("recorded", answers=answers, sheet_px=448)
    at = root / "proposals" / "sae_seed_0-recorded-0"
    propose.run(proposer, _shown(found), images, UNITS, at, progress=False)
    (at / "transcripts").mkdir()
    artifacts.write_jsonl(at / "transcripts" / f"unit-{UNITS[0]:05d}.jsonl", TALK)
    return at / "proposals.jsonl"


def _verification(
    root: Path, labels: Path, units: Any, rows: list[dict[str, Any]], found: Any, images: ImageSet, world: World
) -> None:
    """What a model said of the same units: it finds the first, third and fourth photo, and takes 2 for intruders."""
    recipe = artifacts.read_json(labels / "recipe.json")
    at, ids = root / "verification" / "sae_seed_0-recorded-0", images.ids("show")
    given = [{"name": f"detect/{u}", "raw": '{"fits": [1, 3, 4]}'} for u in UNITS]
    given += [{"name": f"choose/{u}", "raw": '{"choice": 1}'} for u in UNITS]
    given += [{"name": f"fuzzing/{u}", "raw": '{"fits": [1, 3, 4]}'} for u in UNITS]
    given += [{"name": f"intruder/{u}/{trial}", "raw": '{"intruder": 2}'} for u in UNITS for trial in range(3)]
    chat = propose.load_chat("recorded", answers=_answers(root.parent / "looks.jsonl", given))
    at.mkdir(parents=True)
    artifacts.write_json(at / "recipe.json", {"stage": "verification", "labels": artifacts.digest(recipe)})
    named = {u: rows[u]["label"] for u in UNITS if rows[u]["label"]}
    sets = verify.detection_sets(units.rows(ids), world.e[torch.as_tensor(ids)], ids, named, groups=images.groups[ids])
    verify.detect(chat, sets, images, at, part_px=448, progress=False)
    best = {u: [rows[u]["label"], *(r[0] for r in rows[u]["scores"]["csp"]["runners_up"])][:4] for u in named}
    cases = [propose.build_case(_shown(found), images, u, "contrast", 0, 9) for u in named]
    verify.second_look(chat, cases, best, at, look=Look(sheet_px=448), progress=False)
    trials = verify.intruder_trials(_shown(found), world.e, UNITS, trials=3)
    verify.find_intruders(chat, trials, images, at, part_px=448, progress=False)
    split = images.ids("mine"), images.ids("test")
    acts = units.rows(split[0]), units.rows(split[1])
    artifacts.write_jsonl(at / "embedding.jsonl", verify.embedding_scores(_shown(found), world.e, acts, split, UNITS))
    corner = np.pad([[1.0]], (0, 2))  # where every photo is hot
    framed = verify.fuzzing_sets(units.rows(ids), ids, named, lambda unit, image: corner, per_side=2)
    verify.find_regions(chat, framed, images, at, part_px=448, progress=False)
