"""Arithmetic of the parts whose absence no result shows at once: schedules, memories, counters, moments, sums."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch

from saelab.cache.batches import Batches
from saelab.sae import SAE, Meta, SAEConfig, TrainConfig, Trainer, fit, quality
from saelab.sae.train import THRESHOLD_MEMORY, THRESHOLD_SHARE

BATCH = 64
SETTINGS = {"lr": 1e-3, "dead_after": 3 * BATCH, "auxk_stride": 2}
CONFIGS = {
    "topk": SAEConfig(12, 48, k=3, **SETTINGS),
    "batchtopk": SAEConfig(12, 48, rule="batchtopk", k=3, **SETTINGS),
    "matryoshka": SAEConfig(12, 48, k=3, prefixes=(0.5, 1), clip=0.5, weight_decay=0.1, **SETTINGS),
    "archetypal": SAEConfig(12, 48, k=3, decoder="archetypal", candidates=20, **SETTINGS),
    "jumprelu": SAEConfig(12, 48, rule="jumprelu", k=3, lr=1e-3),
    "relu": SAEConfig(12, 48, rule="relu", lr=1e-3, resample_every=4, dead_after=3 * BATCH),
    "soft": SAEConfig(12, 48, k=3, frozen="soft_decoder", **SETTINGS),
}


def batch(step: int) -> torch.Tensor:
    return torch.randn(BATCH, 12, generator=torch.Generator().manual_seed(step)) + 1


@pytest.mark.parametrize("name", CONFIGS)
@pytest.mark.parametrize("cut", [1, 2, 5])
def test_a_trainer_that_is_restored_takes_the_same_steps_also_where_latents_are_about_to_count_as_silent(name, cut):
    """Latents 0..9 never fire: after three batches they are silent, and AuxK, reviving or resampling sets in."""
    config = CONFIGS[name]
    whole, numbers = Trainer(config), []
    whole.start(batch(0))
    whole.weights["b_enc"][:10] = -50.0
    for step in range(7):
        if step == cut:
            state = {part: tensor.clone() for part, tensor in whole.state().items()}
        numbers.append(whole.step(batch(step), 1 - step / 10))
    resumed = Trainer(config)
    resumed.restore(state)
    assert resumed.steps == cut and resumed.state().keys() == state.keys()
    assert all(torch.equal(tensor, state[part]) for part, tensor in resumed.state().items())
    for step in range(cut, 7):
        found = resumed.step(batch(step), 1 - step / 10)
        assert {n: float(v) for n, v in found.items()} == {n: float(v) for n, v in numbers[step].items()}, step
    for part, tensor in whole.state().items():
        assert torch.equal(resumed.state()[part], tensor), part
    silent = [int(logged["silent"]) for logged in numbers]
    assert name == "jumprelu" or (silent[:2] == [0, 0] and max(silent) >= 10)
    assert ("auxk" in numbers[3]) == (name not in ("jumprelu", "relu"))


def test_the_rate_rises_falls_by_stairs_and_ends_at_0():
    train = TrainConfig(steps=100, warmup=0.1, anneal=0.2, decay=((0.5, 0.1), (0.7, 0.5)))
    factors = [train.lr_factor(step, 100) for step in range(100)]
    assert factors[:11] == pytest.approx([*(i / 10 for i in range(1, 11)), 1])
    assert factors[10:50] == [1.0] * 40
    assert factors[50:70] == pytest.approx([0.1] * 20) and factors[70:81] == pytest.approx([0.05] * 11)
    assert factors[80:] == pytest.approx([0.05 * (20 - i) / 20 for i in range(20)])
    assert [TrainConfig(anneal=0).lr_factor(step, 10) for step in range(10)] == [1.0] * 10


def test_fit_gives_each_step_its_rate_and_the_rate_scales_the_step(monkeypatch):
    factors, step = [], Trainer.step
    monkeypatch.setattr(Trainer, "step", lambda self, x, by: (factors.append(by), step(self, x, by))[1])
    train = TrainConfig(batch_size=BATCH, steps=20, warmup=0.2, anneal=0.5)
    fit(torch.cat([batch(i) for i in range(5)]), CONFIGS["topk"], train, progress=False)
    assert factors == [train.lr_factor(i, 20) for i in range(20)] and factors[-1] == pytest.approx(0.1)
    moved = []
    for by in (1.0, 0.25, 0.0):
        trainer = Trainer(CONFIGS["topk"])
        trainer.start(batch(0))
        before = trainer.weights["W_enc"].clone()
        step(trainer, batch(0), by)
        moved.append((trainer.weights["W_enc"] - before).abs().max())
    assert float(moved[0]) > 0 == float(moved[2])
    torch.testing.assert_close(moved[1], moved[0] / 4, rtol=1e-3, atol=0)


def test_the_gradient_is_shortened_to_the_clip_and_never_lengthened():
    for clip, wanted in ((1e-3, 1e-3), (1e3, None), (0.0, None)):
        trainer = Trainer(replace(CONFIGS["topk"], clip=clip))
        trainer.step(batch(0))
        norm = float(torch.cat([t.grad.flatten() for t in trainer.weights.values()]).norm())
        if wanted:
            assert norm == pytest.approx(wanted, rel=1e-4)
        else:
            assert norm > 0.05


def test_batchtopks_threshold_is_a_running_mean_over_batches():
    """Frozen weights, batches that take turns between two scales: each has its own smallest value."""
    config = SAEConfig(12, 48, rule="batchtopk", k=3, frozen="all")
    trainer = Trainer(config, mean=torch.zeros(12), variance=12.0)
    x = batch(0) - 1
    trainer.start(x)
    pre = trainer.sae.pre_activations(x).flatten()
    least = float(pre.topk(3 * BATCH).values[-1])
    wanted = 0.0
    for step in range(60):
        scale = 1 + step % 2
        trainer.step(scale * x)
        memory = min(THRESHOLD_MEMORY, step / (step + THRESHOLD_SHARE))
        wanted = memory * wanted + (1 - memory) * scale * least
        assert float(trainer.threshold) == pytest.approx(wanted, rel=1e-4)
    assert 1.4 * least < wanted < 1.6 * least, "between the two, far from either"
    assert torch.equal(trainer.sae.threshold, trainer.threshold.expand(48))
    trainer.steps = 10**6
    before = float(trainer.threshold)
    trainer.step(2 * x)
    assert float(trainer.threshold) == pytest.approx(0.999 * before + 0.001 * 2 * least, rel=1e-5)


@pytest.mark.parametrize(("mean", "spread"), [(3000.1, 0.01), (2e5, 30.0), (-40.0, 1e-6), (0.0, 1.0)])
def test_moments_are_float64s_however_far_from_0_and_however_cut(mean, spread):
    x = mean + spread * np.random.default_rng(0).normal(size=(700, 5))
    batches = Batches(x.astype(np.float32), 64, rows=np.arange(3, 650))
    exact = x.astype(np.float32)[3:650].astype(np.float64)
    for chunk in (100, 647, 16_384):
        found, variance = batches.moments(chunk)
        np.testing.assert_allclose(found, exact.mean(0), rtol=1e-13, atol=1e-15)
        assert variance == pytest.approx(exact.var(0).sum(), rel=1e-9)
    trainer = Trainer(SAEConfig(5, 8, k=2))
    trainer.start(batches.read(np.arange(3, 650)))
    assert float(trainer.variance) == pytest.approx(exact.var(0).sum(), rel=1e-6)
    np.testing.assert_array_equal(trainer.weights["b_dec"].numpy(), exact.mean(0).astype(np.float32))


@pytest.mark.parametrize("offset", [0.0, 300.0])
@pytest.mark.parametrize("rule", ["topk", "relu"])
def test_quality_adds_up_in_float64(rule, offset):
    """To 1e-10 of sums over the very same float32 reconstructions, which float32 sums miss by 1e-7 and more."""
    g = torch.Generator().manual_seed(0)
    rows = torch.nn.functional.normalize(torch.randn(24, 6, generator=g), dim=1)
    centre = torch.full((6,), offset)
    sae = SAE(rows, torch.zeros(24), rows, centre, Meta(rule, 4 if rule == "topk" else 0))
    x = centre + torch.randn(3000, 6, generator=g) * torch.logspace(-2, 1, 6)
    found, wide, rebuilt = quality(sae, x), x.double(), sae(x).double()
    residual, total = (wide - rebuilt).square().sum(), (wide - wide.mean(0)).square().sum()
    assert found["fvu"] == pytest.approx(float(residual / total), rel=1e-10)
    assert found["r2"] == pytest.approx(1 - float(residual / total), rel=1e-10)
    cosine = torch.cosine_similarity(wide - centre.double(), rebuilt - centre.double(), dim=1).mean()
    assert found["cosine"] == pytest.approx(float(cosine), rel=1e-10)


def test_the_order_of_the_data_follows_the_seed_and_latents_can_become_silent_in_small_sets(tmp_path):
    x = torch.cat([batch(i) for i in range(5)])
    train = TrainConfig(batch_size=BATCH, steps=8)
    one, same, other = (
        fit(x, replace(CONFIGS["topk"], dead_after=10**6), replace(train, seed=seed), tmp_path / str(i), progress=False)
        for i, seed in enumerate((0, 0, 1))
    )
    assert torch.equal(one.sae.W_enc, same.sae.W_enc) and not torch.equal(one.sae.W_enc, other.sae.W_enc)
    assert json.loads((tmp_path / "0" / "training.json").read_text())["sae"]["dead_after"] == len(x)
