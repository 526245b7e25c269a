"""SAEs that learned nothing or not all, training that starts from an SAE, and recipes that stay what they were."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch

from saelab.artifacts import digest, plain
from saelab.errors import UserError
from saelab.sae import SAE, Meta, SAEConfig, TrainConfig, Trainer, fit, fit_many
from saelab.sae.checkpoints import checksum
from saelab.sae.start import pull_back

CONFIG = SAEConfig(16, 48, k=3, lr=5e-3, dead_after=300)
TRAIN = TrainConfig(batch_size=128, steps=150, log_every=10, checkpoint_every=7)
KINDS = ("decoder", "soft_decoder", "all")
RULES = ("topk", "batchtopk", "jumprelu", "relu")


def tokens(n: int = 1500, seed: int = 0) -> torch.Tensor:
    """Sparse sums of 24 directions, always the same, about a mean."""
    g = torch.Generator().manual_seed(9)
    directions = torch.nn.functional.normalize(torch.randn(24, 16, generator=g), dim=1)
    g.manual_seed(seed)
    chosen = torch.rand(n, 24, generator=g).topk(2, dim=1).indices
    strength = torch.rand(n, 2, generator=g) + 0.5
    x = torch.nn.functional.embedding_bag(chosen, directions, per_sample_weights=strength, mode="sum")
    return x + 0.02 * torch.randn(n, 16, generator=g) + 3


def start_of(config: SAEConfig, x: torch.Tensor) -> SAE:
    """The SAE before the first step of `fit` (whose first batch is the whole set here)."""
    trainer = Trainer(config, mean=x.double().mean(0), variance=float(x.double().var(0, correction=0).sum()))
    trainer.start(x)
    return trainer.sae


@pytest.mark.parametrize("rule", RULES)
def test_what_is_frozen_stays_and_fvu_lies_in_the_order_of_what_may_learn(rule):
    x = tokens()
    base = replace(CONFIG, rule=rule, k=2 if rule != "jumprelu" else 3)
    whole = replace(TRAIN, batch_size=len(x), steps=120)
    configs = [base, *(replace(base, frozen=kind) for kind in KINDS)]
    trained, decoder, soft, untrained = fit_many(x, configs, whole, progress=False)
    begun = start_of(base, x)
    names = ("W_enc", "b_enc", "W_dec", "b_dec")
    assert checksum({n: untrained.sae.tensors()[n] for n in names}) == checksum({n: begun.tensors()[n] for n in names})
    if rule == "jumprelu":
        assert torch.equal(untrained.sae.threshold, begun.threshold)
    assert torch.equal(decoder.sae.W_dec, begun.W_dec) and not torch.equal(decoder.sae.W_enc, begun.W_enc)
    cosine = (soft.sae.W_dec * begun.W_dec).sum(1)
    assert float(cosine.min()) >= 0.8 - 1e-5 and float(cosine.min()) < 0.801, "some rows went as far as they may"
    assert float((trained.sae.W_dec * begun.W_dec).sum(1).min()) < 0.75, "and would have gone farther"
    torch.testing.assert_close(soft.sae.W_dec.norm(dim=1), torch.ones(48), rtol=1e-5, atol=0)
    fvu = [found.quality["fvu"] for found in (untrained, decoder, soft, trained)]
    assert fvu[0] > fvu[1] > fvu[2] > fvu[3], fvu


@pytest.mark.parametrize("frozen", KINDS)
def test_controls_resume_to_the_bit(tmp_path, frozen):
    class Stop(Exception):
        pass

    def stop(which: int, step: int, numbers: dict) -> None:
        if step >= 40:
            raise Stop

    config, train = replace(CONFIG, frozen=frozen, weight_decay=0.1, clip=0.5), replace(TRAIN, steps=60)
    fit(tokens(), config, train, tmp_path / "whole", progress=False)
    with pytest.raises(Stop):
        fit(tokens(), config, train, tmp_path / "cut", progress=False, logger=stop)
    assert (tmp_path / "cut" / "checkpoints").exists()
    fit(tokens(), config, train, tmp_path / "cut", progress=False)
    for file in ("sae.safetensors", "metrics.jsonl", "quality.json", "training.json"):
        assert (tmp_path / "whole" / file).read_bytes() == (tmp_path / "cut" / file).read_bytes(), file


def test_a_row_is_pulled_back_to_the_nearest_allowed_direction():
    g = torch.Generator().manual_seed(0)
    start, rows = (torch.nn.functional.normalize(torch.randn(200, 5, generator=g), dim=1) for _ in range(2))
    found = rows.clone()
    pull_back(found, start, 0.8)
    before, after = (rows * start).sum(1), (found * start).sum(1)
    far = before < 0.8
    assert int((~far).sum()) > 0 and torch.equal(found[~far], rows[~far])
    torch.testing.assert_close(after[far], torch.full((int(far.sum()),), 0.8))
    torch.testing.assert_close(found.norm(dim=1), torch.ones(200))
    turned = torch.arccos(before[far]) - torch.arccos(torch.tensor(0.8))
    torch.testing.assert_close(torch.arccos((found * rows).sum(1)[far]), turned, rtol=1e-3, atol=1e-3)


def test_what_cannot_be_frozen_is_refused():
    for more in ({"frozen": "encoder"}, {"frozen": "all", "decoder": "archetypal"}):
        with pytest.raises(UserError, match="frozen="):
            SAEConfig(16, 48, k=3, **more)
    with pytest.raises(UserError, match="frozen=decoder: needs decoder=free and resample_every=0"):
        SAEConfig(16, 48, rule="relu", frozen="decoder", resample_every=5)


def test_recipes_from_before_a_field_existed_stay_the_same():
    """The digests are those of the code before `frozen`; they name folders that people have."""
    wanted = {
        "ee93337a9c8cf5d689234f22d9d1d82dbfd874c12fc290ab0f396828054a657c": SAEConfig(12, 64, k=4),
        "4714e52592a38af309a995bf93a6e9a2c7260012d4c24065a74fccef05747181": SAEConfig(
            320, 2560, rule="batchtopk", k=16, prefixes=(0.25, 1), seed=3, lr=2e-3
        ),
        "e9b352026d0f3e109c3c97d3cb68666fe5c292f617f348951d21e49a1042c735": SAEConfig(
            12, 64, rule="jumprelu", k=3, screen="float32"
        ),
    }
    for expected, config in wanted.items():
        recipe = {"stage": "sae", "code": 5, "cache": "c", "sae": config, "train": TrainConfig(epochs=5)}
        assert digest(recipe) == expected
        assert "frozen" not in plain(config)
    frozen = SAEConfig(12, 64, k=4, frozen="all")
    assert plain(frozen)["frozen"] == "all" and digest(frozen) != digest(SAEConfig(12, 64, k=4))


@pytest.mark.parametrize("rule", RULES)
def test_training_starts_from_an_sae(rule, tmp_path):
    x, config = tokens(), replace(CONFIG, rule=rule)
    first = fit(x, config, TRAIN, progress=False)
    short = replace(TRAIN, steps=3)
    again = fit(x, config, short, tmp_path, start=first.sae, progress=False)
    anew = fit(x, config, short, progress=False)
    assert again.quality["fvu"] < 1.5 * first.quality["fvu"] < 0.7 * anew.quality["fvu"]
    assert not torch.equal(again.sae.W_dec, first.sae.W_dec), "it goes on learning"
    assert json.loads((tmp_path / "training.json").read_text())["start"] == checksum(first.sae.tensors())
    assert fit(x, config, short, tmp_path, start=first.sae, progress=False).quality == again.quality
    with pytest.raises(UserError, match="another recipe: start was"):
        fit(x, config, short, tmp_path, start=anew.sae, progress=False)
    with pytest.raises(UserError, match="another recipe: start was"):
        fit(x, config, short, tmp_path, progress=False)


def test_a_start_is_brought_to_unit_rows_and_adds_what_it_added():
    g = torch.Generator().manual_seed(0)
    rows, lengths = torch.randn(48, 16, generator=g), torch.rand(48, generator=g) + 0.5
    sae = SAE(rows, torch.randn(48, generator=g), lengths[:, None] * rows, torch.ones(16), Meta("relu", 0))
    before = {name: tensor.clone() for name, tensor in sae.tensors().items()}
    trainer = Trainer(SAEConfig(16, 48, rule="relu"), start=sae)
    x = tokens(200)
    trainer.start(x)
    torch.testing.assert_close(trainer.sae.W_dec.norm(dim=1), torch.ones(48))
    torch.testing.assert_close(trainer.sae(x), sae(x), rtol=1e-4, atol=1e-4)
    trainer.step(x)
    assert all(torch.equal(tensor, before[name]) for name, tensor in sae.tensors().items()), "the start is left alone"


def test_a_start_that_does_not_fit_is_refused_before_anything_is_written(tmp_path):
    rows = torch.eye(16).repeat(3, 1)
    sae = SAE(rows, torch.zeros(48), rows, torch.zeros(16), Meta("topk", 3))
    normed = SAE(rows, torch.zeros(48), rows, torch.zeros(16), Meta("topk", 3, "layer"))
    cases = [(sae, replace(CONFIG, latents=40)), (normed, CONFIG), (sae, replace(CONFIG, decoder="archetypal"))]
    for start, config in cases:
        with pytest.raises(UserError, match=r"^start="):
            fit(tokens(), config, TRAIN, tmp_path / "out", start=start, progress=False)
    assert not (tmp_path / "out").exists()


def test_save_makes_its_folder(tmp_path):
    sae = fit(tokens(), CONFIG, replace(TRAIN, steps=2), progress=False).sae
    for place in (tmp_path / "a" / "b", tmp_path / "c" / "d" / "mine.safetensors"):
        sae.save(place)
        assert torch.equal(SAE.load(place).W_dec, sae.W_dec)


def test_quality_on_held_out_tokens_stands_beside_that_on_training_tokens(tmp_path):
    few, unseen = tokens(60, seed=1), tokens(500, seed=2)
    train = replace(TRAIN, batch_size=60, steps=600)
    found = fit(few, replace(CONFIG, latents=200, k=8), train, tmp_path, held_out=unseen, progress=False).quality
    held = found["held_out"]
    wide = unseen.double()
    rebuilt = SAE.load(tmp_path)(unseen).double()
    fvu = float((wide - rebuilt).square().sum() / (wide - wide.mean(0)).square().sum())
    assert held["fvu"] == pytest.approx(fvu, rel=1e-5) and held["tokens"] == 500
    assert set(found) - {"held_out"} == set(held) - {"rows", "fvu_ratio", "overfit"}, "readers of today's keys"
    assert held["fvu_ratio"] == held["fvu"] / found["fvu"] > 1.25
    assert held["overfit"].startswith("The SAE overfits: FVU ") and f"{held['fvu']:.3g} on held-out" in held["overfit"]
    assert json.loads((tmp_path / "quality.json").read_text()) == found

    plenty = fit(tokens(3000), CONFIG, replace(TRAIN, steps=60), held_out=unseen, progress=False).quality["held_out"]
    assert plenty["overfit"] is None and 0.8 < plenty["fvu_ratio"] < 1.25


@pytest.mark.parametrize("rule", ["batchtopk", "jumprelu", "topk"])
def test_thresholds_that_let_more_through_than_k_are_named_with_the_remedy(rule, caplog):
    g = torch.Generator().manual_seed(1)
    few, unseen = tokens(200), tokens(500, seed=2) + torch.randn(500, 16, generator=g)
    config = replace(CONFIG, rule=rule, bandwidth=0.1)
    with caplog.at_level("WARNING", "saelab"):
        found = fit(few, config, replace(TRAIN, steps=300), held_out=unseen, progress=False).quality["held_out"]
    said = f"{found['l0']:.3g} latents a held-out token exceed their thresholds, k is 3; compare SAEs at held_out.l0"
    assert (said in caplog.text) == (found["l0"] > 3.15) == (rule != "topk")
    caplog.clear()
    fit(few, config, replace(TRAIN, steps=300), held_out=few, progress=False)
    assert rule == "jumprelu" or "exceed their thresholds" not in caplog.text


def test_held_out_tokens_are_no_part_of_the_recipe_and_measured_where_they_are_missing(tmp_path):
    x, unseen = tokens(), tokens(300, seed=2)
    train = replace(TRAIN, steps=10)
    plain_fit = fit(x, CONFIG, train, tmp_path, progress=False)
    before = {path: path.read_bytes() for path in tmp_path.iterdir()}
    later = fit(x, CONFIG, train, tmp_path, held_out=unseen, progress=False)
    assert later.quality["held_out"]["tokens"] == 300
    assert {k: v for k, v in later.quality.items() if k != "held_out"} == plain_fit.quality
    assert before == {path: path.read_bytes() for path in tmp_path.iterdir()}, "a finished folder is left alone"
    with pytest.raises(UserError, match="held_out=d_in 9: d_in 16"):
        fit(x, CONFIG, train, held_out=np.zeros((5, 9)), progress=False)
