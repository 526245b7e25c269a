"""The sparse step against its dense autograd twin: selection, values, losses, all gradients, Adam."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from saelab.errors import UserError
from saelab.sae import SAEConfig, TrainConfig, Trainer, auxk, objectives, rough, screen, select, settle, train
from saelab.sae.distributed import World

VARIANCE, TOKENS = 3.7, 48


def problem(config: SAEConfig, dtype=torch.float64, seed: int = 0) -> tuple[dict, torch.Tensor]:
    g = torch.Generator().manual_seed(seed)
    rows = torch.nn.functional.normalize(torch.randn(config.latents, config.d_in, generator=g, dtype=dtype), dim=1)
    weights = {
        "W_enc": rows + 0.1 * torch.randn(config.latents, config.d_in, generator=g, dtype=dtype),
        "b_enc": 0.1 * torch.randn(config.latents, generator=g, dtype=dtype) - 0.3,
        "W_dec": rows,
        "b_dec": torch.randn(config.d_in, generator=g, dtype=dtype),
    }
    return weights, weights["b_dec"] + torch.randn(TOKENS, config.d_in, generator=g, dtype=dtype)


def twin_codes(pre: torch.Tensor, config: SAEConfig, k: int) -> torch.Tensor:
    if config.rule == "topk":
        threshold = pre.topk(k, dim=1).values[:, -1:]
    else:
        threshold = pre.flatten().topk(k * len(pre)).values[-1]
    return torch.where(pre >= threshold, pre, 0).relu()


def twin_loss(weights: dict, x: torch.Tensor, config: SAEConfig, silent: torch.Tensor | None = None) -> torch.Tensor:
    """The whole loss, written densely as the papers do."""
    pre = (x - weights["b_dec"]) @ weights["W_enc"].T + weights["b_enc"]
    codes = twin_codes(pre, config, config.k)
    parts = [(1.0, codes)]
    if config.multi_topk:
        parts.append((1 / 8, twin_codes(pre, config, 4 * config.k)))
    if config.prefixes:
        n = len(config.prefix_sizes)
        kept = [codes * (torch.arange(config.latents) < size) for size in config.prefix_sizes]
        parts = [(1 / n, c) for c in kept]
    loss = sum(w * (c @ weights["W_dec"] + weights["b_dec"] - x).square().sum() for w, c in parts) / (len(x) * VARIANCE)
    if silent is not None:
        residual = (x - codes @ weights["W_dec"] - weights["b_dec"]).detach()[:: config.auxk_stride]
        aux = pre[:: config.auxk_stride][:, silent]
        threshold = aux.topk(min(config.aux_latents, aux.shape[1]), dim=1).values[:, -1:]
        guess = torch.where(aux >= threshold, aux, 0).relu() @ weights["W_dec"][silent]
        loss = loss + config.auxk_weight * (guess - residual).square().sum() / residual.square().sum()
    return loss


def twin_gradients(weights: dict, x: torch.Tensor, config: SAEConfig, silent=None) -> tuple[torch.Tensor, dict]:
    leaves = {name: tensor.clone().requires_grad_() for name, tensor in weights.items()}
    loss = twin_loss(leaves, x, config, silent)
    grads = dict(zip(leaves, torch.autograd.grad(loss, list(leaves.values())), strict=True))
    rows = weights["W_dec"]
    grads["W_dec"] = grads["W_dec"] - (grads["W_dec"] * rows).sum(1, keepdim=True) * rows
    return loss.detach(), grads


CONFIGS = {
    "topk": SAEConfig(12, 64, k=4),
    "topk_grouped": SAEConfig(12, 256, k=4),
    "batchtopk": SAEConfig(12, 64, rule="batchtopk", k=4),
    "batchtopk_grouped": SAEConfig(12, 512, rule="batchtopk", k=3),
    "multi_topk": SAEConfig(12, 64, k=4, multi_topk=True),
    "matryoshka": SAEConfig(12, 64, k=6, prefixes=(1 / 16, 1 / 4, 9 / 16, 1)),
    "matryoshka_batch": SAEConfig(12, 64, rule="batchtopk", k=6, prefixes=(0.25, 1)),
}


@pytest.mark.parametrize("name", CONFIGS)
def test_sparse_gradients_equal_the_dense_twins(name):
    config = CONFIGS[name]
    weights, x = problem(config)
    pre = (x - weights["b_dec"]) @ weights["W_enc"].T + weights["b_enc"]
    variance = torch.tensor(VARIANCE, dtype=torch.float64)
    centred = x - weights["b_dec"]
    found, error = objectives.sparse_gradients(weights, centred, pre, config, variance, TOKENS)
    loss, grads = twin_gradients(weights, x, config)
    torch.testing.assert_close(found.metrics["loss"], loss, rtol=1e-10, atol=0)
    for part, gradient in grads.items():
        torch.testing.assert_close(found.grads[part], gradient, rtol=1e-9, atol=1e-12, msg=part)
    codes = twin_codes(pre, config, config.k)
    assert torch.equal(found.fired, (codes > 0).any(0))
    assert float(found.metrics["l0"]) == pytest.approx(float((codes > 0).sum()) / TOKENS)
    torch.testing.assert_close(error, codes @ weights["W_dec"] - centred, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("rule", ["topk", "batchtopk"])
@pytest.mark.parametrize("auxk_k", [3, 64])
@pytest.mark.parametrize("stride", [1, 4])
def test_a_step_with_auxk_equals_the_dense_twin_and_torchs_adam(rule, auxk_k, stride):
    config = SAEConfig(12, 64, rule=rule, k=4, lr=3e-3, auxk_k=auxk_k, auxk_stride=stride, dead_after=2 * TOKENS)
    weights, _ = problem(config, torch.float32)
    trainer = Trainer(config, mean=weights["b_dec"], variance=VARIANCE)
    twin, optimizers, silent = None, None, None
    bias_rate = 3e-3 * (VARIANCE / 12) ** 0.5
    for step in range(6):
        _, x = problem(config, torch.float32, seed=step)
        if step == 0:
            trainer.start(x)
            # latents 40.. are too faint to be kept, so that AuxK has work from the third step on
            trainer.weights["W_enc"][40:] *= 0.01
            twin = {name: tensor.clone().double() for name, tensor in trainer.weights.items()}
            optimizers = [
                torch.optim.Adam([twin["W_enc"], twin["W_dec"]], lr=3e-3),
                torch.optim.Adam([twin["b_enc"], twin["b_dec"]], lr=bias_rate),
            ]
        silent = trainer.silent >= config.dead_after
        columns = silent.nonzero().squeeze(1)
        metrics = trainer.step(x)
        assert ("auxk" in metrics) == bool(len(columns)) and int(metrics["silent"]) >= (24 if step > 0 else 0)
        _, grads = twin_gradients(twin, x.double(), config, columns if len(columns) else None)
        for name, tensor in twin.items():
            tensor.grad = grads[name]
        for optimizer in optimizers:
            optimizer.step()
        twin["W_dec"].div_(twin["W_dec"].norm(dim=1, keepdim=True))
        twin["W_enc"][columns] += config.revive * (twin["W_dec"][columns] - twin["W_enc"][columns])
        twin["b_enc"][columns] *= 1 - config.revive
        for name, tensor in twin.items():
            torch.testing.assert_close(trainer.weights[name].double(), tensor, rtol=2e-4, atol=2e-5)
    assert len(columns) >= 24, "AuxK must have had work"
    assert stride > 1 or 2 * (TOKENS * 64 // (auxk.SHARE * len(columns))) < TOKENS, "in three parts or more"


def test_auxk_reaches_the_encoder_and_leaves_the_living_alone():
    config = SAEConfig(12, 64, k=4, auxk_stride=1)
    weights, x = problem(config)
    columns = torch.arange(50, 64)
    pre = (x - weights["b_dec"]) @ weights["W_enc"].T + weights["b_enc"]
    residual = torch.randn(TOKENS, 12, dtype=torch.float64, generator=torch.Generator().manual_seed(5))
    arguments = (weights, x - weights["b_dec"], pre, -residual, columns, None, config, World())
    grads, loss = auxk.gradients(*arguments)
    assert grads["W_enc"].abs().sum(1).min() > 0 and grads["b_enc"].abs().min() > 0
    # moving b_dec in the decoder only, as a second bias would, must not change the loss
    shifted = {**weights, "b_dec": weights["b_dec"] + 10}
    assert torch.equal(auxk.gradients(shifted, *arguments[1:])[1], loss)


@settings(max_examples=40)
@given(st.integers(1, 9), st.sampled_from([64, 100, 512, 1024]), st.integers(1, 12), st.integers(0, 10**6))
def test_top_k_by_groups_is_top_k(rows, n, k, seed):
    x = torch.randn(rows, n, generator=torch.Generator().manual_seed(seed)).round(decimals=1)  # many ties
    values, indices = select.top_k(x, k)
    assert torch.equal(values.sort(1, descending=True).values, x.topk(k, dim=1).values)
    assert torch.equal(x.gather(1, indices), values)
    assert all(len(set(row.tolist())) == k for row in indices)


@settings(max_examples=40)
@given(st.integers(1, 9), st.sampled_from([64, 100, 512, 1024]), st.integers(1, 5), st.integers(0, 10**6))
def test_top_of_batch_is_the_top_of_all(rows, n, k, seed):
    x = torch.randn(rows, n, generator=torch.Generator().manual_seed(seed))
    values, flat = select.top_of_batch(x, k * rows)
    assert torch.equal(values, x.flatten()[flat])
    assert torch.equal(flat, x.flatten().topk(k * rows).indices.sort().values)


def test_top_k_takes_infinities_zeros_and_equals_as_they_come():
    x = torch.full((4, 1024), -torch.inf)
    x[0, 5:9], x[1, 100:300], x[2, ::7], x[3, 1000:] = torch.inf, 0.0, 1.5, torch.arange(24.0) - 12
    values, indices = select.top_k(x, 6)
    assert torch.equal(values.sort(1, descending=True).values, x.topk(6, dim=1).values)
    assert torch.equal(x.gather(1, indices), values)
    assert all(len(set(row.tolist())) == 6 for row in indices)


def test_a_number_that_is_none_is_selected_so_that_a_loss_shows_it():
    x = torch.randn(3, 1024, generator=torch.Generator().manual_seed(0))
    x[1, 700] = torch.nan
    assert 700 in select.top_k(x, 5)[1][1] and not select.top_k(x, 5)[0][[0, 2]].isnan().any()
    assert 1024 + 700 in select.top_of_batch(x, 9)[1]


@settings(max_examples=40)
@given(st.integers(1, 9), st.sampled_from([64, 100, 512, 1024]), st.integers(1, 5), st.integers(0, 10**6))
def test_top_of_batch_takes_the_count_also_among_equals(rows, n, k, seed):
    x = torch.randn(rows, n, generator=torch.Generator().manual_seed(seed)).round(decimals=1)
    values, flat = select.top_of_batch(x, k * rows)
    assert torch.equal(values, x.flatten()[flat]) and (flat.diff() > 0).all()
    assert torch.equal(values.sort(descending=True).values, x.flatten().topk(k * rows).values)


def test_batchtopk_is_free_to_spend_all_on_one_token():
    x = torch.zeros(8, 1024)
    x[3] = torch.arange(1024).flip(0) + 1.0
    assert torch.equal(select.top_of_batch(x, 64)[1], 3 * 1024 + torch.arange(64))


def test_a_step_refuses_another_width_and_a_constant_batch():
    trainer = Trainer(SAEConfig(12, 64, k=4))
    with pytest.raises(UserError, match=r"\[batch, 12\]"):
        trainer.step(torch.randn(8, 13))
    with pytest.raises(UserError, match="constant"):
        trainer.step(torch.ones(8, 12))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"k": 65}, "k=65"),
        ({"rule": "top"}, "rule=top"),
        ({"lr": -1.0}, "lr=-1"),
        ({"prefixes": (0.5, 0.25)}, "prefixes"),
        ({"prefixes": (0.5,)}, "prefixes"),
        ({"prefixes": (0.5, 1), "rule": "relu"}, "prefixes"),
        ({"multi_topk": True, "k": 32}, "multi_topk"),
        ({"kernels": "cuda"}, "kernels=cuda"),
        ({"kernels": "triton", "rule": "relu"}, "kernels"),
        ({"screen": "bfloat16", "rule": "jumprelu"}, "screen=bfloat16: needs rule=topk or batchtopk"),
        ({"screen": "bfloat16", "decoder": "archetypal"}, "screen=bfloat16: .*decoder=free"),
        ({"clip": -1.0}, "clip=-1.0: 0 or more"),
        ({"l1": float("nan"), "rule": "relu"}, "l1=nan"),
        ({"revive": 1.5}, "revive=1.5: from 0 to 1"),
        ({"dead_share": 0.0}, "dead_share=0.0: above 0, at most 1"),
        ({"dead_share": 1.5}, "dead_share=1.5"),
        ({"encoder_length": 0.0}, "encoder_length=0.0: above 0, at most 1"),
        ({"encoder_length": 1.5}, "encoder_length=1.5"),
        ({"encoder_length": 0.2, "rule": "jumprelu"}, "encoder_length=0.2: needs rule=topk or batchtopk"),
        ({"bandwidth": 0.0, "rule": "jumprelu"}, "bandwidth=0.0"),
        ({"auxk_k": 0}, "auxk_k=0"),
        ({"prefixes": ("a", 1)}, "prefixes=.*a list of numbers"),
    ],
)
def test_configs_that_cannot_be_trained_are_refused(arguments, message):
    with pytest.raises(UserError, match=message):
        SAEConfig(12, 64, **{"k": 4, **arguments})


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"anneal": 1.5}, "anneal=1.5: from 0 to 1"),
        ({"epochs": float("nan")}, "epochs=nan: must be positive and finite"),
        ({"epochs": -1}, "epochs=-1: must be positive and finite"),
        ({"steps": 0}, "steps=0: must be at least 1"),
        ({"decay": [[0.8]]}, "decay=.*pairs of numbers"),
        ({"decay": [0.8, 0.1]}, "decay=.*pairs of numbers"),
    ],
)
def test_schedules_that_cannot_be_are_refused(arguments, message):
    with pytest.raises(UserError, match=message):
        TrainConfig(**arguments)


@pytest.mark.parametrize("by", ["bfloat16", "int8"])
def test_a_screen_changes_which_latents_are_looked_at_and_no_value(by):
    """Separated pre-activations: the screen loses no member, so that step and gradients are the plain ones."""
    settings = {"k": 4, "lr": 1e-3, "dead_after": 2 * TOKENS, "auxk_stride": 4}
    plain, screened = (Trainer(SAEConfig(12, 256, screen=s, **settings)) for s in ("float32", by))
    assert screened.screened and not plain.screened
    _, x = problem(SAEConfig(12, 256, k=4), torch.float32)
    for trainer in (plain, screened):
        trainer.start(x)
        trainer.weights["W_enc"][200:] *= 0.01
        trainer.silent[200:] = 10**6
    for step in range(4):
        _, x = problem(SAEConfig(12, 256, k=4), torch.float32, seed=step)
        a, b = plain.step(x), screened.step(x)
        assert a.keys() == b.keys() - {"screen_recall"} and ("screen_recall" in b) == (step == 0)
        for name in a:
            torch.testing.assert_close(b[name], a[name], rtol=1e-4, atol=1e-6, msg=name)
        for name, tensor in plain.weights.items():
            torch.testing.assert_close(screened.weights[name], tensor, rtol=1e-3, atol=1e-4, msg=name)


def test_the_screen_that_auto_comes_to_is_written_into_configs(monkeypatch):
    monkeypatch.setattr(rough, "has_fast_bfloat16", lambda device: device.type == "cuda")
    monkeypatch.setattr(rough, "has_fast_int8", lambda device: False)
    monkeypatch.setattr(rough, "has_amx", lambda device: False)
    auto = SAEConfig(12, 64, k=4)
    assert settle(auto, "cuda").screen == "bfloat16" and settle(auto, "cpu") == auto
    others = ({"screen": "float32"}, {"rule": "batchtopk"}, {"decoder": "archetypal"})
    for other in (SAEConfig(12, 64, k=4, **more) for more in others):
        assert settle(other, "cuda") == other


@pytest.mark.parametrize("by", ["bfloat16", "int8"])
@pytest.mark.parametrize("rows", [64, 512, 513, 1300])
def test_the_screen_finds_the_true_members_with_float32_values(rows, by):
    """However many rows: on the CPU 512 at a time."""
    g = torch.Generator().manual_seed(0)
    x, W, bias = torch.randn(rows, 48, generator=g), torch.randn(512, 48, generator=g), torch.randn(512, generator=g)
    values, indices = screen.screened_top_k(x, W, bias, 16, by)
    pre = x @ W.T + bias
    torch.testing.assert_close(values, pre.gather(1, indices), rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(values.sort(1).values, pre.topk(16).values.sort(1).values, rtol=1e-5, atol=1e-5)


def near_copies(groups: int = 8, copies: int = 40) -> tuple[torch.Tensor, torch.Tensor]:
    """Rows that differ by a quarter of bfloat16's resolution within a group, and tokens whose top k is one group."""
    g = torch.Generator().manual_seed(0)
    rows = torch.randn(groups, 48, generator=g).repeat_interleave(copies, 0)
    return rows[::copies].repeat(80, 1), rows + 1e-3 * torch.randn(rows.shape, generator=g)


