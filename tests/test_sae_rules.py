"""Each architecture learns planted directions and keeps its own promise; few latents die, even far from the origin."""

from dataclasses import replace

import pytest
import torch

from saelab.artifacts import read_json
from saelab.sae import SAE, SAEConfig, TrainConfig, dense, fit, quality, rules
from saelab.sae.distributed import World
from saelab.sae.revive import resample
from saelab.sae.rules.gates import JumpReLU
from saelab.sae.train import Trainer

D_IN, PLANTED, ACTIVE = 24, 40, 3


def planted(tokens: int = 20_000, offset: float = 0.0) -> tuple[torch.Tensor, torch.Tensor]:
    """Sparse sums of random unit directions, some far more frequent than others, about a mean of any size."""
    g = torch.Generator().manual_seed(3)
    directions = torch.nn.functional.normalize(torch.randn(PLANTED, D_IN, generator=g), dim=1)
    odds = torch.arange(1, PLANTED + 1).float() ** -0.5
    chosen = torch.multinomial(odds.expand(tokens, -1), ACTIVE, generator=g)
    strength = torch.rand(tokens, ACTIVE, generator=g) + 0.5
    x = torch.nn.functional.embedding_bag(chosen, directions, per_sample_weights=strength, mode="sum")
    x = x + 0.02 * torch.randn(tokens, D_IN, generator=g)
    return x + offset * torch.randn(D_IN, generator=g), directions


def trained(config: SAEConfig, x: torch.Tensor, steps: int = 500, **train) -> SAE:
    return fit(x, config, TrainConfig(batch_size=512, steps=steps, **train), progress=False).sae


def recovered(sae: SAE, directions: torch.Tensor) -> float:
    """Share of the planted directions that some decoder row meets at a cosine of 0.9."""
    return float(((directions @ sae.W_dec.T).max(1).values > 0.9).float().mean())


RULES = {
    "topk": SAEConfig(D_IN, 64, k=3, lr=3e-3, dead_after=4000),
    "multi_topk": SAEConfig(D_IN, 64, k=3, lr=3e-3, dead_after=4000, multi_topk=True),
    "batchtopk": SAEConfig(D_IN, 64, rule="batchtopk", k=3, lr=3e-3, dead_after=4000),
    "jumprelu": SAEConfig(D_IN, 64, rule="jumprelu", k=3, lr=5e-3, bandwidth=0.1),
    "relu": SAEConfig(D_IN, 64, rule="relu", lr=5e-3, l1=0.1, resample_every=150, dead_after=4000),
    "matryoshka": SAEConfig(D_IN, 64, k=3, lr=3e-3, dead_after=4000, prefixes=(0.25, 0.5, 1)),
}


@pytest.mark.parametrize("name", RULES)
def test_learns_the_planted_directions(name):
    x, directions = planted()
    sae = trained(RULES[name], x, steps=900 if name in ("relu", "jumprelu") else 400)
    found = quality(sae, x)
    if name == "jumprelu":
        codes = sae.encode(x[:2000]).dense()
        assert abs(found["l0"] - 3) < 0.45, "the target of its penalty"
        assert bool(((codes == 0) | (codes > sae.threshold)).all())
    assert recovered(sae, directions) >= 0.9
    assert found["fvu"] < 0.12
    torch.testing.assert_close(sae.W_dec.norm(dim=1), torch.ones(64), rtol=1e-5, atol=0)


def test_topk_keeps_at_most_k_and_codes_agree_with_the_reconstruction():
    x, _ = planted(2000)
    sae = trained(RULES["topk"], x, steps=60)
    codes = sae.encode(x)
    assert int((codes.dense() > 0).sum(1).max()) <= 3 and codes.values.shape == (2000, 3)
    torch.testing.assert_close(sae(x), codes.dense() @ sae.W_dec + sae.b_dec, rtol=1e-4, atol=1e-5)


def test_batchtopks_threshold_reproduces_its_mean_l0():
    x, _ = planted()
    sae = trained(RULES["batchtopk"], x)
    assert sae.threshold is not None
    l0 = [quality(sae, part)["l0"] for part in (x, x[:777])]
    assert all(abs(value - 3) < 0.3 for value in l0), l0
    assert len({int(n) for n in (sae.encode(x[:500]).values > 0).sum(1)}) > 1, "it may spend more on one token"
    alone = torch.cat([sae.encode(row[None]).dense() for row in x[:50]])
    torch.testing.assert_close(alone, sae.encode(x[:50]).dense(), rtol=1e-4, atol=1e-5)


