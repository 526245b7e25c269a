"""Search: a planted unit is found by its words and by its picture, dense and sparse alike."""

import pytest
import torch
from torch.nn.functional import normalize

from saelab.errors import UserError
from saelab.label import search
from saelab.label.assign import Evidence


@pytest.fixture
def world():
    """Unit u fires where concept u is present; images are noisy sums of their concepts."""
    generator = torch.Generator().manual_seed(0)
    concepts = normalize(torch.randn(12, 64, generator=generator), dim=1)
    present = torch.rand(400, 12, generator=generator) < 0.15
    images = normalize(present.float() @ concepts + 0.05 * torch.randn(400, 64, generator=generator), dim=1)
    acts = present.float() * torch.rand(400, 12, generator=generator).add(0.5) * torch.linspace(1, 30, 12)
    return concepts, images, acts


@pytest.mark.parametrize("scorer", search.ALONE)
def test_words_find_their_unit(world, scorer):
    concepts, images, acts = world
    evidence = Evidence.mined(acts, images, concepts, k=20)
    for unit in range(12):
        hits = search.text_to_units(concepts[unit], evidence, scorer, top=3)
        assert hits.units[0] == unit and (hits.scores[0] > hits.scores[1]).item()


def test_a_competing_scorer_is_refused(world):
    concepts, images, acts = world
    with pytest.raises(UserError, match="soft_wpmi"):
        search.text_to_units(concepts[0], Evidence.mined(acts, images, concepts, k=20), "soft_wpmi")


@pytest.mark.parametrize("layout", ["dense", "sparse"])
def test_a_picture_finds_the_units_that_it_fires_unusually(world, layout):
    _, _, acts = world
    always = torch.rand(400, 1, generator=torch.Generator().manual_seed(1)) + 50  # fires everywhere, strongest of all
    acts = torch.cat([acts, always], dim=1)
    picture = torch.zeros(13)
    picture[[3, 8]] = acts[:, [3, 8]].amax(0) * torch.tensor([0.9, 1.1])
    picture[12] = always.median()
    stored = acts if layout == "dense" else acts.to_sparse_csr()
    hits = search.image_to_units(picture, stored, top=5)
    assert hits.units.tolist() == [8, 3, 12]  # by rank among images, not by raw activation; silent units left out
    n, as_much = len(acts), (acts >= picture).double().sum(0)
    brute = (
        torch.log((n + 1) / (1 + as_much)) / torch.log(torch.tensor(n + 1.0)) * (picture / acts.amax(0)).clamp(max=1)
    )
    torch.testing.assert_close(hits.scores, brute[hits.units].float())
    less = ((acts < picture).double() + 0.5 * (acts == picture).double()).mean(0)
    torch.testing.assert_close(hits.below, less[hits.units].float())
    torch.testing.assert_close(hits.shares, torch.tensor([1.1, 0.9, (picture[12] / always.max()).item()]))


def test_what_fires_a_rare_unit_faintly_is_not_put_before_what_fires_strongly(world):
    """By rank alone the rare unit would be first, by strength alone the one that always fires."""
    _, _, acts = world
    rare = torch.zeros(400, 3)
    rare[:3] = torch.tensor([1.0, 2.0, 30.0])[:, None]
    always = torch.full((400, 1), 2.0)
    acts = torch.cat([acts, rare, always], dim=1)
    picture = torch.zeros(16)
    picture[3] = acts[:, 3].amax() * 0.8
    picture[[12, 13, 14]] = torch.tensor([31.0, 7.0, 0.19 * 30])  # strongly, at .23 of its highest, under a fifth
    picture[15] = 2.0
    below = (acts < picture).double().mean(0)
    assert below[14] > below[3], "rank alone is fooled"
    hits = search.image_to_units(picture, acts, top=16)
    assert hits.units.tolist() == [12, 3, 13, 15]
    assert hits.scores[-1] == 0, "as every image does"


def test_a_unit_that_no_image_fires_is_not_named(world):
    """Nothing is usual for it, so nothing is unusual."""
    _, _, acts = world
    acts = torch.cat([acts, torch.zeros(400, 1)], dim=1)
    picture = torch.zeros(13)
    picture[12] = 5.0
    assert len(search.image_to_units(picture, acts).units) == 0