def test_the_screens_recall_counts_true_members_that_it_loses():
    x, W = near_copies()
    bias, k = torch.zeros(len(W)), 10
    true = (x.double() @ W.double().T).topk(k, dim=1).indices
    found = screen.screened_top_k(x, W, bias, k)[1]
    kept = sum(len(set(a) & set(b)) for a, b in zip(true.tolist(), found.tolist())) / true.numel()
    assert kept < 0.9
    assert float(screen.screen_recall(x, W, bias, k)) == pytest.approx(kept, abs=0.01)
    apart = torch.randn(300, 48, generator=torch.Generator().manual_seed(1))
    assert float(screen.screen_recall(x, apart, torch.zeros(300), k)) == 1


def test_a_screen_that_loses_members_is_given_up_in_the_middle_of_a_run(monkeypatch, caplog):
    """Encoder rows that have become near copies; checkpoints say which product chooses, so a resume goes on alike."""
    x, W = near_copies()
    monkeypatch.setattr(train, "RECALL_EVERY", 2)
    trainer = Trainer(SAEConfig(48, len(W), k=10, screen="bfloat16", lr=1e-6))
    assert float(trainer.step(x)["screen_recall"]) == 1 and trainer.screened
    trainer.weights["W_enc"].copy_(W)
    assert "screen_recall" not in trainer.step(x) and trainer.screened
    state = {name: tensor.clone() for name, tensor in trainer.state().items()}
    found = trainer.step(x)
    assert float(found["screen_recall"]) < 0.9 and not trainer.screened
    assert "the bfloat16 screen finds 0." in caplog.text and "at step 2" in caplog.text
    assert not bool(trainer.state()["screened"]) and bool(state["screened"])
    resumed = Trainer(trainer.config)
    resumed.restore(trainer.state())
    assert not resumed.screened
    resumed.restore(state)
    assert resumed.screened and float(resumed.step(x)["screen_recall"]) < 0.9
    assert all(torch.equal(tensor, resumed.state()[name]) for name, tensor in trainer.state().items())


