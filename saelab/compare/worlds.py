"""Planted worlds whose answer is known, drawn as tensors: is a difference called where there is none?

A world has images with a few concepts each (mostly of one topic), a label for each concept, and two bases whose units
follow concepts with a quality between 0 and 1. Everything is drawn anew in every world: the images, which concepts a
basis is about, and how well its units follow them. So the truth that an interval has to hold is the difference between
two *recipes* of units, over fresh units and fresh images, not that between these units on these images.
"""

from dataclasses import dataclass, field

import numpy as np
import torch
from jaxtyping import Float

from saelab.compare.shared import Difference, difference
from saelab.compare.sides import Side

CONCEPTS, TOPICS, D_TEXT = 120, 6, 48
QUALITY, SPREAD = 0.5, 0.2  # mean and standard deviation of how well units follow their concepts


@dataclass(frozen=True)
class Recipe:
    """How the units of a basis are drawn."""

    units: int = 60
    seeds: int = 1
    copies: int = 1  # units that are the same one but for noise
    shared: int = 0  # concepts that all seeds find, with one quality
    topics: int = TOPICS  # topics that units are about
    seed_spread: float = 0.0  # standard deviation of what a seed adds to all of its qualities


@dataclass(frozen=True)
class Kind:
    """A kind of world."""

    name: str
    features: Recipe = field(default=Recipe(seeds=3))
    neurons: Recipe = field(default=Recipe())
    images: int = 174
    series: int = 1  # images of a series: one scene, nearly the same activations
    heavy: bool = False  # activations with heavy tails


COPIES = Recipe(units=160, copies=8)  # 20 concepts x 8
KINDS = (
    Kind("independent"),
    Kind("copies", Recipe(units=160, copies=8, seeds=3), COPIES),
    Kind("copies, one seed", COPIES, COPIES),
    Kind("seeds share 40 features", Recipe(seeds=3, shared=40)),
    Kind("copies and shared seeds", Recipe(units=160, copies=4, seeds=3, shared=20), COPIES),
    Kind("seeds differ", Recipe(seeds=3, seed_spread=0.05)),
    Kind("neurons on 2 of 6 topics", neurons=Recipe(topics=2)),
    Kind("4,096 against 160 units", Recipe(units=4096), Recipe(units=160)),
    Kind("60 images", images=60),
    Kind("series of 5 images", images=175, series=5),
    Kind("heavy tails", heavy=True),
)

Array = Float[np.ndarray, "images units"]


@dataclass(frozen=True)
class World:
    """Images of a planted world."""

    member: np.ndarray  # bool [images, concepts]
    similarity: np.ndarray  # [images, concepts]: of each caption to each concept's label
    drive: np.ndarray  # [images]: what moves all units, and goes with some labels
    groups: np.ndarray  # series of each image


def compared(kind: Kind, seed: int, gain: float = 0.0, images: int | None = None) -> Difference:
    """Features, their quality higher by `gain`, against neurons in one world of a kind."""
    rng = np.random.default_rng([seed, KINDS.index(kind)])
    world = draw(kind, images or kind.images, rng)
    a = basis(world, kind, kind.features, QUALITY + gain, rng)
    return difference(a, basis(world, kind, kind.neurons, QUALITY, rng), torch.from_numpy(world.groups))


def draw(kind: Kind, images: int, rng: np.random.Generator) -> World:
    """Scenes of three concepts, mostly of one topic, each photographed `series` times."""
    scenes, each = images // kind.series, CONCEPTS // TOPICS
    topic_of = np.repeat(np.arange(TOPICS), each)
    labels = 0.6 * rng.normal(size=(TOPICS, D_TEXT))[topic_of] + 0.8 * rng.normal(size=(CONCEPTS, D_TEXT))
    labels /= np.linalg.norm(labels, axis=1, keepdims=True)
    topic = rng.integers(TOPICS, size=scenes)
    member = np.zeros((scenes, CONCEPTS), dtype=bool)
    for _ in range(3):
        own = np.where(rng.random(scenes) < 0.7, topic, rng.integers(TOPICS, size=scenes))
        member[np.arange(scenes), own * each + rng.integers(each, size=scenes)] = True
    member, drive = (x.repeat(kind.series, 0) for x in (member, rng.normal(size=scenes)))
    toward = 0.5 * rng.normal(size=D_TEXT) / np.sqrt(D_TEXT)
    captions = member @ labels + 0.075 * noise(kind, scenes, D_TEXT, rng) + 0.5 * drive[:, None] * toward
    captions /= np.linalg.norm(captions, axis=1, keepdims=True)
    return World(member, captions @ labels.T, drive, np.arange(scenes).repeat(kind.series))


def noise(kind: Kind, scenes: int, columns: int, rng: np.random.Generator) -> Array:
    """Normal noise, of which images of a series share four fifths of the variance."""
    if kind.series == 1:
        return rng.normal(size=(scenes, columns))
    common = rng.normal(size=(scenes, columns)).repeat(kind.series, 0)
    return np.sqrt(0.8) * common + np.sqrt(0.2) * rng.normal(size=common.shape)


def basis(world: World, kind: Kind, recipe: Recipe, quality: float, rng: np.random.Generator) -> Side:
    """Units drawn by a recipe, each labelled with its concept."""
    pool = CONCEPTS * recipe.topics // TOPICS
    shared = _concepts(recipe.shared, pool, quality, recipe, rng)
    acts, target, labels = [], [], []
    for _ in range(recipe.seeds):
        own = _concepts(recipe.units // recipe.copies - recipe.shared, pool, quality, recipe, rng)
        concept, q = (np.concatenate(both).repeat(recipe.copies) for both in zip(shared, own))
        if recipe.copies > 1 or recipe.shared:
            q = q + 0.03 * rng.normal(size=len(q))
        q = (q + recipe.seed_spread * rng.normal()).clip(0, 1)
        acts.append(torch.from_numpy(_activations(world, kind, concept, q, rng)))
        target.append(torch.from_numpy(world.similarity[:, concept]))
        labels.append([str(c) for c in concept])
    return Side(acts, target, labels)


def _concepts(
    n: int, pool: int, quality: float, recipe: Recipe, rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
    concept = rng.choice(pool, n, replace=recipe.copies == 1 or n > pool)
    return concept, quality + SPREAD * rng.normal(size=n)


def _activations(world: World, kind: Kind, concept: np.ndarray, q: np.ndarray, rng: np.random.Generator) -> Array:
    """relu(2 q x concept + 0.6 noise + 0.2 drive - 0.4); heavy tails: a log-normal response and Student's t noise."""
    there = world.member[:, concept].astype(float)
    if kind.heavy:
        there = there * rng.lognormal(0, 0.8, size=there.shape)
        random = 0.7 * rng.standard_t(2.5, size=there.shape)
    else:
        random = noise(kind, len(there) // kind.series, len(concept), rng)
    return np.maximum(2 * q * there + 0.6 * random + 0.2 * world.drive[:, None] - 0.4, 0)
