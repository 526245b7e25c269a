"""The screens of BatchTopK and of encoding, against brute force in float64: what it may lose, and must not."""

import pytest
import torch
from test_sae_step import near_copies

from saelab.sae import SAE, SAEConfig, Trainer, rough, rules, screen, select, settle
from saelab.sae.distributed import Group, World
from saelab.sae.model import Meta


def problem(rows: int, n: int, d_in: int = 48, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Tokens with three outlier dimensions and one outlier token, as hosts have them; encoder rows; a bias."""
    g = torch.Generator().manual_seed(seed)
    x, W = torch.randn(rows, d_in, generator=g), torch.randn(n, d_in, generator=g)
    x[:, :3] *= 30
    x[rows // 2] *= 20
    return x, torch.nn.functional.normalize(W, dim=1), 0.3 * torch.randn(n, generator=g)


def exactly(x: torch.Tensor, W: torch.Tensor, bias: torch.Tensor) -> torch.Tensor:
    return x.double() @ W.double().T + bias.double()


def same_but_for_rounding(values: torch.Tensor, indices: torch.Tensor, pre: torch.Tensor) -> None:
    """Of each row: distinct latents, each with its float64 value, and no other latent has more by float64."""
    k = indices.shape[1]
    assert all(len(set(row)) == k for row in indices.tolist())
    scale = float(pre.abs().max())
    torch.testing.assert_close(values.double(), pre.gather(1, indices).relu(), rtol=1e-5, atol=1e-6 * scale)
    best = pre.topk(k, dim=1).values.relu()
    torch.testing.assert_close(values.double().sort(1, descending=True).values, best, rtol=1e-5, atol=1e-6 * scale)


@pytest.mark.parametrize(("rows", "n", "k"), [(64, 512, 4), (512, 512, 4), (1300, 512, 5), (70, 100, 3), (9, 512, 100)])
def test_the_screened_largest_of_a_batch_are_the_float32_products(rows, n, k):
    """By groups and without them, in one chunk and in several; an outlier token takes what it can."""
    x, W, bias = problem(rows, n)
    values, flat = screen.screened_top_of_batch(x, W, bias, k * rows)
    pre = exactly(x, W, bias).flatten()
    assert len(set(flat.tolist())) == k * rows and bool((flat.diff() > 0).all())
    torch.testing.assert_close(values.double(), pre[flat], rtol=1e-5, atol=1e-4)
    best = pre.topk(k * rows).values
    torch.testing.assert_close(values.double().sort(descending=True).values, best, rtol=1e-5, atol=1e-4)
    assert (flat // n == rows // 2).sum() > k, "more than a token's share"
    assert float(screen.screen_recall_of_batch(x, W, bias, k * rows)) == 1


def test_the_recall_of_a_batch_counts_true_members_that_the_screen_loses():
    x, W = near_copies()
    x, bias, count = x.clone(), torch.zeros(len(W)), 1000
    x *= torch.linspace(1, 1.001, len(x)).unsqueeze(1)
    true = exactly(x, W, bias).flatten().topk(count).indices
    found = screen.screened_top_of_batch(x, W, bias, count)[1]
    kept = len(set(true.tolist()) & set(found.tolist())) / count
    assert kept < 0.95
    assert float(screen.screen_recall_of_batch(x, W, bias, count)) == pytest.approx(kept, abs=0.01)


@pytest.mark.parametrize("by", ["bfloat16", "int8"])
def test_batchtopk_trains_by_the_screen_as_without(by):
    settings = {"rule": "batchtopk", "k": 4, "lr": 1e-3, "dead_after": 96, "auxk_stride": 4}
    plain, screened = (Trainer(SAEConfig(12, 512, screen=s, **settings)) for s in ("float32", by))
    g = torch.Generator().manual_seed(0)
    for step in range(4):
        x = torch.randn(48, 12, generator=g) + 1
        a, b = plain.step(x), screened.step(x)
        assert screened.screened and ("screen_recall" in b) == (step == 0)
        for name in a:
            torch.testing.assert_close(b[name], a[name], rtol=1e-4, atol=1e-6, msg=name)
        for name, tensor in plain.weights.items():
            torch.testing.assert_close(screened.weights[name], tensor, rtol=1e-3, atol=1e-4, msg=name)
    torch.testing.assert_close(screened.threshold, plain.threshold, rtol=1e-4, atol=0)
    assert "auxk" in b and screened._pre is None, "no float32 matrix of the batch's pre-activations"


def test_two_processes_keep_their_parts_of_the_batchs_largest():
    x, W, bias = problem(128, 640)
    halves, k = x.split([64, 64]), 4
    weights, config = {"W_enc": W, "b_enc": bias}, SAEConfig(48, 640, rule="batchtopk", k=k, screen="bfloat16")
    best = [screen.screened_top_of_batch(half, W, bias, 2 * k * 64)[0] for half in halves]
    found = []

    class Two(Group):
        def gather(self, tensor: torch.Tensor) -> torch.Tensor:
            return torch.cat(best)

    for rank, half in enumerate(halves):
        world, two = World(), Two()
        two.size, two.rank = 2, rank
        world.all = world.data = two
        pairs, _ = rules.find("batchtopk").pairs(None, config, world, weights, half)
        rows = torch.arange(64).repeat_interleave(pairs.offsets.diff())
        found.append(torch.zeros(64, 640).index_put((rows, pairs.latents), pairs.values))
    pre = exactly(x, W, bias).flatten()
    whole = torch.zeros(128 * 640).double().scatter(0, pre.topk(128 * k).indices, pre.topk(128 * k).values)
    torch.testing.assert_close(torch.cat(found).double().flatten(), whole.relu(), rtol=1e-5, atol=1e-4)


def test_batchtopk_is_screened_where_its_largest_are_found_by_groups(monkeypatch):
    """By int8, which has twice as many candidates, from more latents on than by bfloat16."""
    monkeypatch.setattr(rough, "has_fast_bfloat16", lambda device: True)
    monkeypatch.setattr(rough, "has_amx", lambda device: False)
    sizes, wanted = (64, 368, 384, 392, 496, 512), ["auto", "auto", "bfloat16", "auto", "bfloat16", "int8"]
    for fast in (True, False):
        monkeypatch.setattr(rough, "has_fast_int8", lambda device, fast=fast: fast)
        found = [settle(SAEConfig(12, n, rule="batchtopk", k=4), "cpu").screen for n in sizes]
        assert found == [name if fast or name == "auto" else "bfloat16" for name in wanted]


@pytest.mark.parametrize("rule", ["topk", "batchtopk"])
def test_with_amx_auto_is_bfloat16_for_wide_activations_and_float32_for_narrow_ones(rule, monkeypatch):
    """Whatever else the processor has; what a rule has no use for stays as it is."""
    for test in ("has_fast_bfloat16", "has_fast_int8", "has_amx"):
        monkeypatch.setattr(rough, test, lambda device: device.type == "cpu")
    widths, wanted = (12, 384, 511, 512, 768), ["auto", "auto", "auto", "bfloat16", "bfloat16"]
    assert [settle(SAEConfig(d_in, 2048, rule=rule, k=8), "cpu").screen for d_in in widths] == wanted
    assert settle(SAEConfig(768, 64, rule="batchtopk", k=32), "cpu").screen == "auto"
    assert settle(SAEConfig(768, 2048, rule=rule, k=8), "cuda").screen == "auto", "the card is asked, not its host"
    given = SAEConfig(768, 2048, rule=rule, k=8, screen="int8")
    assert settle(given, "cpu") == given


@pytest.mark.parametrize("rule", ["topk", "batchtopk"])
def test_with_int8_alone_auto_is_int8_for_wide_activations_and_float32_for_narrow_ones(rule, monkeypatch):
    monkeypatch.setattr(rough, "has_fast_int8", lambda device: device.type == "cpu")
    for test in ("has_fast_bfloat16", "has_amx"):
        monkeypatch.setattr(rough, test, lambda device: False)
    widths, wanted = (12, 384, 511, 512, 768), ["auto", "auto", "auto", "int8", "int8"]
    assert [settle(SAEConfig(d_in, 2048, rule=rule, k=8), "cpu").screen for d_in in widths] == wanted


@pytest.mark.parametrize("rows", [64, 513])
@pytest.mark.parametrize("scale", [1e-3, 1.0, 1e4])
def test_encoding_by_the_screen_gives_the_largest_of_each_token_whatever_the_numbers(rows, scale):
    x, W, bias = problem(rows, 640)
    for b in (bias, bias - 3 * scale):
        same_but_for_rounding(*screen.exact_top_k(scale * x, W, b, 6), exactly(scale * x, W, b))


def test_encoding_loses_nothing_where_training_would():
    """Rows that bfloat16 can't tell apart: 40 of a kind, 2 k = 20 candidates."""
    x, W = near_copies()
    bias, pre = torch.zeros(len(W)), exactly(*near_copies(), torch.zeros(len(W)))
    found = screen.screened_top_k(x, W, bias, 10)[1]
    assert pre.gather(1, found).sum() < pre.topk(10, dim=1).values.sum() - 1e-3
    same_but_for_rounding(*screen.exact_top_k(x, W, bias, 10), pre)
    threshold = pre.topk(10, dim=1).values.amin().float().expand(len(W))
    codes = screen.exact_codes(x[:40], W, bias, threshold)
    assert codes is None or torch.equal(codes > 0, pre[:40] > threshold)


@pytest.mark.parametrize("least", [0.0, 3.0])
def test_codes_above_thresholds_are_float32s(least):
    """Thresholds of every size, some below 0, where nothing below 0 may stay; numbers right at their threshold."""
    x, W, bias = problem(600, 640)
    pre = torch.addmm(bias, x, W.T)
    threshold = pre.kthvalue(596, dim=0).values.clamp(min=least)
    threshold[:40] = pre[:, :40].amax(0)  # met, not exceeded
    threshold[40:50] = -1.0
    bias = torch.where(torch.arange(640) >= 600, bias - 200, bias)  # nothing of these
    bias[40:50] -= 60
    codes = screen.exact_codes(x, W, bias, threshold)
    exact = exactly(x, W, bias)
    wanted = torch.where(exact > threshold.clamp(min=0), exact, 0)
    clear = (exact - threshold.clamp(min=0)).abs() > 1e-4
    torch.testing.assert_close(codes[clear].double(), wanted[clear], rtol=1e-5, atol=1e-4)
    assert (codes >= 0).all() and (codes[:, 600:] == 0).all() and 0 < (codes > 0).sum() < 600 * 20


def test_where_much_exceeds_its_threshold_one_float32_product_is_asked_for():
    x, W, bias = problem(600, 640)
    assert screen.exact_codes(x, W, bias, torch.full((640,), 0.1)) is None


def test_rounding_moves_no_product_by_more_than_the_slack_and_may_move_it_by_much_of_that():
    """At random and at the worst: numbers halfway between two of bfloat16's, whose losses all have one sign."""
    for x, W, bias in (problem(64, 128), problem(64, 128, seed=1)):
        rough = torch.addmm(bias.bfloat16(), x.bfloat16(), W.bfloat16().T).double()
        moved = (rough - exactly(x, W, bias)).abs() - 2 * screen.UNIT * rough.abs()
        assert (moved <= screen.slack(x, W, bias).unsqueeze(1)).all()
    half = 1 + 2.0**-8 - 2.0**-18  # rounds down to 1
    x, W = torch.full((4, 64), half), torch.full((8, 64), half)
    rough = torch.addmm(torch.zeros(8).bfloat16(), x.bfloat16(), W.bfloat16().T).double()
    moved, room = (rough - exactly(x, W, torch.zeros(8))).abs().amax(), screen.slack(x, W, torch.zeros(8))[0]
    assert room / 2 < moved <= room + 2 * screen.UNIT * rough.amax()


@pytest.mark.parametrize("rule", ["topk", "batchtopk", "jumprelu"])
def test_an_sae_encodes_alike_with_and_without_the_screen(rule, monkeypatch):
    x, W, bias = problem(700, 640)
    above = {"topk": None, "batchtopk": torch.full((640,), 45.0), "jumprelu": torch.linspace(30, 60, 640)}[rule]
    sae = SAE(W, bias, W, x.mean(0), Meta(rule, 8), above)
    asked, found = [], {}
    for name in ("exact_top_k", "exact_codes"):
        real = getattr(screen, name)
        monkeypatch.setattr(screen, name, lambda *given, real=real: (asked.append(1), real(*given))[1])
    for fast in (False, True):
        monkeypatch.setattr(rough, "has_fast_bfloat16", lambda device, fast=fast: fast)
        assert sae.screens(700) == fast and not sae.screens(screen.ROWS - 1)
        found[fast] = sae.encode_dense(x)
        assert len(asked) == fast
    assert ((found[True] > 0) == (found[False] > 0)).float().mean() > 1 - 1e-6
    torch.testing.assert_close(found[True], found[False], rtol=1e-5, atol=1e-4)
    codes = sae.encode(x)
    torch.testing.assert_close(codes.dense(), found[True], rtol=0, atol=0)
    sae.meta = Meta(rule, 11)
    assert not sae.screens(700), "2 k of 640 latents are too many to look at twice"


def test_numbers_that_are_none_come_through_the_screen_for_all_to_see():
    x, W, bias = problem(600, 640)
    x[5] = torch.nan
    values, _ = screen.exact_top_k(x, W, bias, 4)
    assert values[5].isnan().any() and not values[:5].isnan().any() and not values[6:].isnan().any()
    assert not select.top_k(torch.addmm(bias, x, W.T), 4)[0][6:].isnan().any()