def test_archetypal_rows_start_as_near_copies_that_the_screen_would_lose_members_among():
    """Why an archetypal decoder is not screened: 200 rows over 10 data points, so 20 near copies of each."""
    x = torch.randn(400, 12, generator=torch.Generator().manual_seed(0)) + 2
    lost = {}
    for decoder in ("free", "archetypal"):
        trainer = Trainer(SAEConfig(12, 200, k=4, decoder=decoder, candidates=10))
        trainer.start(x)
        weights = trainer.weights
        found, _ = screen.screened_top_k(x - weights["b_dec"], weights["W_enc"], weights["b_enc"], 4)
        true = trainer.sae.pre_activations(x).topk(4).values
        lost[decoder] = int((found.sort(1).values < true.sort(1).values - 1e-5).any(1).sum())
    assert lost["free"] == 0 and lost["archetypal"] > 20


def test_auxk_without_a_count_of_the_silent_takes_the_same_steps():
    config = SAEConfig(12, 64, k=3, lr=1e-3, auxk_k=4, auxk_stride=2, dead_after=200)
    x = torch.randn(400, 12, generator=torch.Generator().manual_seed(3)) + 1.0
    counting, fixed = Trainer(config, mean=x.mean(0), variance=12.0), Trainer(config, mean=x.mean(0), variance=12.0)
    assert counting.counts_silent
    fixed.counts_silent = False
    worked = 0
    for step in range(30):
        for trainer in (counting, fixed):
            if not trainer.weights:
                trainer.start(x)
                trainer.weights["b_enc"][:7] = -30.0  # silent from the start; at most an eighth: 8
        batch = x[step % 8 * 50 :][:50]
        ours, theirs = counting.step(batch), fixed.step(batch)
        assert int(ours["silent"]) == int(theirs["silent"]) <= 8
        worked += "auxk" in ours
        torch.testing.assert_close(ours.get("auxk", torch.zeros(())), theirs["auxk"], rtol=1e-5, atol=1e-7)
        for name, tensor in counting.weights.items():
            torch.testing.assert_close(fixed.weights[name], tensor, rtol=1e-5, atol=1e-6, msg=name)
    assert worked > 10
