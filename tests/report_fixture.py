"""A small, complete run folder for the report's tests: real photos, activations computed from their pixels.

Bases: `neuron` (pooled colours and edges), `sae-s0`, `sae-s1` (sparse codes of them) and `random_rotation`. Labels are
the pictures' own words, placed in the same space as the pictures. Small, but every number comes from the pictures.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from PIL import Image
from safetensors.torch import save_file

from saelab import artifacts
from saelab.images import ImageSet
from saelab.units import UnitActivations

K = 6


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


def write_run(folder: Path, pictures: Sequence[Picture] | None = None, units: int = 24, seed: int = 0) -> Path:
    """Write photos, artifacts and `run.json` under `folder`; returns the path of run.json."""
    pictures = crops() if pictures is None else pictures
    rng = np.random.default_rng(seed)
    x = features(pictures)
    e = x / np.linalg.norm(x, axis=1, keepdims=True)
    vocabulary = sorted({word for p in pictures for word in p.classes})
    truth = np.array([[word in p.classes for word in vocabulary] for p in pictures])
    t = np.stack([e[truth[:, j]].mean(0) - e.mean(0) for j in range(len(vocabulary))])
    t /= np.linalg.norm(t, axis=1, keepdims=True)
    root = folder / "runs"
    images = _images(root, folder / "photos", pictures)
    bases = []
    for name, basis, s, acts in _bases(x, units, rng):
        at = [_units(root, name, basis, acts)]
        at += _labels(root, name, basis, acts, e, t, vocabulary, truth)
        bases.append(
            {"name": name, "basis": basis, "layer": "blocks.3", "seed": s, "sae": None}
            | dict(zip(("units", "labels", "evaluation"), [str(p.relative_to(root)) for p in at], strict=True))
        )
    run = {
        "name": "fixture",
        "version": "0.1.0",
        "created": "2026-11-23T04:00:00+00:00",
        "command": "tests/report_fixture.py",
        "images": str(images.relative_to(root)),
        "encoder": "pixel statistics",
        "bases": bases,
        "comparison": None,
        "timings": {"images": 0.8, "activations": 12.5, "sae": 31.0, "labels": 7.25, "evaluation": 3.0},
        "reused": [],
        "notes": ["Activations are colours and edges of the pictures: a fixture, not a vision model."],
    }
    artifacts.write_json(root / "fixture.json", run)
    return root / "fixture.json"


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


def _images(root: Path, photos: Path, pictures: Sequence[Picture]) -> Path:
    photos.mkdir(parents=True, exist_ok=True)
    for i, picture in enumerate(pictures):
        picture.image.save(photos / f"{i:05d}.jpg", quality=88)
    n = len(pictures)
    images = ImageSet(
        name="crops",
        root=photos,
        files=tuple(f"{i:05d}.jpg" for i in range(n)),
        captions=tuple(p.caption for p in pictures),
        classes=tuple(p.classes for p in pictures),
        splits=np.resize(["mine", "mine", "show", "test", "mine", "mine"], n),
        groups=np.arange(n),
        fingerprint="0" * 64,
        skipped=(("broken.jpg", "not a picture: 0 bytes"),),
        credit="scikit-learn's sample photos (CC BY 2.0)",
        sizes=tuple(p.image.size for p in pictures),
    )
    return artifacts.ensure(root, "images", "crops", {"source": "crops", "n": n}, images.save).path


def _status(column: np.ndarray) -> str:
    fires = int((column > 1e-6).sum())
    return "dead" if fires == 0 else "rare" if fires < 5 else "dense" if fires >= 0.8 * len(column) else "ok"


def _units(root: Path, name: str, basis: str, acts: np.ndarray) -> Path:
    dense = torch.tensor(acts, dtype=torch.float32)
    kept = dense.to_sparse_csr() if (acts > 0).mean() < 0.1 else dense
    units = UnitActivations(kept, basis, {"layer": "blocks.3", "pool": "max"})
    return artifacts.ensure(root, "units", name, {"basis": name, "units": acts.shape[1]}, units.save).path


def _labels(
    root: Path, name: str, basis: str, acts: np.ndarray, e: np.ndarray, t: np.ndarray, words: list[str], truth: Any
) -> list[Path]:
    order = np.argsort(-acts, axis=0, kind="stable")[:K].T
    strength = np.take_along_axis(acts.T, order, 1)
    near = np.where(acts.T[:, None, :] < acts.mean(0)[:, None, None], (e @ e.T)[order], -2)
    contrasts, similarity = near.argmax(2), near.max(2)
    contrasts[similarity < -1], similarity[similarity < -1] = -1, 0
    residual = e[order] - similarity[..., None] * e[contrasts]
    tables = {
        "csp": np.einsum("uk,ukd->ud", strength, residual),
        "csp_0.5": np.einsum("uk,ukd->ud", strength, e[order] - 0.5 * similarity[..., None] * e[contrasts]),
        "semanticlens": e[order].mean(1),
    }
    tables = {k: v / (np.linalg.norm(v, axis=1, keepdims=True) + 1e-9) @ t.T for k, v in tables.items()}
    rows, measured = [], []
    for u in range(acts.shape[1]):
        status = _status(acts[:, u])
        scores = {} if status == "dead" else {k: _scored(v[u], tables["csp"][u], words) for k, v in tables.items()}
        label = scores["csp"]["label"] if scores else None
        rows.append(
            {"unit": u, "basis": basis, "status": status, "label": label, "abstained": False, "source": "vocabulary"}
            | {"final": "csp", "scores": scores, "positives": order[u].tolist(), "contrasts": contrasts[u].tolist()}
            | {"fires_on": int((acts[:, u] > 1e-6).sum())}
        )
        measured.append(_measured(u, status, acts[:, u], scores, words, truth, e[order[u]]))

    def build_labels(at: Path) -> None:
        artifacts.write_jsonl(at / "labels.jsonl", rows)
        artifacts.write_json(at / "vocabulary.json", words)
        ids = {"positives": torch.tensor(order.copy()), "contrasts": torch.tensor(contrasts)}
        values = {"activations": torch.tensor(strength.copy()).float(), "similarity": torch.tensor(similarity).float()}
        save_file(ids | values, at / "exemplars.safetensors")

    def build_evaluation(at: Path) -> None:
        artifacts.write_jsonl(at / "evaluation.jsonl", measured)
        artifacts.write_json(at / "evaluation.json", {})

    recipe = {"basis": name, "units": acts.shape[1]}
    return [
        artifacts.ensure(root, "labels", name, recipe, build_labels).path,
        artifacts.ensure(root, "evaluation", name, recipe, build_evaluation).path,
    ]


def _scored(scores: np.ndarray, final: np.ndarray, words: list[str]) -> dict[str, Any]:
    order = np.argsort(-scores, kind="stable")
    return {
        "label": words[order[0]],
        "score": float(scores[order[0]]),
        "rank": int(np.where(order == final.argmax())[0][0]) + 1,
        "margin": float(scores[order[0]] - scores[order[1]]),
        "null_percentile": float((scores < scores.max() * 0.9).mean()),
        "runners_up": [[words[j], float(scores[j])] for j in order[1:4]],
    }


def _measured(
    u: int, status: str, a: np.ndarray, scores: dict, words: list[str], truth: np.ndarray, pos: np.ndarray
) -> dict[str, Any]:
    k = len(pos)
    clarity = float(k / (k - 1) * (np.sum(pos.mean(0) ** 2) - 1 / k))
    by_scorer = {}
    for name, s in scores.items():
        column = truth[:, words.index(s["label"])].astype(float)
        r = float(np.corrcoef(a, column)[0, 1])
        by_scorer[name] = {"label": s["label"], "scs": r / 2, "truth_r": r, "auprc": None, "f1": None, "iou": None}
    fires = float((a > 1e-6).mean())
    alive = {"clarity": clarity, "redundancy": None, "polysemanticity": 1 - clarity, "monosemanticity": None}
    return {"unit": u, "status": status, "firing_rate": fires, "by_scorer": by_scorer} | alive