def test_a_batch_that_keeps_nothing_leaves_batchtopks_threshold_alone():
    x, _ = planted(2000)
    trainer = Trainer(RULES["batchtopk"])
    for _ in range(5):
        trainer.step(x[:512])
    before = float(trainer.threshold)
    trainer.weights["b_enc"].fill_(-1e3)
    trainer.step(x[:512])
    assert 0 < before == float(trainer.threshold)


def test_matryoshka_prefixes_are_ordered_by_fvu():
    x, _ = planted()
    sae = trained(RULES["matryoshka"], x)
    codes, total = sae.encode(x).dense(), (x - x.mean(0)).square().sum()
    fvu = [float((codes[:, :n] @ sae.W_dec[:n] + sae.b_dec - x).square().sum() / total) for n in sae.meta.prefixes]
    assert sae.meta.prefixes == (16, 32, 64)
    assert fvu[0] > fvu[1] > fvu[2]
    plain = trained(RULES["topk"], x)
    codes = plain.encode(x).dense()
    without = float((codes[:, :16] @ plain.W_dec[:16] + plain.b_dec - x).square().sum() / total)
    assert fvu[0] < without, "a trained prefix explains more than the same number of latents of a plain SAE"


def test_archetypal_rows_stay_in_the_hull_within_delta():
    x, _ = planted()
    config = SAEConfig(D_IN, 64, k=3, lr=3e-3, decoder="archetypal", candidates=200, delta=0.1, dead_after=4000)
    trainer = Trainer(config)
    first = None
    for i in range(300):
        trainer.step(x[(i * 512) % 19_000 :][:512])
        first = first if first is not None else trainer.hull.mix.clone()
    hull, spread = trainer.hull, float(trainer.variance) ** 0.5
    assert bool((hull.mix >= 0).all()) and float((hull.mix - first).abs().max()) > 0.05
    torch.testing.assert_close(hull.mix.sum(1), torch.ones(64), rtol=1e-5, atol=0)
    away = (hull.points() - hull.mix @ hull.candidates).norm(dim=1)
    assert float(away.max()) <= 0.1 * spread * (1 + 1e-4) and float(away.max()) > 0.02 * spread
    directions_of = hull.points() / hull.points().norm(dim=1, keepdim=True)
    torch.testing.assert_close(trainer.sae.W_dec, directions_of, rtol=1e-4, atol=1e-5)
    assert quality(trainer.sae, x)["fvu"] < 0.35


@pytest.mark.parametrize("decoder", ["free", "archetypal"])
@pytest.mark.parametrize("rule", ["topk", "batchtopk", "relu"])
def test_the_first_reconstructions_are_no_longer_than_the_input(rule, decoder):
    x, _ = planted(2000, offset=5.0)
    trainer = Trainer(SAEConfig(D_IN, 480, rule=rule, k=24, decoder=decoder, candidates=200))
    trainer.start(x)
    sae, centre = trainer.sae, x.mean(0)
    assert float((sae(x) - centre).square().sum()) <= 1.05 * float((x - centre).square().sum())
    lengths = sae.W_enc.norm(dim=1)
    torch.testing.assert_close(sae.W_enc, sae.W_dec * lengths[:, None])
    assert float(lengths.max()) < 0.9, "it had to be shortened"
    few = Trainer(SAEConfig(D_IN, 24, k=2))
    few.start(x)
    assert torch.equal(few.weights["W_enc"], few.weights["W_dec"]), "and is not lengthened"


@pytest.mark.parametrize("rule", ["topk", "batchtopk"])
def test_encoder_rows_begin_as_long_as_asked_or_shorter_where_they_would_rebuild_too_much(rule):
    x, _ = planted(2000, offset=5.0)
    for wanted in (0.2, 0.9):
        for latents, k in ((24, 2), (480, 24)):
            trainer = Trainer(SAEConfig(D_IN, latents, rule=rule, k=k, encoder_length=wanted))
            trainer.start(x)
            lengths = trainer.weights["W_enc"].norm(dim=1)
            shortest = Trainer(SAEConfig(D_IN, latents, rule=rule, k=k))
            shortest.start(x)
            least = min(wanted, float(shortest.weights["W_enc"][0].norm()))
            torch.testing.assert_close(lengths, torch.full((latents,), least), rtol=1e-5, atol=0)
            torch.testing.assert_close(trainer.weights["W_dec"].norm(dim=1), torch.ones(latents), rtol=1e-5, atol=0)
        assert (least < wanted) == (wanted == 0.9), "only the wide one, at 0.9, has to be shortened"


