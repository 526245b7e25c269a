"""Does the comparison itself tell the truth? Checks on worlds whose answer is planted.

`python -m saelab.compare.validity --worlds 100` runs the planted checks and prints one JSON line each.
"""

import argparse
import dataclasses
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor
from torch.nn.functional import normalize

from saelab.compare.answers import answers
from saelab.compare.checks import decided, shuffled_calls
from saelab.compare.inputs import Basis, Index, Settings, Setup, selected
from saelab.evaluate import evaluate
from saelab.evaluate.faithfulness import Judges, Splits
from saelab.label.assign import pearson
from saelab.label.mine import statuses
from saelab.truth import Similarity, Truth
from saelab.units import UnitActivations

IMAGES, D_TEXT = 200, 24
WORDS = (
    "apple",
    "bird",
    "boat",
    "bridge",
    "car",
    "castle",
    "cat",
    "cloud",
    "dog",
    "fish",
    "flower",
    "horse",
    "moon",
    "tree",
)
FEW = 5  # concepts that neurons are about in the worlds where they are about few
ABSTAIN_BELOW = 0.2  # Pearson score below which a unit of a planted world gets no label
CORRECT, FALSE_ALARMS = 0.95, 0.09  # at least so many called right; at most so many false (an exact 5 % test: 9 of 100)
SETTINGS = Settings(resamples=500)

Scorer = Callable[[Tensor, Tensor, Tensor], Tensor]  # acts, image embeddings, label embeddings -> [units, labels]


@dataclasses.dataclass(frozen=True)
class Planted:
    """A small world of images, concepts and units in which it is known which basis follows concepts better."""

    member: Bool[Tensor, "images concepts"]  # concepts of each image
    judge: Float[Tensor, "images d_text"]  # what the image encoder makes of it
    captions: Float[Tensor, "images d_text"]  # what people wrote of it
    labels: Float[Tensor, "labels d_text"]  # one label a concept


def planted(seed: int) -> Planted:
    """Images with two concepts each, seen through two noisy encoders."""
    generator = torch.Generator().manual_seed(seed)
    concepts = len(WORDS)
    labels = normalize(torch.randn(concepts, D_TEXT, generator=generator), dim=1)
    member = torch.zeros(IMAGES, concepts, dtype=torch.bool)
    member.scatter_(1, torch.rand(IMAGES, concepts, generator=generator).topk(2, dim=1).indices, True)
    seen = [member.float() @ labels + 0.2 * torch.randn(IMAGES, D_TEXT, generator=generator) for _ in range(2)]
    return Planted(member, normalize(seen[0], dim=1), normalize(seen[1], dim=1), labels)


def bases(seed: int, gain: float, control: bool = True, concepts: int = len(WORDS)) -> list[Basis]:
    """Neurons (40), three seeds of an SAE (60 features each) and, as `control`, a random rotation (40) of one world.

    A unit is (q x its concept + noise), q between 0 and 1. Neurons and features draw q alike (mean 0.5), plus `gain`
    for features; each SAE seed shifts all of its q by a number of its own (standard deviation 0.02), as real seeds do.
    The rotation's q is 0.1. Neurons are about the first `concepts` only. Labelled by Pearson on the first half of the
    images, evaluated on the second.
    """
    world = planted(seed)
    generator = torch.Generator().manual_seed(1_000_003 + seed)
    rng = np.random.default_rng(seed)
    made = [evaluated("neurons", "neuron", None, units(world, 40, 0.5, generator, concepts), world)]
    for s in range(3):
        q = 0.5 + gain + 0.02 * float(rng.normal())
        made.append(evaluated(f"features {s}", "sae", s, units(world, 60, q, generator), world, group="features"))
    if not control:
        return made
    rotation = units(world, 40, 0.1, generator)
    return [*made, evaluated("random rotation", "random_rotation", 0, rotation, world, control=True)]


def units(
    world: Planted, n: int, quality: float, generator: torch.Generator, concepts: int = len(WORDS)
) -> Float[Tensor, "images units"]:
    """Activations of n units, each relu(2 q x concept + noise - 0.4) with q around `quality` (spread 0.15)."""
    concept = torch.randint(concepts, (n,), generator=generator)
    q = (quality + 0.15 * torch.randn(n, generator=generator)).clamp(0, 1)
    noise = torch.randn(IMAGES, n, generator=generator)
    return torch.relu(2 * q * world.member[:, concept] + 0.6 * noise - 0.4)


