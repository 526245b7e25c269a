"""What does "melanoma" rest on, in a network that never saw a lesion? The page docs/melanoma.md, made by one command.

`python scripts/studies/melanoma.py FOLDER > docs/melanoma.md`, FOLDER with PH2's pictures and PH2_dataset.txt (Mendonça
et al., EMBC 2013; for research and education). The head is a logistic regression on the outputs of EfficientNet-Lite0,
fitted on each split's mine pictures. Everything is repeated over splits, and every table has its control.
"""

import argparse
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import melanoma_page as page
import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import roc_auc_score
from sklearn.model_selection import GridSearchCV, StratifiedGroupKFold
from torch import Tensor
from tqdm import tqdm

from saelab import hosts, images
from saelab.effects.ablate import Active
from saelab.hosts import Host
from saelab.images import ImageSet
from saelab.label.scorers.invert import invert_auc
from saelab.sae import SAEConfig, TrainConfig, fit
from saelab.units.bases import Projection
from saelab.units.pooling import pool_tokens

LAYER, WIDTH = "_blocks.15", 320
COLUMNS = ["Clinical Diagnosis", "Asymmetry", "Pigment Network", "Dots/Globules", "Streaks", "Regression Areas"]
COLUMNS += ["Blue-Whitish Veil", "Colors"]
DISEASE = "Clinical Diagnosis: 2"
FEWEST = 8  # pictures with and without a concept in `mine`
SIGNS = ["Asymmetry: 2", "Blue-Whitish Veil: P", "Dots/Globules: AT", "Pigment Network: AT", "Regression Areas: P"]
SIGNS += ["Streaks: P"]  # what speaks for melanoma: these units are taken out
TOGETHER, SETS = 5, 20  # units of a concept that are taken out at once; random sets of as many
SHOWN = 20  # test pictures on which they are taken out, at most
PERMUTATIONS = 1000
SAE_OF = SAEConfig(WIDTH, 640, k=16, lr=2e-3)
TRAIN = TrainConfig(batch_size=512, epochs=30)


@dataclass(frozen=True)
class Lesions:
    """The pictures, what dermatologists say of each, and what the host makes of them."""

    names: tuple[str, ...]  # of the concepts
    concepts: Bool[np.ndarray, "images concepts"]
    groups: Int[np.ndarray, "images"]  # near-duplicates
    tokens: Float[Tensor, "images tokens d_in"]
    outputs: Float[np.ndarray, "images outputs"]  # the host's answers
    host: Host

    @property
    def melanoma(self) -> Bool[np.ndarray, "images"]:
        """The dermatologists' diagnosis."""
        return self.concepts[:, self.names.index(DISEASE)]


def read(folder: Path) -> Lesions:
    """PH2 through EfficientNet-Lite0."""
    made = images.load(
        "csv",
        table=str(folder / "PH2_dataset.txt"),
        file="Name",
        separator=r"\s*\|+\s*",
        between=r"\s+",
        concepts=COLUMNS,
    )
    names = tuple(sorted({name for own in made.classes for name in own}))
    concepts = np.array([[name in own for name in names] for own in made.classes])
    host = hosts.load("efficientnet_lite0")
    tokens = torch.cat([host.tokens(part, [LAYER])[LAYER].float() for part in _batches(host, made)])
    return Lesions(names, concepts, made.groups, tokens, _resume(host, tokens).numpy(), host)