def test_a_short_run_at_the_rate_of_long_ones_is_told_what_explains_more(caplog, monkeypatch):
    x, _ = planted(600)
    runs = {"long rate": {}, "own rate": {"lr": 5e-4}, "few latents": {"latents": 48}, "control": {"frozen": "all"}}
    told = {}
    for name, given in runs.items():
        caplog.clear()
        fit(x, SAEConfig(**{"d_in": D_IN, "latents": 2048, "k": 3} | given), TrainConfig(300, steps=2), progress=False)
        told[name] = "lr=None means 5.7e-04, made for long runs: in 2 steps" in caplog.text
    assert told == {"long rate": True, "own rate": False, "few latents": False, "control": False}
    monkeypatch.setattr("saelab.sae.job.SHORT", 2)
    caplog.clear()
    fit(x, SAEConfig(D_IN, 2048, k=3), TrainConfig(300, steps=2), progress=False)
    assert "long runs" not in caplog.text


def test_a_jumprelu_latent_that_fell_silent_goes_back_to_its_decoder_row():
    x, _ = planted(600)
    config = SAEConfig(D_IN, 64, rule="jumprelu", k=3, dead_after=1000)
    still, revived = Trainer(replace(config, revive=0.0)), Trainer(replace(config, revive=0.1))
    for trainer in (still, revived):
        trainer.start(x)
        trainer.weights["W_enc"][:9] *= -0.5
        trainer.weights["b_enc"][:9] = -4.0
        trainer.silent[:9] = 1000
        trainer.step(x)
    a, b = still.weights, revived.weights
    wanted = {"W_enc": 0.9 * a["W_enc"] + 0.1 * a["W_dec"], "b_enc": 0.9 * a["b_enc"]}
    for name in ("W_enc", "b_enc", "threshold", "W_dec"):
        torch.testing.assert_close(b[name][:9], wanted.get(name, a[name])[:9], rtol=1e-5, atol=1e-6)
        assert torch.equal(a[name][9:], b[name][9:])


def test_on_a_small_set_revived_jumprelu_latents_live_and_a_warning_names_what_helps(caplog):
    x, _ = planted(4000)
    dead = {}
    for revive in (0.0, 0.02):
        config = SAEConfig(D_IN, 192, rule="jumprelu", k=4, lr=5e-3, bandwidth=0.02, revive=revive)
        dead[revive] = fit(x, config, TrainConfig(batch_size=512, steps=200), progress=False).quality["dead"]
    assert dead[0.0] > 0.5 and dead[0.02] < dead[0.0] / 2
    assert f"no token of training fires {dead[0.0]:.0%} of its 192 latents; take fewer latents" in caplog.text
    caplog.clear()
    fit(x, SAEConfig(D_IN, 48, k=3), TrainConfig(batch_size=512, steps=4), progress=False)
    assert "no token" not in caplog.text


def test_jumprelu_begins_at_the_l0_that_it_is_to_keep():
    x, _ = planted(2000, offset=5.0)
    first = Trainer(SAEConfig(D_IN, 96, rule="jumprelu", k=5)).step(x)
    assert float(first["l0"]) == pytest.approx(5, abs=0.01)


