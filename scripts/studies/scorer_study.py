"""All scorers on planted worlds and on real photos with class truth: the tables of docs/scorers.md.

    python scripts/studies/scorer_study.py [--cache FOLDER] [--permutations 40] [--only worlds|photos|sizes]

Needs the shared data in the folder SAELAB_SHARED: planted.py and images/tiny-imagenet-val.
Tokens, embeddings, SAEs and each finished part of the tables (study.json) are kept in the cache folder: a killed run
goes on where it was. Delete the folder to start afresh.
"""

import argparse
import importlib.util
import itertools
import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from types import ModuleType

import torch
from scorer_photos import LAYERS, PER_CLASS, SHARED, Photos, class_names, photos
from torch import Tensor
from tqdm import tqdm

from saelab import metrics
from saelab.label import assign, nulls, vocabulary

OURS = "contrast_evidence"
SUM = "summed_evidence"  # ours and Pearson
MARK = "true classes of the mined photos"
OTHERS = ("semanticlens", "csp_0.5", "csp", "pearson", "soft_wpmi", "cos_cubed")
FEW = (1, 2, 5, 10, 20)  # photos of a class that are mined, where their number is what is asked about

# Planted worlds: kind -> settings of planted.make and what is done to the result. Three fresh seeds each.
WORLDS: dict[str, dict[str, float]] = {
    "reference world 1": {"n": 5000, "u": 500, "seed": 20261},
    "reference world 2": {"n": 5000, "u": 500, "seed": 7, "scene_w": 1.3},
    "reference world 3": {"n": 2000, "u": 300, "seed": 9, "scene_w": 1.2, "habit_p": 0.9},
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


# What every scorer says


def standard(scores: Tensor) -> Tensor:
    """Standardised over labels."""
    return (scores - scores.mean(1, keepdim=True)) / scores.std(1, keepdim=True)


def leads(evidence: assign.Evidence, known: dict[str, Tensor]) -> dict[str, Tensor]:
    """The leads a to d of the reference world section 3: what our scorer was developed from."""
    acts = torch.zeros(evidence.n_images, evidence.n_units)
    acts.scatter_add_(0, evidence.positive_ids.clamp(min=0).T, evidence.positive_values.nan_to_num().T)
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
    scores = assign.score([*OTHERS, SUM, OURS], evidence)
    chosen = {}
    for name, score in (scores | leads(evidence, scores)).items():
        chosen[name] = score.nan_to_num(nan=-torch.inf).argmax(1).masked_fill(score.isnan().all(1), -1)
    for name in (SUM, OURS):  # last
        chosen[name] = chosen.pop(name)
    if permutations:
        share = nulls.null_percentile(OURS, evidence, permutations)
        chosen[f"{OURS}, abstaining"] = chosen[OURS].masked_fill(~(share > 0.95), -1)
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
    rivals = [name for name in chosen if not name.startswith((OURS, SUM))]
    found = measure(acts, seen, chosen | {MARK: by_truth(acts[m], seen.classes[m])})
    against: dict[str, dict] = {}
    for key in ("truth_r", "auprc", "f1"):
        best = max(rivals, key=lambda name: found[name].row[key])
        against[key] = {"best": best, "ours - best": paired(getattr(found[OURS], key), getattr(found[best], key))}
        against[key]["sum - ours"] = paired(getattr(found[SUM], key), getattr(found[OURS], key))
    return {"rows": {name: f.row for name, f in found.items()}, "against": against}


def on_sizes(seen: Photos, layer: str, basis: str) -> dict[str, dict[str, float]]:
    """Mean truth r over all units with few and many mined photos, the vocabulary as it is shown or mostly not shown.

    "200 labels" are the classes; "1040 labels" are these and the ImageNet classes that no photo shows.
    """
    acts = seen.neurons(layer) if basis == "neurons" else seen.features(layer)
    vocabularies = [seen.label_emb, torch.cat([seen.label_emb, _not_shown()])]
    within, test = torch.arange(len(seen.classes)) % PER_CLASS, ~seen.mine
    rows = {}
    for label_emb, per_class in itertools.product(vocabularies, FEW):
        mined = within < per_class
        evidence = assign.Evidence.mined(acts[mined], seen.image_emb[mined], label_emb)
        row = {}
        for name, score in assign.score([*OTHERS, SUM, OURS], evidence).items():
            chosen = score.nan_to_num(nan=-torch.inf).argmax(1).masked_fill(score.isnan().all(1), -1)
            row[name] = float(_truth_r(acts[test], seen.classes[test], chosen).mean())
        rows[f"{len(label_emb)} labels, {int(mined.sum())} photos"] = row
    return rows


def _truth_r(acts: Tensor, classes: Tensor, chosen: Tensor) -> Tensor:
    parts = [
        metrics.faithfulness.correlation(acts[:, some], (classes[:, None] == chosen[some]).float())
        for some in torch.arange(acts.shape[1]).split(512)
    ]
    return torch.cat(parts).nan_to_num(nan=0.0)


def _not_shown(shown: Sequence[str] | None = None) -> Tensor:
    """Vectors of the ImageNet classes that none of the photos belongs to."""
    from saelab.encoders.conse import ConSE

    own = {vocabulary.key(word) for name in shown or class_names() for word in name.split(",")}
    names = vocabulary.imagenet_names()
    return ConSE().embed_sentences([n for n in names if not {vocabulary.key(word) for word in n.split(",")} & own])


def main() -> None:
    parser = argparse.ArgumentParser(description="All scorers on planted worlds and on real photos with class truth.")
    parser.add_argument("--cache", type=Path, default=Path("runs/scorer_study"), help="where slow things are kept")
    parser.add_argument("--permutations", type=int, default=40, help="of the null behind abstaining; 0: do without")
    parser.add_argument("--only", choices=["worlds", "photos", "sizes"], help="a part of the study")
    args = parser.parse_args()
    args.cache.mkdir(parents=True, exist_ok=True)
    file = args.cache / "study.json"
    result = json.loads(file.read_text()) if file.exists() else {}
    parts: dict[str, Callable[[], dict]] = {}
    if args.only in (None, "worlds"):
        parts |= {f"world, {kind}": partial(on_world, settings) for kind, settings in WORLDS.items()}
    if args.only != "worlds":
        seen = photos(args.cache)
        for layer, basis in itertools.product(LAYERS, ("neurons", "features")):
            if args.only != "sizes":
                parts[f"{layer}, {basis}"] = partial(on_basis, seen, layer, basis, args.permutations)
            if args.only != "photos":
                parts[f"sizes, {layer}, {basis}"] = partial(on_sizes, seen, layer, basis)
    for name, measured in tqdm(parts.items(), "study"):
        if name not in result:
            result[name] = measured()
            file.write_text(json.dumps(result, indent=1))
        print(json.dumps({name: result[name]}), flush=True)


if __name__ == "__main__":
    main()
