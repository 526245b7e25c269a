"""Rough products by int8 against integer arithmetic, what ranks them, and a screen that loses members in a run."""

import pytest
import torch
from test_sae_screen import exactly, problem
from test_sae_step import near_copies

from saelab.errors import UserError
from saelab.sae import SAEConfig, TrainConfig, Trainer, fit, rough, screen, select, train


def test_rows_are_quantised_to_within_half_a_step_of_their_own_scale():
    """In several chunks; a row of zeros stays zero, and numbers that are none show in the row's scale."""
    x, _, _ = problem(1100, 8)
    x[3], x[7, 2], x[9, 1] = 0, torch.nan, torch.inf
    whole, scale = rough.quantise(x)
    fine = torch.ones(len(x), dtype=torch.bool)
    fine[[7, 9]] = False
    assert whole.dtype == torch.int8 and int(whole.min()) >= -127 and not bool(scale[[7, 9]].isfinite().any())
    moved = (whole.double() * scale.double().unsqueeze(1) - x.double()).abs()[fine]
    assert (moved <= 0.5 * scale.double().unsqueeze(1)[fine] * (1 + 1e-5)).all() and moved.max() > 0
    assert (whole[fine].abs().amax(1) == torch.where(x[fine].abs().amax(1) > 0, 127, 0)).all()
    torch.testing.assert_close(rough.quantise(-x[fine])[0], -whole[fine], rtol=0, atol=0)


@pytest.mark.parametrize(("rows", "n", "d_in"), [(1, 7, 5), (130, 100, 48), (513, 64, 3), (1300, 96, 48)])
def test_the_int8_product_is_the_integer_sum_times_both_scales(rows, n, d_in):
    g = torch.Generator().manual_seed(0)
    x, W, bias = (torch.randn(*shape, generator=g) for shape in ((rows, d_in), (n, d_in), (n,)))
    (qx, sx), (qw, sw) = rough.quantise(x), rough.quantise(W)
    wanted = (qx.long() @ qw.long().T).double() * sx.double().unsqueeze(1) * sw.double() + bias.double()
    seen = 0
    for first, wide in rough.in_chunks(x, W, bias, "int8"):
        assert first == seen
        torch.testing.assert_close(wide.double(), wanted[first : first + len(wide)], rtol=1e-5, atol=1e-5)
        seen += len(wide)
    assert seen == rows


def outliers(by: float) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Tokens with one dimension `by` times as large as the others, to which the encoder pays no attention."""
    x, W, bias = problem(600, 640)
    x = torch.randn(x.shape, generator=torch.Generator().manual_seed(1))
    x[:, 0] *= by
    W[:, 0] = 0
    return x, W, bias


def test_outlier_dimensions_cost_int8_members_that_recall_counts():
    """At 30 times the rest int8 still finds them all; at 3000 times it rounds the rest away, which bfloat16 doesn't."""
    found = {}
    for by in (1, 30, 3000):
        x, W, bias = outliers(by)
        true = exactly(x, W, bias).topk(4, dim=1).indices
        for name in ("bfloat16", "int8"):
            members = screen.screened_top_k(x, W, bias, 4, name)[1]
            kept = (true.unsqueeze(2) == members.unsqueeze(1)).any(2).double().mean()
            assert float(screen.screen_recall(x, W, bias, 4, name)) == pytest.approx(float(kept), abs=1e-3)
            found[by, name] = float(kept)
    assert found[1, "int8"] == 1 and found[3000, "int8"] < 0.5
    assert found[3000, "bfloat16"] == found[1, "bfloat16"] > 0.999, "1 of 2,400: equal to another in bfloat16"
    assert found[30, "int8"] > 0.98