def evaluated(
    name: str,
    kind: str,
    seed: int | None,
    acts: Tensor,
    world: Planted,
    group: str | None = None,
    control: bool = False,
    scorers: Mapping[str, Scorer] = {"pearson": pearson},
) -> Basis:
    """Units of a planted world labelled by the scorers (the first one's label is final) and evaluated."""
    column = {text: i for i, text in enumerate(WORDS)}
    truth = Truth(world.member, column, tuple(WORDS), torch.ones(IMAGES, dtype=torch.bool), "planted")
    judge = Similarity.of("planted judge", world.judge, WORDS, world.labels)
    evidence = Judges(judge, Similarity.of("planted captions", world.captions, WORDS, world.labels), truth)
    mine = acts[: IMAGES // 2]
    best = {n: scorer(mine, world.judge[: IMAGES // 2], world.labels).max(1) for n, scorer in scorers.items()}
    final = next(iter(scorers))
    labels = [
        {"unit": u, "status": status, "label": WORDS[int(best[final].indices[u])]}
        | {"abstained": float(best[final].values[u]) < ABSTAIN_BELOW}
        | {"scores": {n: {"label": WORDS[int(found.indices[u])]} for n, found in best.items()}}
        for u, status in enumerate(statuses(mine))
    ]
    splits = Splits(np.arange(IMAGES // 2), np.arange(IMAGES // 2, IMAGES))
    rows, _ = evaluate(UnitActivations(acts, kind, {}), labels, evidence, splits, resamples=0)
    setup = Setup(
        "planted", "world", "planted", "halves", "none", "positive", 30, "planted labeller", "planted judge", ""
    )
    return Basis(name, group or name, kind, seed, "planted", control, setup, rows)


def check_planted(worlds: int = 100, gain: float = 0.2) -> Iterator[dict[str, Any]]:
    """How often the whole way (label, evaluate, compare) is right about features against neurons.

    Four checks over `worlds` seeds each: features are better (called so on label faithfulness in at least 95 %); the
    same with their labels shuffled (a difference in a correlation is a false alarm); features are not better (any
    metric called is a false alarm); nor are they where neurons are about few concepts (a call on label faithfulness
    is a false alarm). False alarms: at most 9 %, the bound of an exact 5 % test for 100 worlds.
    """
    verdicts, shuffled = [], 0
    for seed in range(worlds):
        sides = _sides(bases(seed, gain, False))
        verdicts.append(_faithful(*sides))
        shuffled += bool(shuffled_calls(*sides, SETTINGS))
    called = verdicts.count("a")
    yield _report(
        "features truly better", called, worlds, called >= CORRECT * worlds, f"called in {called} of {worlds}"
    )
    yield _report("shuffled labels", shuffled, worlds, shuffled <= FALSE_ALARMS * worlds, f"{shuffled} false alarms")
    alarms = sum(bool(_calls(*_sides(bases(seed, 0.0, False)))) for seed in range(worlds, 2 * worlds))
    yield _report("features no better", alarms, worlds, alarms <= FALSE_ALARMS * worlds, f"{alarms} false alarms")
    few = (_sides(bases(seed, 0.0, False, FEW)) for seed in range(2 * worlds, 3 * worlds))
    alarms = sum(_faithful(*sides) != "none" for sides in few)
    check = "features no better, neurons about few concepts"
    yield _report(check, alarms, worlds, alarms <= FALSE_ALARMS * worlds, f"{alarms} false alarms")


Sides = tuple[list[Basis], list[Basis], dict[str, Index]]


def _sides(made: Sequence[Basis]) -> Sides:
    """Features, neurons, and the selected units of each basis: what `compare` starts from."""
    kept = {basis.name: selected(basis, SETTINGS) for basis in made}
    return [b for b in made if b.kind == "sae"], [b for b in made if b.kind == "neuron"], kept


def _faithful(features: list[Basis], neurons: list[Basis], kept: dict[str, Index]) -> str:
    """The answer on label faithfulness, as `compare` gives it for these bases."""
    pair = decided(features, neurons, kept, SETTINGS)
    found = answers({"pairs": [pair], "setup": dataclasses.asdict(features[0].setup)})
    return next(answer["verdict"] for answer in found if answer["family"] == "faithfulness")


def _calls(features: list[Basis], neurons: list[Basis], kept: dict[str, Index]) -> list[str]:
    """Metrics in which features and neurons are said to differ."""
    rows = decided(features, neurons, kept, SETTINGS)["results"]
    return [row["metric"] for row in rows if row["verdict"] != "none"]


def _report(check: str, count: int, of: int, passed: bool, detail: str) -> dict[str, Any]:
    return {"check": check, "count": count, "of": of, "passed": bool(passed), "detail": detail}


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="Check the comparison on planted worlds.")
    parser.add_argument("--worlds", type=int, default=100, help="seeds of each world")
    failed = False
    for line in check_planted(parser.parse_args().worlds):
        print(json.dumps(line), flush=True)
        failed |= not line["passed"]
    raise SystemExit(int(failed))
