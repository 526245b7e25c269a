"""What a class is made of: planted units, twins written out picture by picture, and the typicality of a picture."""

import numpy as np
import pytest
import torch
from effects_worlds import Planted
from hypothesis import given, settings
from hypothesis import strategies as st
from test_effects_attribution import Curved, draw

from saelab.effects import classes
from saelab.effects.ablate import Active, centred
from saelab.effects.attribute import of_output
from saelab.effects.classes import Usual, carriers, compare_to_class, find_class_units, outputs_of
from saelab.effects.targets import Outputs
from saelab.sae import SAE, Meta
from saelab.units.bases import Projection

GRID = (2, 2)


def sae_projection() -> Projection:
    sae = SAE(draw(1, 9, 5), draw(2, 9), draw(3, 9, 5), draw(4, 5), Meta(rule="topk", k=3, input_norm="unit"))
    return Projection(sae=sae)


@pytest.mark.parametrize("kind", ["neurons", "sae"])
def test_the_matrix_equals_a_loop_over_pictures_and_codes(kind, monkeypatch):
    """The twin: every picture alone, the derivative by the code itself, autograd through the decoder."""
    project = Projection() if kind == "neurons" else sae_projection()
    answers, writes = Curved(draw(5, 12, 4, 5), draw(6, 5, 7)), project.writes(5)
    ids, of = np.arange(12), np.array([0, 3, 3, 0, 6, 3, 0, 0, 3, 6, 3, 0])
    monkeypatch.setattr(classes, "AT_ONCE", 300)  # several batches a class
    found = find_class_units(answers, ids, of, project, writes, 7, GRID)
    assert found.outputs.tolist() == [0, 3, 6] and found.usual(1) is None and found.pictures(3) == 5
    expected = torch.zeros(3, len(writes), dtype=torch.float64)
    for i in ids:
        active = Active.of(project, answers.tokens(ids[[i]]))
        codes = (active.acts * active.scale).requires_grad_()
        rest = (active.tokens - codes @ writes).detach()
        value = (answers.answer(rest + codes @ writes).double() @ of_output(int(of[i]), 7)).sum()
        own = (torch.autograd.grad(value, codes)[0] * codes).detach().sum((0, 1)).double()
        expected[[0, 3, 6].index(of[i])] += own / (of == of[i]).sum()
    torch.testing.assert_close(found.scores, expected, rtol=1e-4, atol=1e-6)


def test_typicality_takes_the_class_without_the_picture():
    project = sae_projection()
    answers, writes = Curved(draw(5, 12, 4, 5), draw(6, 5, 7)), project.writes(5)
    of = np.array([0] * 6 + [2] * 5 + [5])
    found = find_class_units(answers, np.arange(12), of, project, writes, 7, GRID)
    assert np.isnan(found.typicality[11]), "a class of one picture says nothing of it"
    for i in range(11):
        rest = np.array([j for j in range(12) if j != i])
        usual = find_class_units(answers, rest, of[rest], project, writes, 7, GRID).usual(int(of[i]))
        alone = find_class_units(answers, np.array([i]), of[[i]], project, writes, 7, GRID).scores[0]
        same = compare_to_class(Active.of(project, answers.tokens(np.array([i]))), alone, usual, GRID).typicality
        assert found.typicality[i] == pytest.approx(same, abs=1e-6)
    blind = find_class_units(answers, np.arange(12), of, project, writes, 7)
    assert np.isnan(blind.typicality).all() and torch.equal(blind.scores, found.scores)


def planted(seed: int, odd: int) -> tuple[Planted, np.ndarray]:
    """Two classes of 12 pictures; five units write each. In the last `odd` pictures of the first, five others do."""
    rng = np.random.default_rng(seed)
    tokens = np.abs(rng.normal(0, 0.05, (24, 4, 15))) * (rng.random((24, 4, 15)) < 0.5)
    where = rng.integers(0, 2, 24)  # of four places: left or right, one the class', the other's the odd units'
    for i in range(24):
        first = 5 if i >= 12 else 10 if i >= 12 - odd else 0
        tokens[i, where[i] + (2 if first == 10 else 0), first : first + 5] += 1 + rng.random(5)
    head = np.zeros((15, 2))
    head[:5, 0], head[5:10, 1], head[10:, 0] = 2, 2, 2
    return Planted(torch.from_numpy(tokens).float(), torch.from_numpy(head).float()), np.repeat([0, 1], 12)


