"""Planted worlds: the plant is where it says it is, and methods differ on it as they are known to."""

import pytest
import torch

from saelab import planted
from saelab.errors import UserError
from saelab.label import assign
from saelab.planted import WorldSpec


def test_same_spec_same_world_other_seed_other_world():
    spec = WorldSpec(images=100, units=20, dim=32)
    a, b = planted.make(spec), planted.make(spec)
    for name, value in vars(a).items():
        assert torch.equal(value, getattr(b, name)), name
    other = planted.make(WorldSpec(images=100, units=20, dim=32, seed=1))
    assert not torch.equal(a.acts, other.acts)


@pytest.mark.parametrize("spec", [WorldSpec(), WorldSpec(dense=True, seed=3), WorldSpec(sparse=0.5, seed=4)])
def test_units_follow_their_planted_labels(spec):
    world = planted.make(spec)
    auc = assign.invert_auc(world.acts, world.truth)
    planted_auc = auc.gather(1, world.label[:, None])[:, 0]
    two = world.kind == 2
    assert float(planted_auc[~two].median()) > 0.99
    assert float(planted_auc[~two].min()) > 0.85
    second = auc.gather(1, world.second.clamp(min=0)[:, None])[:, 0]
    assert float(second[world.second >= 0].median()) > 0.65
    assert bool((world.truth.sum(dim=1) == 3).all())  # child, parent, scene
    assert sorted(world.kind.unique().tolist()) == [0, 1, 2]
    broad = world.kind == 1
    assert torch.equal(world.parent[world.label[broad]], world.label[broad])


def test_activations_are_as_asked():
    weak = planted.make(WorldSpec()).acts
    sparse = planted.make(WorldSpec(sparse=0.5)).acts
    signed = planted.make(WorldSpec(dense=True)).acts
    assert float((weak > 0).float().mean()) > 0.2 > 0.05 > float((sparse > 0).float().mean())
    assert bool((weak >= 0).all())
    assert 0.3 < float((signed < 0).float().mean()) < 0.6


def test_label_noise_moves_the_listed_truth_and_nothing_else():
    clean, noisy = planted.make(WorldSpec(seed=2)), planted.make(WorldSpec(seed=2, label_noise=0.3))
    assert torch.equal(clean.acts, noisy.acts)
    moved = float((clean.truth != noisy.truth).any(dim=1).float().mean())
    assert moved == pytest.approx(0.3, abs=0.04)


def test_contrast_and_whole_set_beat_the_mean_of_the_top_images():
    """What upstream's programs show on such worlds: SemanticLens says the scene, CSP and cos-cubed the concept."""
    world = planted.make(WorldSpec(images=3000, units=200, seed=5))
    evidence = assign.Evidence.mined(world.acts, world.image_emb, world.label_emb)
    ranked = assign.rankings(["semanticlens", "csp", "csp_0.5", "cos_cubed"], evidence)
    right = {name: planted.named_right(r.label, world) for name, r in ranked.items()}
    assert right["semanticlens"]["all"] < 0.6 < 0.9 < right["csp"]["all"]
    assert right["cos_cubed"]["all"] > 0.9
    assert right["semanticlens"]["scene"] > 0.2 > right["csp"]["scene"]
    assert right["semanticlens"]["all"] < right["csp_0.5"]["all"] <= right["csp"]["all"] + 0.05


def test_named_right_counts_both_meanings_and_nothing_for_no_label():
    world = planted.make(WorldSpec(images=100, units=60, dim=16))
    assert planted.named_right(world.label, world)["all"] == 1
    assert planted.named_right(torch.where(world.second >= 0, world.second, world.label), world)["all"] == 1
    assert planted.named_right(torch.full_like(world.label, -1), world)["all"] == 0


def test_no_room_for_scenes():
    with pytest.raises(UserError, match="live=100"):
        planted.make(WorldSpec(live=100))
