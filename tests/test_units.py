"""Units: pooling against brute force, controls with the properties that make them so, nothing learnt off `mine`."""

import itertools

import numpy as np
import pytest
import torch

from saelab import cache, units
from saelab.cache.store import top_count
from saelab.errors import UserError
from saelab.sae import SAE, Meta

IMAGES, TOKENS, WIDTH = 23, 6, 5


@pytest.fixture
def tokens():
    return np.random.default_rng(0).normal(0.3, 1, (IMAGES, TOKENS, WIDTH)).astype(np.float32)


@pytest.fixture
def store(tokens, tmp_path):
    return cache.adopt(tokens, tmp_path / "cache", dtype="float32")


def load(artifact):
    return units.UnitActivations.load(artifact.path)


def small_sae(latents=40, k=2, seed=0):
    generator = torch.Generator().manual_seed(seed)
    draw = lambda *shape: torch.randn(*shape, generator=generator)  # noqa: E731
    return SAE(draw(latents, WIDTH), draw(latents), draw(latents, WIDTH), draw(WIDTH), Meta(rule="topk", k=k))


@pytest.mark.parametrize("pool", units.POOLS)
def test_neurons_are_pooled_as_said_however_the_images_are_cut(store, tokens, tmp_path, pool):
    positive = np.maximum(tokens, 0)
    brute = {
        "max": positive.max(1),
        "mean": positive.mean(1),
        "cls": positive[:, 0],
        "top_mean": np.sort(positive, 1)[:, -1:].mean(1),  # a tenth of 6 tokens is one
    }[pool]
    if pool == "cls":  # the first token of these is no class token, and is not taken for one
        with pytest.raises(UserError, match="holds no class token"):
            units.neuron(store, tmp_path, pool)
    else:
        np.testing.assert_allclose(load(units.neuron(store, tmp_path, pool)).acts.numpy(), brute, rtol=1e-6)
    for at_once in (1, 7, 50):
        cut = units.pool_cache(store, units.Projection(), pool, at_once=at_once)
        np.testing.assert_allclose(cut.numpy(), brute, rtol=1e-6)


