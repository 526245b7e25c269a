"""The whole way (label, evaluate, compare) on small worlds of pictures whose answer is planted."""

import dataclasses
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor
from torch.nn.functional import normalize

from saelab.compare.checks import shuffled_calls
from saelab.compare.evidence import Ground, TestImages
from saelab.compare.inputs import ComparedBasis, Settings, Setup, selected
from saelab.compare.pairs import compare_groups
from saelab.compare.verdicts import correct_all, decide_all
from saelab.evaluate import evaluate
from saelab.evaluate.faithfulness import Judges, Splits
from saelab.label.assign import pearson
from saelab.label.mine import statuses
from saelab.truth import Similarity, Truth
from saelab.units import UnitActivations

IMAGES, D_TEXT = 400, 24
WORDS = (
    "anchor",
    "apple",
    "bear",
    "bell",
    "bird",
    "boat",
    "bottle",
    "bridge",
    "camel",
    "candle",
    "car",
    "castle",
    "cat",
    "chair",
    "clock",
    "cloud",
    "coin",
    "dog",
    "door",
    "drum",
    "eagle",
    "fish",
    "flower",
    "fork",
    "guitar",
    "hammer",
    "horse",
    "island",
    "kite",
    "ladder",
    "lamp",
    "moon",
    "orange",
    "piano",
    "river",
    "shoe",
    "spoon",
    "train",
    "tree",
    "wheel",
)
FEW = 24  # concepts that neurons are about in the worlds where they are about few
ABSTAIN_BELOW = 0.2  # Pearson score below which a unit of a planted world gets no label
CORRECT, FALSE_ALARMS = 0.9, 0.09  # at least so many called right; at most so many false (an exact 5 % test: 9 of 100)
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
    """Images with three concepts each, seen through two noisy encoders."""
    generator = torch.Generator().manual_seed(seed)
    concepts = len(WORDS)
    labels = normalize(torch.randn(concepts, D_TEXT, generator=generator), dim=1)
    member = torch.zeros(IMAGES, concepts, dtype=torch.bool)
    member.scatter_(1, torch.rand(IMAGES, concepts, generator=generator).topk(3, dim=1).indices, True)
    seen = [member.float() @ labels + 0.2 * torch.randn(IMAGES, D_TEXT, generator=generator) for _ in range(2)]
    return Planted(member, normalize(seen[0], dim=1), normalize(seen[1], dim=1), labels)


def bases(seed: int, gain: float, control: bool = True, concepts: int = len(WORDS)) -> list[ComparedBasis]:
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
) -> ComparedBasis:
    """Units of a planted world labelled by the scorers (the first one's label is final) and evaluated.

    Eight parameters: a ComparedBasis' facts, its activations and world; the last three have defaults.
    """
    evidence = judges(world)
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
    test = acts[IMAGES // 2 :]
    return ComparedBasis(name, group or name, kind, seed, "planted", control, setup, rows, acts=lambda: test)


def judges(world: Planted) -> Judges:
    """What labels of a planted world are measured against."""
    column = {text: i for i, text in enumerate(WORDS)}
    truth = Truth(world.member, column, tuple(WORDS), torch.ones(IMAGES, dtype=torch.bool), "planted")
    judge = Similarity.of("planted judge", world.judge, WORDS, world.labels)
    return Judges(judge, Similarity.of("planted captions", world.captions, WORDS, world.labels), truth)


def test_images(world: Planted) -> TestImages:
    """The second half of the images."""
    return TestImages(judges(world), np.arange(IMAGES // 2, IMAGES))


def check_whole_way(worlds: int = 100, gain: float = 0.2) -> Iterator[dict[str, Any]]:
    """How often labelling, evaluating and comparing together are right about features against neurons.

    Four checks over `worlds` seeds each: features are better (called so in at least 90 %); the same with their labels
    shuffled (a difference in a correlation is a false alarm); features are not better; nor are they where neurons are
    about few concepts (a verdict is a false alarm). False alarms: at most 9 %. A world whose neurons have too few
    labels for an interval gets no verdict, right or wrong: in the last two checks another takes its place.
    """
    verdicts, shuffled = [], 0
    for seed in range(worlds):
        made = bases(seed, gain, False)
        verdicts.append(verdict(made, seed))
        features, neurons = _sides(made)
        shuffled += bool(shuffled_calls(features, neurons, ground(made, seed), SETTINGS))
    called = verdicts.count("a")
    yield _report("features truly better", called, called >= CORRECT * worlds, f"called in {called} of {worlds}")
    yield _report("shuffled labels", shuffled, shuffled <= FALSE_ALARMS * worlds, f"{shuffled} false alarms")
    for check, concepts, first in (
        ("features no better", len(WORDS), worlds),
        ("features no better, neurons about few concepts", FEW, 2 * worlds),
    ):
        found, refused = _given(first, worlds, concepts)
        alarms = sum(answer != "none" for answer in found)
        passed = len(found) == worlds and alarms <= FALSE_ALARMS * worlds
        detail = f"{alarms} false alarms in {len(found)} verdicts, {refused} refused beside them"
        yield _report(check, alarms, passed, detail)


def _given(first: int, worlds: int, concepts: int) -> tuple[list[str], int]:
    """Verdicts on so many worlds without a difference, from a seed on, and how many worlds got none on the way."""
    found: list[str] = []
    seed = first
    while len(found) < worlds and seed < first + 2 * worlds:
        answer = verdict(bases(seed, 0.0, False, concepts), seed)
        found += [] if answer == "refused" else [answer]
        seed += 1
    return found, seed - first - len(found)


def ground(made: Sequence[ComparedBasis], seed: int) -> Ground:
    """The bases' common ground in the planted world of a seed."""
    kept = {basis.name: selected(basis, SETTINGS) for basis in made}
    return Ground(test_images(planted(seed)), kept, SETTINGS.parts, SETTINGS.seed)


def verdict(made: Sequence[ComparedBasis], seed: int) -> str:
    """What `compare` answers on label faithfulness, features against neurons."""
    features, neurons = _sides(made)
    pairs = compare_groups(features, neurons, ground(made, seed), SETTINGS, ("caption_r",))
    settings = dataclasses.asdict(SETTINGS)
    result: dict[str, Any] = {"pairs": pairs, "methods": [], "primary": "caption_r", "settings": settings}
    correct_all([result])
    decide_all(result)
    return next(
        (r["verdict"] for r in pairs[0]["results"] if r["counting"] == "named" and r["p"] is not None), "refused"
    )


def _sides(made: Sequence[ComparedBasis]) -> tuple[list[ComparedBasis], list[ComparedBasis]]:
    return [b for b in made if b.kind == "sae"], [b for b in made if b.kind == "neuron"]


def _report(check: str, count: int, passed: bool, detail: str) -> dict[str, Any]:
    return {"check": check, "count": count, "passed": bool(passed), "detail": detail}
