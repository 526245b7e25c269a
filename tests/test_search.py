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
    brute = ((acts < picture).double() + 0.5 * (acts == picture).double()).mean(0)
    torch.testing.assert_close(hits.scores, brute[hits.units].float())