@pytest.mark.parametrize(("rows", "n", "k"), [(64, 512, 4), (1300, 512, 5), (70, 100, 3), (9, 512, 100)])
def test_int8_finds_the_largest_of_a_batch_with_float32_values(rows, n, k):
    """By groups and without them, in one chunk and in several; an outlier token takes what it can."""
    x, W, bias = problem(rows, n)
    x[:, :3] /= 30
    values, flat = screen.screened_top_of_batch(x, W, bias, k * rows, "int8")
    pre = exactly(x, W, bias).flatten()
    assert len(set(flat.tolist())) == k * rows and bool((flat.diff() > 0).all())
    torch.testing.assert_close(values.double(), pre[flat], rtol=1e-5, atol=1e-4)
    best = pre.topk(k * rows).values
    torch.testing.assert_close(values.double().sort(descending=True).values, best, rtol=1e-5, atol=1e-4)
    assert (flat // n == rows // 2).sum() > k, "more than a token's share"
    assert float(screen.screen_recall_of_batch(x, W, bias, k * rows, "int8")) == 1


def test_rows_that_no_rounding_can_tell_apart_are_lost_and_counted_by_both_rules():
    """Equal rows are ties, which lose nothing; near copies are lost."""
    x, W = near_copies()
    equal, bias = W[::40].repeat_interleave(40, 0), torch.zeros(len(W))
    for rows, least, most in ((equal, 1, 1), (W, 0, 0.9)):
        assert least <= float(screen.screen_recall(x, rows, bias, 10, "int8")) <= most
        assert least <= float(screen.screen_recall_of_batch(x, rows, bias, 1000, "int8")) <= most


@pytest.mark.parametrize("rule", ["topk", "batchtopk"])
@pytest.mark.parametrize(("scale", "fast", "after"), [(3000, True, "bfloat16"), (3000, False, "float32")])
def test_recall_that_falls_in_a_run_changes_the_product_and_checkpoints_say_to_which(
    rule, scale, fast, after, monkeypatch, caplog
):
    monkeypatch.setattr(train, "RECALL_EVERY", 2)
    monkeypatch.setattr(rough, "has_fast_bfloat16", lambda device: fast)
    (x, W, _), (later, _, _) = outliers(1), outliers(scale)
    trainer = Trainer(SAEConfig(48, 640, rule=rule, k=4, screen="int8", lr=1e-6), mean=torch.zeros(48), variance=48.0)
    assert float(trainer.step(x)["screen_recall"]) == 1 and trainer.screen == "int8"
    trainer.weights["W_enc"].copy_(W)
    assert "screen_recall" not in trainer.step(later) and trainer.screen == "int8"
    state = {name: tensor.clone() for name, tensor in trainer.state().items()}
    recall = float(trainer.step(later)["screen_recall"])
    assert trainer.screen == after and (recall == 1) == fast
    assert "the int8 screen finds 0." in caplog.text and f"at step 2, 0.9999 wanted: {after}" in caplog.text
    resumed = Trainer(trainer.config)
    resumed.restore(trainer.state())
    assert resumed.screen == after
    resumed.restore(state)
    assert resumed.screen == "int8"
    resumed.step(later)
    assert resumed.screen == after
    assert all(torch.equal(tensor, resumed.state()[name]) for name, tensor in trainer.state().items())


def test_both_screens_are_given_up_at_once_where_neither_finds_the_members(monkeypatch, caplog):
    monkeypatch.setattr(train, "RECALL_EVERY", 1)
    monkeypatch.setattr(rough, "has_fast_bfloat16", lambda device: True)
    x, W = near_copies()
    trainer = Trainer(SAEConfig(48, len(W), k=10, screen="int8", lr=1e-6))
    trainer.step(x)
    trainer.weights["W_enc"].copy_(W)
    assert float(trainer.step(x)["screen_recall"]) < 0.9 and trainer.screen == "float32"
    assert "the int8 screen finds" in caplog.text and "the bfloat16 screen finds" in caplog.text


@pytest.mark.parametrize(("old", "screen_now"), [(False, "float32"), (True, "bfloat16")])
def test_checkpoints_from_before_int8_say_which_product_chose(old, screen_now):
    x, _, _ = outliers(1)
    trainer = Trainer(SAEConfig(48, 640, k=4, screen="int8"))
    trainer.step(x)
    trainer.restore({**trainer.state(), "screened": torch.tensor(old)})
    assert trainer.screen == screen_now


def test_int8_is_refused_elsewhere_than_on_the_cpu_and_where_nothing_is_screened():
    with pytest.raises(UserError, match="screen=int8: needs the CPU, not cuda"):
        Trainer(SAEConfig(12, 64, k=4, screen="int8"), "cuda")
    for settings in ({"decoder": "archetypal"}, {"rule": "jumprelu"}):
        with pytest.raises(UserError, match=r"screen=int8: needs .*decoder=free"):
            SAEConfig(12, 64, k=4, screen="int8", **settings)


def test_a_run_says_which_screen_it_used_so_that_another_is_another_recipe(tmp_path):
    x, _, _ = outliers(1)
    config, long = SAEConfig(48, 640, k=4, screen="int8", lr=1e-3), TrainConfig(batch_size=64, steps=8, log_every=1)
    whole = fit(x, config, long, tmp_path / "whole", progress=False)
    assert '"screen": "int8"' in (tmp_path / "whole" / "training.json").read_text()
    plain = fit(x, SAEConfig(48, 640, k=4, screen="float32", lr=1e-3), long, progress=False)
    torch.testing.assert_close(whole.sae.W_dec, plain.sae.W_dec, rtol=1e-3, atol=1e-4)
    with pytest.raises(UserError, match=r"sae\.screen was int8, is bfloat16"):
        fit(x, SAEConfig(48, 640, k=4, screen="bfloat16", lr=1e-3), long, tmp_path / "whole", progress=False)


def test_numbers_that_are_none_come_through_the_int8_screen_for_all_to_see():
    x, W, bias = outliers(1)
    x[5] = torch.nan
    values, _ = screen.screened_top_k(x, W, bias, 4, "int8")
    assert values[5].isnan().any() and not values[:5].isnan().any() and not values[6:].isnan().any()
    x[5], W[9] = 0, torch.nan
    assert screen.screened_top_k(x, W, bias, 4, "int8")[0].isnan().any(1).all()


@pytest.mark.parametrize("make", ["alike", "few", "equals", "zeros"])
def test_about_so_many_of_the_largest_leave_out_none_that_is_larger(make):
    """Where a few latents hold them all, or many are equal, exactly so many."""
    g = torch.Generator().manual_seed(0)
    x, count = torch.randn(300, 640, generator=g).abs(), 2000
    if make == "few":
        x[:, :32] += 3
    elif make == "equals":
        x = torch.randint(0, 4, x.shape, generator=g).float()
    elif make == "zeros":
        x[:] = 0
    x = x.bfloat16()
    found = select.about_the_largest(x, select.maxima_of(x.float(), select.GROUP), count)
    assert bool((found.diff() > 0).all()) and 0.9 * count <= len(found) <= 1.5 * count
    values = x.float().flatten()[found].sort(descending=True).values
    torch.testing.assert_close(values, x.float().flatten().topk(len(found)).values, rtol=0, atol=0)
    assert (len(found) == count) == (make != "alike"), "elsewhere no bound says about so many"


def test_a_number_that_is_none_is_among_the_largest():
    x = torch.randn(300, 640, generator=torch.Generator().manual_seed(0)).bfloat16()
    x[7, 9] = torch.nan
    assert 7 * 640 + 9 in select.about_the_largest(x, select.maxima_of(x.float(), select.GROUP), 2000).tolist()