@given(st.integers(0, 10_000))
@settings(max_examples=10, deadline=None)
def test_planted_carriers_are_found_and_odd_pictures_are_the_least_typical(seed):
    answers, of = planted(seed, odd=2)
    found = find_class_units(answers, np.arange(24), of, Projection(), torch.eye(15), 2, GRID)
    assert set(carriers(found.usual(0).scores)[0]) == set(range(5)) and set(carriers(found.usual(1).scores)[0]) == set(
        range(5, 10)
    )
    ranks = np.argsort(found.typicality[:12])
    assert set(ranks[:2]) == {10, 11} and found.typicality[:10].min() > 0.9


def test_the_five_that_carry_a_class_cost_more_than_the_next_five():
    """WWW's deletion, on 20 hosts that are not linear: together, by brute force."""
    wins = 0
    for seed in range(20):
        answers, writes = Curved(draw(seed, 10, 4, 20), draw(seed + 100, 20, 7)), torch.eye(20)
        found = find_class_units(answers, np.arange(10), np.zeros(10, int), Projection(), writes, 7, GRID)
        order = torch.argsort(found.scores[0], descending=True)
        tokens = answers.all
        lost = []
        for units in (order[:5], order[5:10]):
            edited = tokens.clone()
            edited[..., units] = edited[..., units].clamp(max=0)
            lost.append(
                float((centred(answers.logits(None, tokens)) - centred(answers.logits(None, edited)))[:, 0].mean())
            )
        wins += lost[0] > lost[1]
    assert wins >= 16


def test_carriers_are_positive_and_their_shares_sum_to_one():
    units, shares = carriers(torch.tensor([0.5, -3.0, 2.0, 0.0, 2.0]))
    assert units == [2, 4, 0] and shares.sum() == pytest.approx(1) and shares[0] == pytest.approx(2 / 4.5)
    assert carriers(torch.tensor([-1.0, 0.0]))[0] == []


def test_maps_of_units_that_are_silent_or_weak_here():
    tokens = torch.tensor([[[0.0, 2.0, 0.0], [0.0, 1.0, 0.0], [0.0, 0.0, 0.0], [0.0, 0.0, 4.0]]])
    active = Active.of(Projection(), tokens)
    here, strength = torch.tensor([0.0, 1.0, 0.0]), torch.tensor([1.0, 4.0, 2.0])
    found = compare_to_class(active, here, Usual(torch.tensor([3.0, 0.0, 0.0]), strength), GRID)
    assert found.units == [0] and found.typicality == 0 and not found.usual.any()
    assert found.own_units == [1] and found.here.tolist() == [0.5, 0.25, 0.0, 0.0], "half of what is usual"
    none = compare_to_class(active, here, Usual(-torch.ones(3), strength), GRID)
    assert none.typicality is None and none.units == [] and none.shown.numel() == 0
    both = compare_to_class(active, here, Usual(torch.tensor([0.0, 3.0, 1.0]), strength), GRID)
    assert both.maps.amax(1).tolist() == [0.5, 1] and both.usual.tolist() == [0.375, 0.1875, 0, 0.25]
    assert (both.shown > 0).sum(1).tolist() == [1, 1], "above their own 90th percentile"


def test_a_picture_belongs_to_the_output_of_its_class_or_to_what_the_host_says():
    outputs = Outputs(("tench", "crane", "crane", "red fox"), (("tench", "Tinca tinca"), (), (), ("Vulpes vulpes",)))
    of, own = outputs_of(
        [["Tench"], ["crane"], [], ["no such", "vulpes vulpes"]], outputs, np.array([3, 2, 1, 0], np.int64)
    )
    assert of.tolist() == [0, 2, 1, 3] and own == 2, "two outputs are called crane: the host's word stands"