def _batches(host: Host, made: ImageSet) -> list[Tensor]:
    places = np.array_split(np.arange(len(made)), max(1, len(made) // 20))
    return [host.load_images([made.load(int(i)) for i in some]) for some in tqdm(places, "pictures", unit="batch")]


def _resume(host: Host, tokens: Float[Tensor, "images tokens d_in"]) -> Float[Tensor, "images outputs"]:
    with torch.inference_mode():
        return torch.cat([host.resume(part, LAYER) for part in tokens.split(200)]).float()


@dataclass(frozen=True)
class Head:
    """The logit of melanoma, linear in the host's outputs."""

    weight: Float[Tensor, "outputs"]
    bias: float

    def __call__(self, outputs: Float[Tensor, "*images outputs"]) -> Float[Tensor, "*images"]:
        return outputs.double() @ self.weight + self.bias


def fit_head(outputs: Float[np.ndarray, "mine outputs"], sick: Bool[np.ndarray, "mine"], groups: np.ndarray) -> Head:
    """Logistic regression on standardised outputs; its penalty by cross-validation inside the same pictures."""
    mean, std = outputs.mean(0, dtype=np.float64), outputs.std(0, dtype=np.float64) + 1e-6
    scaled = (outputs - mean) / std
    # Fewer pictures than outputs: in the span of the pictures the penalised answer is the same, and found faster.
    span = np.linalg.svd(scaled, full_matrices=False)[2]
    folds = list(StratifiedGroupKFold(5, shuffle=True, random_state=0).split(outputs, sick, groups))
    plain = LogisticRegression(class_weight="balanced", max_iter=5000)
    search = GridSearchCV(plain, {"C": np.logspace(-6, -1, 6)}, scoring="roc_auc", cv=folds)
    chosen = search.fit(scaled @ span.T, sick).best_estimator_
    weight = (chosen.coef_[0] @ span) / std
    return Head(torch.from_numpy(weight), float(chosen.intercept_[0] - weight @ mean))


def max_corrected(
    acts: Float[Tensor, "images units"], concepts: Bool[np.ndarray, "images concepts"], seed: int
) -> tuple[Int[np.ndarray, "concepts"], Float[np.ndarray, "concepts"], Float[np.ndarray, "concepts"]]:
    """Each concept's best unit by AUROC, that AUROC, and how often the best of all units does as well by chance.

    Chance deals each concept out anew over the pictures (`PERMUTATIONS` times), and again takes the best unit: a p that
    knows how many units were tried. Its lowest value is 1 / (PERMUTATIONS + 1).
    """
    real = torch.from_numpy(concepts)
    areas = invert_auc(acts, real).nan_to_num(0.5)
    best = areas.argmax(0)
    rng = np.random.default_rng(seed)
    orders = np.stack([rng.permutation(len(concepts)) for _ in range(PERMUTATIONS)])
    p = []
    for c in range(concepts.shape[1]):
        dealt = torch.from_numpy(concepts[:, c][orders].T.copy())
        chance = invert_auc(acts, dealt).nan_to_num(0.5).amax(0)
        p.append(float(((chance >= areas[best[c], c]).sum() + 1) / (PERMUTATIONS + 1)))
    return best.numpy(), areas[best, torch.arange(len(best))].double().numpy(), np.array(p)


def split_pictures(made: Lesions, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Three fifths of the pictures to mine and two fifths to test, as many melanomas in each; groups stay together."""
    folds = list(
        StratifiedGroupKFold(5, shuffle=True, random_state=seed).split(made.outputs, made.melanoma, made.groups)
    )
    test = np.sort(np.concatenate([folds[0][1], folds[1][1]]))
    return np.setdiff1d(np.arange(len(made.groups)), test), test


def measure(made: Lesions, seed: int) -> dict[str, list[dict[str, Any]]]:
    """The rows of one split: how good the head is, each concept's best units, and what they do to the head."""
    mine, test = split_pictures(made, seed)
    head = fit_head(made.outputs[mine], made.melanoma[mine], made.groups[mine])
    dealt = np.random.default_rng(seed).permutation(made.melanoma[mine])
    control = fit_head(made.outputs[mine], dealt, made.groups[mine])
    answers = torch.from_numpy(made.outputs[test])
    rows: dict[str, list[dict[str, Any]]] = {
        "head": [
            {"real": _auroc(made.melanoma[test], head(answers)), "dealt": _auroc(made.melanoma[test], control(answers))}
        ]
    }
    tokens = made.tokens[mine].flatten(0, 1)
    sae = fit(tokens, SAE_OF, TRAIN, progress=False).sae
    rows |= {"best": [], "effects": []}
    for basis, project in (("neurons", Projection()), ("SAE features", Projection(sae=sae))):
        found, effects = of_basis(made, project, head, mine, test, seed)
        rows["best"] += [{"basis": basis, **row} for row in found]
        rows["effects"] += [{"basis": basis, **row} for row in effects]
    return rows


def of_basis(
    made: Lesions, project: Projection, head: Head, mine: np.ndarray, test: np.ndarray, seed: int
) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Each concept's best unit and its p; what the concept's best units, taken out together, do to the head."""
    shape = made.tokens.shape[:2]
    acts = pool_tokens(project(made.tokens.flatten(0, 1)).unflatten(0, shape), "max")
    counts = made.concepts[mine].sum(0)
    kept = np.flatnonzero((counts >= FEWEST) & (counts <= len(mine) - FEWEST) & made.concepts[test].any(0))
    best, area, p = max_corrected(acts[mine], made.concepts[mine][:, kept], seed)
    shuffled = made.concepts[mine][np.random.default_rng(seed).permutation(len(mine))][:, kept]
    chance_p = max_corrected(acts[mine], shuffled, seed)[2]
    areas = invert_auc(acts[mine], torch.from_numpy(made.concepts[mine])).nan_to_num(0.5)
    rows, effects = [], []
    for i, c in enumerate(kept):
        held = _auroc(made.concepts[test, c], acts[test, best[i]])
        known: dict[str, Any] = {"concept": made.names[c], "pictures": int(counts[c])}
        rows.append({**known, "mine": area[i], "test": held, "p": p[i], "chance_p": chance_p[i]})
        together = areas[:, c].topk(TOGETHER).indices.numpy()
        if made.names[c] in SIGNS:
            shown = test[made.concepts[test, c]][:SHOWN]
            telling = areas[:, made.names.index(DISEASE)]
            effects.append({**known, **ablate(made, project, head, together, telling, shown, seed)})
    return rows, effects


def ablate(
    made: Lesions,
    project: Projection,
    head: Head,
    together: Int[np.ndarray, "some"],
    telling: Float[Tensor, "units"],
    ids: Int[np.ndarray, "images"],
    seed: int,
) -> dict[str, float]:
    """How much the melanoma logit falls without these units, and without as many others.

    `telling`: each unit's AUROC of melanoma on mine. A set of a control has, for each unit, one of the ten others that
    are nearest to it: in the length of their parts on these pictures (`loud`), or in how well they tell melanoma
    (`telling`). Of each control the mean fall, and the share of sets that make the logit fall less (ties count half).
    """
    active = Active.of(project, made.tokens[ids])
    writes = project.writes(WIDTH)
    rng = np.random.default_rng(seed)
    controls = {"loud": active.lengths * writes.norm(dim=1), "telling": telling}
    sets = {name: draw_sets(values, together, rng) for name, values in controls.items()}
    before = head(_resume(made.host, active.tokens)).mean()

    def fall(units: np.ndarray) -> float:
        part = (active.acts[..., units] * active.scale) @ writes[units]
        return float(before - head(_resume(made.host, active.tokens - part)).mean())

    own = fall(together)
    row = {"fall": own}
    for name, drawn in sets.items():
        falls = np.array([fall(units) for units in drawn])
        smaller = float((falls < own).mean() + (falls == own).mean() / 2)
        row |= {name: float(falls.mean()), f"above_{name}": smaller}
    return row


def draw_sets(
    values: Float[Tensor, "units"], together: Int[np.ndarray, "some"], rng: np.random.Generator
) -> list[Int[np.ndarray, "some"]]:
    """`SETS` sets that have, for each of these units, one of the ten others of the nearest value; none twice."""
    others = np.setdiff1d(np.arange(len(values)), together)
    sets = []
    for _ in range(SETS):
        chosen: list[int] = []
        for u in together:
            free = np.setdiff1d(others, chosen)
            near = free[(values[free] - values[u]).abs().argsort()[:10].numpy()]
            chosen.append(int(rng.choice(near)))
        sets.append(np.array(chosen))
    return sets


def _auroc(truth: Sequence[bool] | np.ndarray, score: Tensor) -> float:
    return float(roc_auc_score(truth, score.numpy()))


def main() -> None:
    """Measure on every split, and print the page."""
    parser = argparse.ArgumentParser(description="What does melanoma rest on?")
    parser.add_argument("folder", type=Path, help="PH2's pictures and PH2_dataset.txt")
    parser.add_argument("--splits", type=int, default=10)
    given = parser.parse_args()
    torch.manual_seed(0)
    made = read(given.folder)
    found = [measure(made, seed) for seed in tqdm(range(given.splits), "splits", unit="split")]
    sys.stdout.write(page.draw(made.names, made.concepts, found))


if __name__ == "__main__":
    main()
