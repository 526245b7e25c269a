"""Two meanings of a unit: marked where two things are planted, rarely where one is, and not where there is nothing."""

import math

import pytest
import torch

from saelab import planted
from saelab.label.clusters import Chance, meanings
from saelab.label.scorers.memberships import Memberships
from saelab.metrics.two_means import two_means


@pytest.fixture(scope="module")
def world():
    return planted.make(planted.WorldSpec(images=6000, units=2, scene=0.3, seed=5))


@pytest.fixture(scope="module")
def chance(world):
    return Chance(world.image_emb, world.label_emb)


def marked(world, chance, ids):
    found = meanings(world.image_emb[ids], torch.ones(ids.shape), world.label_emb, chance)
    return sum(len(unit) == 2 for unit in found) / len(found)


def of_children(world, count, each, generator):
    """Sets of images, `each` of so many children with different parents."""
    children = [c for c in range(len(world.parent)) if world.parent[c] != c and int(world.truth[:, c].sum()) >= each]
    sets = []
    while len(sets) < 100:
        chosen = [children[i] for i in torch.randperm(len(children), generator=generator)[:count].tolist()]
        if len({int(world.parent[c]) for c in chosen}) == count:
            sets.append(torch.cat([world.truth[:, c].nonzero()[:each, 0] for c in chosen]))
    return torch.stack(sets)


@pytest.mark.parametrize("k", [4, 12, 30])
def test_images_with_nothing_in_common_are_no_two_meanings(world, chance, k):
    """95 % of random sets must not pass; 8 % are four standard errors from 5."""
    g = torch.Generator().manual_seed(k)
    ids = torch.stack([torch.randperm(6000, generator=g)[:k] for _ in range(400)])
    assert marked(world, chance, ids) < 0.08


def test_two_things_are_two_meanings_and_one_is_one(world, chance):
    g = torch.Generator().manual_seed(1)
    assert marked(world, chance, of_children(world, 1, 12, g)) < 0.1
    assert marked(world, chance, of_children(world, 2, 6, g)) > 0.8


def test_evidence_is_the_weaker_sides_best_label_in_loops(world, chance):
    z = Memberships(world.image_emb @ world.label_emb.T).z()
    g = torch.Generator().manual_seed(2)
    ids = torch.stack([torch.randperm(6000, generator=g)[:9] for _ in range(5)])
    pos, valid = world.image_emb[ids], torch.ones(5, 9, dtype=torch.bool)
    valid[1, 6:] = False
    second = two_means(pos, valid)
    found = chance.evidence(pos, second, valid)
    for unit in range(5):
        own = ids[unit][valid[unit]]
        other = second[unit][valid[unit]]
        sides = [float((z[own[side]].sum(0) / math.sqrt(int(side.sum()))).max()) for side in (other, ~other)]
        assert float(found[unit]) == pytest.approx(min(sides), rel=1e-3)


def test_the_bar_holds_to_its_seed_and_is_drawn_from_the_images(world, chance):
    assert chance.bar(8) == Chance(world.image_emb, world.label_emb).bar(8)
    assert chance.bar(8) != Chance(world.image_emb, world.label_emb, seed=1).bar(8)