def test_both_means_of_the_strongest_tenth_take_the_same_tokens(tmp_path):
    """A cache's `top:0.1` and units' `top_mean`, of 1 to 60 tokens: an image of 19 has one strongest token, not two."""
    offsets = np.arange(1, 61).cumsum() - 1
    flat = np.random.default_rng(3).uniform(1, 2, (offsets[-1], WIDTH)).astype(np.float32)
    store = cache.adopt(flat, tmp_path, offsets=offsets, dtype="float32")
    parts = [np.sort(flat[a:b], axis=0) for a, b in itertools.pairwise(offsets)]
    brute = np.stack([part[-max(1, len(part) // 10) :].mean(0) for part in parts])
    np.testing.assert_allclose(store.pooled("top:0.1"), brute, rtol=1e-6)
    np.testing.assert_allclose(units.pool_cache(store, units.Projection(), "top_mean").numpy(), brute, rtol=1e-6)
    ends = [top_count(100, share) for share in (0.29, 0.57, 1.0, 0.001)]
    assert ends == [29, 57, 100, 1]


def test_images_with_different_numbers_of_tokens(tokens, tmp_path):
    lengths = np.random.default_rng(1).integers(1, 9, IMAGES)
    offsets = np.concatenate([[0], lengths.cumsum()])
    flat = np.random.default_rng(2).normal(size=(offsets[-1], WIDTH)).astype(np.float32)
    store = cache.adopt(flat, tmp_path, offsets=offsets, dtype="float32")
    brute = [np.maximum(flat[a:b], 0).max(0) for a, b in itertools.pairwise(offsets)]
    np.testing.assert_allclose(
        units.pool_cache(store, units.Projection(), "max", at_once=10).numpy(), np.stack(brute), rtol=1e-6
    )


def test_split_makes_a_unit_of_each_side(store, tokens, tmp_path):
    acts = load(units.neuron(store, tmp_path, signed="split")).acts.numpy()
    np.testing.assert_allclose(acts[:, :WIDTH], np.maximum(tokens, 0).max(1), rtol=1e-6)
    np.testing.assert_allclose(acts[:, WIDTH:], np.maximum(-tokens, 0).max(1), rtol=1e-6)


def test_a_rotation_keeps_every_length_and_depends_on_its_seed_alone(store, tokens, tmp_path):
    single = tokens[:, :1]
    one = cache.adopt(single, tmp_path / "one", dtype="float32")
    acts = load(units.random_rotation(one, tmp_path, signed="split", seed=3)).acts
    centred = torch.from_numpy(single[:, 0]) - torch.from_numpy(one.mean).float()
    torch.testing.assert_close(acts.square().sum(1), centred.square().sum(1), rtol=1e-4, atol=1e-5)
    again = load(units.random_rotation(one, tmp_path / "again", signed="split", seed=3)).acts
    other = load(units.random_rotation(one, tmp_path, signed="split", seed=4)).acts
    assert torch.equal(acts, again) and not torch.allclose(acts, other, atol=0.1)


def test_principal_components_are_uncorrelated_strongest_first(tmp_path):
    wide = np.random.default_rng(0).normal(size=(400, 1, WIDTH)) @ np.random.default_rng(1).normal(size=(WIDTH, WIDTH))
    store = cache.adopt(wide.astype(np.float32), tmp_path / "cache", dtype="float32")
    sides = load(units.pca(store, tmp_path, signed="split")).acts
    scores = (sides[:, :WIDTH] - sides[:, WIDTH:]).double()
    covariance = (scores.T @ scores / len(scores)).numpy()
    strength = np.diag(covariance)
    assert (np.diff(strength) < 0).all()
    np.testing.assert_allclose(covariance, np.diag(strength), atol=1e-4 * strength.max())
    expected = np.linalg.eigvalsh(np.cov(wide[:, 0].T, bias=True))[::-1]
    np.testing.assert_allclose(strength, expected, rtol=1e-3)


def test_an_sae_is_applied_token_by_token_and_kept_sparse_when_it_is(store, tokens, tmp_path):
    sae = small_sae()
    sae.save(tmp_path / "sae.safetensors")
    found = load(units.sae(store, tmp_path, tmp_path / "sae.safetensors"))
    flat = torch.from_numpy(tokens.reshape(-1, WIDTH))
    brute = sae.encode(flat).dense().reshape(IMAGES, TOKENS, -1).amax(1)
    dense = found.acts.to_dense() if found.acts.layout != torch.strided else found.acts
    torch.testing.assert_close(dense, brute)
    sparse_sae = small_sae(latents=400, k=1)
    sparse_sae.save(tmp_path / "wide.safetensors")
    sparse = load(units.sae(store, tmp_path, tmp_path / "wide.safetensors"))
    assert sparse.acts.layout == torch.sparse_csr
    brute = sparse_sae.encode(flat).dense().reshape(IMAGES, TOKENS, -1).amax(1)
    torch.testing.assert_close(sparse.acts.to_dense(), brute)
    ids = np.array([5, 2, 19])
    torch.testing.assert_close(sparse.rows(ids).to_dense(), brute[ids])
    torch.testing.assert_close(sparse.column(int(brute.sum(0).argmax())), brute[:, brute.sum(0).argmax()])


def test_bases_learn_from_the_mine_split_alone(tokens, tmp_path):
    """Whatever stands in the test images must not move a centre or a direction."""
    from small_images import coloured

    pictures = coloured(tmp_path / "pictures", IMAGES)
    test = pictures.ids("test")
    assert len(test) > 3
    changed = tokens.copy()
    changed[test] = 40 * changed[test][:, ::-1] + 7
    mine = pictures.ids("mine")
    for name, basis in {"pca": units.pca, "random_rotation": units.random_rotation}.items():
        rows = []
        for i, values in enumerate((tokens, changed)):
            store = cache.adopt(values, tmp_path / f"{name}{i}", pictures, dtype="float32")
            rows.append(load(basis(store, tmp_path / f"units {name}{i}")).acts[mine])
        assert torch.equal(*rows), name


@pytest.mark.parametrize("kind", ["neuron", "pca", "random_rotation", "sae"])
def test_a_stored_projection_gives_a_picture_the_activations_it_had(store, tokens, tmp_path, kind):
    if kind == "sae":
        small_sae().save(tmp_path / "sae.safetensors")
        made, project = units.sae(store, tmp_path, tmp_path / "sae.safetensors"), {"sae": tmp_path / "sae.safetensors"}
        with pytest.raises(UserError, match="give the SAE"):
            units.Projection.load(made.path)
    else:
        made, project = getattr(units, kind)(store, tmp_path, signed="split"), {}
    acts, stored = load(made).acts, units.Projection.load(made.path, **project)
    acts = acts if acts.layout == torch.strided else acts.to_dense()
    before = torch.from_numpy(tokens[4].copy())
    given = before.clone()
    one = units.pool_tokens(stored(given)[None], "max")[0]
    torch.testing.assert_close(one, acts[4], rtol=1e-4, atol=1e-5)
    assert torch.equal(given, before)  # what was handed in is left as it was


def test_bad_settings_are_one_line(store, tmp_path):
    for settings, word in [({"pool": "median"}, "max, mean"), ({"signed": "both"}, "positive, split")]:
        with pytest.raises(UserError, match=word):
            units.neuron(store, tmp_path, **settings)
    wrong = SAE(torch.randn(4, 9), torch.zeros(4), torch.randn(4, 9), torch.zeros(9), Meta(rule="topk", k=1))
    wrong.save(tmp_path / "wrong.safetensors")
    with pytest.raises(UserError, match="d_in 9"):
        units.sae(store, tmp_path, tmp_path / "wrong.safetensors")
    with pytest.raises(UserError, match="no such folder"):
        units.UnitActivations.load(tmp_path / "nowhere")


def test_heat_maps_lie_where_the_tokens_are_and_share_one_scale(tmp_path):
    maps = np.random.default_rng(0).normal(size=(4, 3, 2, 5)).astype(np.float32)  # images d_in height width
    store = cache.adopt(maps, tmp_path / "cache", dtype="float32")
    made = units.neuron(store, tmp_path)
    peaks = load(made).acts.amax(0)
    heat = units.HeatMaps(store, units.Projection.load(made.path), peaks)
    for unit in range(3):
        shares = np.stack([heat(unit, image) for image in range(4)])
        np.testing.assert_allclose(shares, np.maximum(maps[:, unit], 0) / peaks[unit].item(), rtol=1e-6)
        assert shares.max() == 1
    flat = cache.adopt(maps[:, :, 0, 0], tmp_path / "flat", dtype="float32")
    assert units.HeatMaps(flat, units.Projection(), peaks)(0, 0) is None
