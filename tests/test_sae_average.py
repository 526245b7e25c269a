"""The running mean of the weights: its formula, its place in checkpoints and recipes, and what it refuses."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from sae_processes import each

from saelab.artifacts import plain
from saelab.errors import UserError
from saelab.sae import SAE, SAEConfig, TrainConfig, Trainer, fit
from saelab.sae.average import Average

CONFIG = SAEConfig(10, 48, k=3, lr=2e-3, dead_after=300)
TRAIN = TrainConfig(batch_size=64, steps=40, log_every=3, checkpoint_every=5, ema=0.8)
KINDS = {
    "topk": CONFIG,
    "batchtopk": replace(CONFIG, rule="batchtopk"),
    "jumprelu": replace(CONFIG, rule="jumprelu"),
    "archetypal": replace(CONFIG, decoder="archetypal", candidates=20),
}


class Stop(Exception):
    pass


def tokens() -> np.ndarray:
    return np.random.default_rng(0).normal(2.0, 1.0, (900, 10)).astype(np.float16)


@pytest.mark.parametrize("kind", KINDS)
def test_the_saved_weights_are_the_formulas_mean_of_every_steps(kind, monkeypatch):
    every = []
    real = Trainer.step

    def step(trainer, x, factor=1.0):
        found = real(trainer, x, factor)
        every.append({name: tensor.double().clone() for name, tensor in trainer.weights.items()})
        return found

    monkeypatch.setattr(Trainer, "step", step)
    made = fit(tokens(), KINDS[kind], TRAIN, progress=False).sae.tensors()
    wanted = every[0]
    for i, weights in enumerate(every[1:], 1):
        memory = min(0.8, i / (i + 10))
        wanted = {name: memory * mean + (1 - memory) * weights[name] for name, mean in wanted.items()}
    length = wanted["W_dec"].norm(dim=1, keepdim=True)
    assert float(length.min()) > 0.9 and float(length.max()) < 1 + 1e-6
    wanted["W_dec"] /= length
    for name in wanted:
        torch.testing.assert_close(made[name].double(), wanted[name], rtol=1e-5, atol=1e-6, msg=name)
    assert not torch.allclose(made["W_enc"].double(), every[-1]["W_enc"], atol=1e-5), "not the last"


@pytest.mark.parametrize("kind", KINDS)
def test_a_cut_run_goes_on_to_the_same_bytes(kind, tmp_path):
    def stops(which: int, now: int, numbers: dict) -> None:
        if now >= 27:
            raise Stop

    fit(tokens(), KINDS[kind], TRAIN, tmp_path / "whole", progress=False)
    with pytest.raises(Stop):
        fit(tokens(), KINDS[kind], TRAIN, tmp_path / "cut", progress=False, logger=stops)
    fit(tokens(), KINDS[kind], TRAIN, tmp_path / "cut", progress=False)
    for file in ("sae.safetensors", "metrics.jsonl", "quality.json"):
        assert (tmp_path / "whole" / file).read_bytes() == (tmp_path / "cut" / file).read_bytes()


def test_it_is_part_of_the_recipe_only_where_it_is_on_and_changes_no_step(tmp_path):
    plain_train = replace(TRAIN, ema=0.0)
    without = fit(tokens(), CONFIG, plain_train, tmp_path / "without", progress=False).sae
    mean = fit(tokens(), CONFIG, TRAIN, tmp_path / "with", progress=False).sae
    recipes = [json.loads((tmp_path / name / "training.json").read_text())["train"] for name in ("without", "with")]
    assert "ema" not in recipes[0] and recipes[1]["ema"] == 0.8 and "ema" not in plain(plain_train)
    metrics = [(tmp_path / name / "metrics.jsonl").read_bytes() for name in ("without", "with")]
    assert metrics[0] == metrics[1] and not torch.equal(without.W_enc, mean.W_enc)
    assert torch.equal(SAE.load(tmp_path / "with").W_enc, mean.W_enc)
    with pytest.raises(UserError, match=r"train\.ema was 0\.8, is not there|train\.ema"):
        fit(tokens(), CONFIG, plain_train, tmp_path / "with", progress=False)


def test_steps_that_only_jitter_average_out():
    g = torch.Generator().manual_seed(0)
    average, true = Average(0.99), torch.randn(48, 10, generator=g)
    for step in range(1, 1000):
        average.follow({"W_enc": true + torch.randn(48, 10, generator=g)}, step)
    assert float((average.weights["W_enc"] - true).square().mean()) < 2 * (1 - 0.99) / (1 + 0.99)


@pytest.mark.parametrize(("given", "message"), [(1.0, "from 0, for none, to below 1"), (-0.1, "from 0, for none")])
def test_what_is_no_share_is_refused(given, message):
    with pytest.raises(UserError, match=f"ema={given}: {message}"):
        TrainConfig(ema=given)


def train_shards(folder: Path, shards: int, stops: int = 0, begins: int = 0) -> None:
    """Every kind, in this process' part, from the step `begins` on; stopped before the step `stops`, if any."""
    step = Trainer.step

    def perhaps_the_last(trainer, *given):
        if stops and trainer.steps == stops:
            raise Stop
        assert trainer.steps >= begins, "it goes on from the checkpoint"
        return step(trainer, *given)

    Trainer.step = perhaps_the_last
    try:
        for kind, config in KINDS.items():
            config, train = replace(config, screen="float32"), replace(TRAIN, latent_shards=shards)
            try:
                fit(tokens(), config, train, folder / kind, progress=False)
            except Stop:
                continue
            assert not stops
    finally:
        Trainer.step = step


@pytest.fixture(scope="module")
def alone(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("alone")
    train_shards(folder, 1)
    return folder


def check_equal(found: Path, expected: Path) -> None:
    for kind in KINDS:
        ours, theirs = (SAE.load(at / kind).tensors() for at in (found, expected))
        for name, tensor in theirs.items():
            assert float((ours[name] - tensor).norm() / tensor.norm()) <= 1e-5, (kind, name)


@pytest.mark.parametrize(("size", "shards"), [(4, 4), (4, 2)])
def test_shards_save_the_mean_that_one_process_saves(size, shards, tmp_path, alone):
    assert each(size, tmp_path / "store", train_shards, tmp_path, shards) == [0] * size
    check_equal(tmp_path, alone)


@pytest.mark.parametrize(("before", "after"), [(1, 2), (4, 2)])
def test_a_cut_run_goes_on_with_another_number_of_shards(before, after, tmp_path, alone):
    """Each takes the rows of the mean that it holds, from one file or from parts."""
    if before == 1:
        train_shards(tmp_path, 1, stops=27)
    else:
        assert each(before, tmp_path / "store", train_shards, tmp_path, before, 27) == [0] * before
    suffix = "safetensors" if before == 1 else "safetensors.index.json"
    assert all((tmp_path / kind / "checkpoints" / f"step-00000025.{suffix}").exists() for kind in KINDS)
    assert each(after, tmp_path / "store2", train_shards, tmp_path, after, 0, 25) == [0] * after
    check_equal(tmp_path, alone)