def test_archetypal_gradients_are_those_of_autograd():
    config = SAEConfig(D_IN, 16, k=3, decoder="archetypal", candidates=30)
    trainer = Trainer(config)
    trainer.start(planted(500)[0])
    hull = trainer.hull
    wanted = torch.randn(16, D_IN, generator=torch.Generator().manual_seed(1))
    mix, shift = hull.mix.clone().requires_grad_(), hull.shift.clone().requires_grad_()
    (torch.nn.functional.normalize(mix @ hull.candidates + shift, dim=1) * wanted).sum().backward()
    rows = hull.rows()
    hull.backward(wanted - (wanted * rows).sum(1, keepdim=True) * rows)
    torch.testing.assert_close(hull.mix.grad, mix.grad, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(hull.shift.grad, shift.grad, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(("offset", "steps"), [(0.0, 400), (30.0, 400), (30.0, 1600)])
def test_few_latents_are_dead_even_about_a_large_mean_and_after_long_training(offset, steps):
    x, directions = planted(offset=offset)
    config = SAEConfig(D_IN, 192, k=4, lr=3e-3, dead_after=8000)
    sae = trained(config, x, steps=steps)
    found = quality(sae, x)
    assert found["dead"] <= 0.05
    assert recovered(sae, directions) >= 0.9 and found["fvu"] < 0.12


def test_latents_that_no_token_reaches_come_back_within_a_share_of_the_tokens():
    x, _ = planted(4000)
    sae = trained(RULES["topk"], x, steps=100)
    sae.b_enc[::4] = -4.0  # tokens are some two units long
    config, train = replace(RULES["topk"], revive=0.2), TrainConfig(batch_size=256, steps=15)  # 3840 tokens
    dead = {}
    for share in (1.0, 0.1):
        found = fit(x, replace(config, dead_share=share), train, start=sae, progress=False)
        dead[share] = found.quality["dead"]
    assert dead[1.0] == 16 / 64 and dead[0.1] == 0


def test_a_share_of_the_tokens_changes_nothing_where_no_latent_is_silent_for_so_long(tmp_path):
    x, _ = planted(2000)
    config, train, made = SAEConfig(D_IN, 24, k=4, lr=3e-3), TrainConfig(16, steps=60), []
    for share in (1.0, 0.25, 1e-9):
        folder = tmp_path if share == 0.25 else None
        made.append(fit(x, replace(config, dead_share=share), train, folder, progress=False))
    whole, quarter, none = made
    assert all(torch.equal(tensor, quarter.sae.tensors()[name]) for name, tensor in whole.sae.tensors().items())
    assert not torch.equal(whole.sae.W_enc, none.sae.W_enc), "one token: whoever missed a batch is silent"
    recipe = read_json(tmp_path / "training.json")["sae"]
    assert (recipe["dead_after"], recipe["dead_share"]) == (500, 0.25)
    within = [replace(config, dead_share=share).dead_within(4000) for share in (1.0, 0.1, 1e-9)]
    assert [*within, replace(config, dead_after=300, dead_share=0.1).dead_within(4000)] == [4000, 400, 1, 300]


def test_resampling_points_silent_latents_at_badly_explained_tokens_and_leaves_the_others():
    generator = torch.Generator().manual_seed(0)
    draw = lambda *shape: torch.randn(*shape, generator=generator)  # noqa: E731
    weights = {"W_enc": draw(8, D_IN), "W_dec": draw(8, D_IN), "b_enc": draw(8), "b_dec": draw(D_IN)}
    before = {name: tensor.clone() for name, tensor in weights.items()}
    moments = {name: [torch.ones_like(weights[name])] for name in ("W_enc", "W_dec", "b_enc")}
    silent = torch.tensor([False, True, False, False, True, True, False, False])
    x, error = draw(40, D_IN), torch.zeros(40, D_IN)
    error[[3, 17, 29]] = 1.0  # the only tokens that are explained badly
    assert resample(weights, moments, silent, x, error, 0, World()) == 3
    directions = torch.nn.functional.normalize(x[[3, 17, 29]] - before["b_dec"], dim=1)
    found = (weights["W_dec"][silent] @ directions.T).round(decimals=4)
    assert sorted((found == 1).nonzero()[:, 1].tolist()) == [0, 1, 2]  # each bad token once
    length = before["W_enc"][~silent].norm(dim=1).mean()
    torch.testing.assert_close(weights["W_enc"][silent], 0.2 * length * weights["W_dec"][silent])
    assert bool((weights["b_enc"][silent] == 0).all())
    for name in ("W_enc", "W_dec", "b_enc"):
        assert torch.equal(weights[name][~silent], before[name][~silent])
        assert bool((moments[name][0][silent] == 0).all()) and bool((moments[name][0][~silent] == 1).all())


def test_resampling_where_all_are_silent_draws_by_the_squared_loss_and_starts_at_a_fifth_of_length_1():
    weights = {"W_enc": torch.ones(3400, 2), "W_dec": torch.ones(3400, 2)}
    weights |= {"b_enc": torch.ones(3400), "b_dec": torch.tensor([1.0, 1.0])}
    moments = {name: [torch.ones_like(weights[name])] for name in ("W_enc", "W_dec", "b_enc")}
    x, error = torch.tensor([[4.0, 1.0], [1.0, 9.0]]), torch.tensor([[1.0, 0.0], [0.0, 2.0]])
    assert resample(weights, moments, torch.ones(3400, dtype=torch.bool), x, error, 0, World()) == 3400
    second = weights["W_dec"] == torch.tensor([0.0, 1.0])
    assert bool((second.all(1) | (weights["W_dec"] == torch.tensor([1.0, 0.0])).all(1)).all())
    # Losses 1 and 4, squares 1 and 16: 3200 of 3400 are expected, with a standard deviation of 14.
    assert int(second.all(1).sum()) == pytest.approx(3200, abs=60)
    torch.testing.assert_close(weights["W_enc"], 0.2 * weights["W_dec"])


def test_resampling_revives_silent_latents_and_resets_their_adam_state():
    x, _ = planted(4000)
    config = SAEConfig(D_IN, 64, rule="relu", lr=1e-3, l1=0.05, resample_every=6, dead_after=1024)
    trainer = Trainer(config)
    trainer.start(x[:512])
    trainer.weights["b_enc"][10:20] = -100.0
    for i in range(6):
        trainer.step(x[512 * i : 512 * (i + 1)])
    assert int((trainer.silent >= 1024).sum()) >= 10
    state = trainer.optimizer.state[trainer.weights["W_enc"]]
    state["exp_avg"][:] = 0.5
    x_now = x[:512]
    trainer.step(x_now)
    assert bool((state["exp_avg"][10:20] == 0).all()) and bool((state["exp_avg"][:10] != 0).all())
    centred = torch.nn.functional.normalize(x_now - trainer.weights["b_dec"], dim=1)
    assert float((trainer.weights["W_dec"][10:20] @ centred.T).max(1).values.min()) > 0.999
    assert bool((trainer.sae.encode(x_now).dense()[:, 10:20] > 0).any(0).all())


@pytest.mark.parametrize("rule", ["relu", "jumprelu"])
def test_alone_a_gates_gradients_are_those_of_the_formula_to_the_bit(rule):
    """What shards add to it, sums over them, does nothing where there is one."""
    g = torch.Generator().manual_seed(0)
    shapes = {"W_enc": (32, D_IN), "b_enc": (32,), "W_dec": (32, D_IN), "b_dec": (D_IN,), "threshold": (32,)}
    weights = {name: torch.randn(shape, generator=g).requires_grad_() for name, shape in shapes.items()}
    if rule == "relu":
        del weights["threshold"]
    x, variance = torch.randn(50, D_IN, generator=g), torch.tensor(3.7)
    config = SAEConfig(D_IN, 32, rule=rule, k=5, bandwidth=0.5)
    pre = torch.addmm(weights["b_enc"], x - weights["b_dec"], weights["W_enc"].T).relu()
    made = rules.find(rule).open(pre, weights, config, variance.sqrt(), 50, lambda number: number)
    error = made.codes @ weights["W_dec"] + weights["b_dec"] - x
    plain = error.square().sum() / (50 * variance) + made.penalty
    loss, metrics, _, found = dense.dense_loss(weights, x, config, variance, 50)
    assert torch.equal(found, error) and torch.equal(loss, plain) and float(metrics["l0"]) == float(made.l0.detach())
    every = [torch.autograd.grad(value, list(weights.values())) for value in (loss, plain)]
    assert all(torch.equal(ours, theirs) and bool(theirs.any()) for ours, theirs in zip(*every, strict=True))


@pytest.mark.parametrize("threshold", [0.3, 1.2])
def test_jumprelus_penalty_has_the_gradient_of_the_squared_excess(threshold):
    """Of (L0 / k - 1)^2 times its weight, by autograd through the same L0; and `value` is that number itself."""
    config = SAEConfig(D_IN, 32, rule="jumprelu", k=5, l0_weight=0.7, bandwidth=0.5)
    pre = torch.randn(64, 32, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    theta = torch.full((32,), threshold, dtype=torch.float64, requires_grad=True)
    opened = JumpReLU().open(pre, {"threshold": theta}, config, torch.tensor(1.0), 64, lambda t: t)
    whole = config.l0_weight * (opened.l0 / config.k - 1).square()
    (found,), (expected,) = (torch.autograd.grad(x, theta, retain_graph=True) for x in (opened.penalty, whole))
    assert float(expected.abs().max()) > 1e-4
    torch.testing.assert_close(found, expected)
    assert float(opened.value) == pytest.approx(float(whole.detach()))
