"""The kernel that writes the largest of groups against brute force; test_sae_kernels.py runs it interpreted."""

from dataclasses import replace

import pytest
import torch
from scipy.stats import binom

from saelab.bench import sae_gpu
from saelab.sae import SAEConfig, Trainer, kernels, maxima, rules, screen, select, sparse

LARGEST = torch.finfo(torch.float32).max


def draw(rows: int, d_in: int, n: int, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Tokens, encoder rows and biases."""
    g = torch.Generator().manual_seed(seed)
    return torch.randn(rows, d_in, generator=g), torch.randn(n, d_in, generator=g), torch.randn(n, generator=g)


def rough(x: torch.Tensor, W: torch.Tensor, bias: torch.Tensor) -> torch.Tensor:
    """The product of what bfloat16 leaves of x and W, in float64."""
    return x.bfloat16().double() @ W.bfloat16().double().T + bias.double()


@pytest.fixture
def small_tiles(monkeypatch):
    """So that few rows make several tiles, and a strip that is not full."""
    monkeypatch.setattr(maxima, "ROWS", 16)
    monkeypatch.setattr(maxima, "STRIP", 2)


@pytest.fixture
def written(monkeypatch) -> list[torch.Size]:
    """Shapes of what the kernel has written."""
    shapes, real = [], maxima.largest_of_groups

    def note(*given):
        found = real(*given)
        shapes.append(found.shape)
        return found

    monkeypatch.setattr(maxima, "largest_of_groups", note)
    return shapes


def members(groups: int) -> torch.Tensor:
    """The latents of each group [members, groups]: of each block of as many latents as there are groups, one."""
    return torch.stack([member * groups + torch.arange(groups).roll(-member) for member in range(maxima.MEMBERS)])


def check_written(rows: int, d_in: int, groups: int) -> None:
    x, W, bias = draw(rows, d_in, groups * maxima.MEMBERS)
    exact = rough(x, W, bias)
    turned = (matrix.bfloat16().T.contiguous().T for matrix in (x, W))  # in whatever order they lie in memory
    found = maxima.largest_of_groups(*turned, bias)
    true = exact[:, members(groups)].topk(maxima.KEPT, dim=1).values
    torch.testing.assert_close(found.double().view(true.shape), true, rtol=2**-18, atol=1e-5)
    latents = maxima.find_members(found, torch.arange(found.shape[1]).expand(rows, -1), groups)
    torch.testing.assert_close(exact.gather(1, latents), found.double(), rtol=2**-18, atol=1e-5)
    assert all(len(set(row.tolist())) == len(row) for row in latents), "no latent twice"


@pytest.mark.parametrize(("rows", "d_in", "groups"), [(1, 70, 8), (53, 130, 3), (70, 1, 17), (32, 64, 9)])
def test_the_largest_of_each_group_are_written_with_their_places(rows, d_in, groups, small_tiles):
    """Tiles that rows, groups and units of the activations don't fill."""
    check_written(rows, d_in, groups)


def test_tiles_of_the_size_that_a_card_gets():
    check_written(130, 72, 9)


@pytest.mark.filterwarnings("ignore:invalid value:RuntimeWarning")  # numpy's, of NaN
def test_numbers_of_every_size_and_sign_keep_their_order():
    """One unit, so that the product is what x and W say; each group has a larger largest number than the one before."""
    sizes = [2.0**e for e in range(-120, 124, 20)]
    rising = torch.tensor([-torch.inf, *(-size for size in reversed(sizes)), 0, *sizes, torch.inf, torch.nan])
    groups, g = len(rising), torch.Generator().manual_seed(0)
    W = torch.stack([rising[torch.randint(0, group + 1, (maxima.MEMBERS,), generator=g)] for group in range(groups)])
    W[torch.arange(groups), torch.randint(0, maxima.MEMBERS, (groups,), generator=g)] = rising
    rows = torch.empty(W.numel(), 1)
    rows[members(groups)] = W.T.unsqueeze(2)
    found = maxima.largest_of_groups(torch.ones(1, 1).bfloat16(), rows.bfloat16(), torch.zeros(W.numel()))
    true = W.nan_to_num(nan=LARGEST, posinf=LARGEST, neginf=-LARGEST).sort(1, descending=True).values
    assert bool(found.isfinite().all())
    torch.testing.assert_close(found.view(maxima.KEPT, groups).T, true[:, : maxima.KEPT], rtol=2**-18, atol=1e-42)


def check_members(x: torch.Tensor, W: torch.Tensor, bias: torch.Tensor, k: int) -> None:
    """The k largest of the float32 product come out, with its values, as often as they are there."""
    values, latents = screen.screened_top_k(x, W, bias, k, "bfloat16", "triton")
    pre = torch.addmm(bias, x, W.T)
    torch.testing.assert_close(values, pre.gather(1, latents), rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(values.sort(1).values, pre.topk(k).values.sort(1).values, rtol=1e-5, atol=1e-5)
    assert float(screen.screen_recall(x, W, bias, k, "bfloat16", "triton")) == 1


@pytest.mark.parametrize("rows", [1, 100])
def test_the_k_largest_come_out_with_float32_values(rows, written):
    x, W, bias = draw(rows, 48, 1536)
    check_members(x, W, bias, 8)
    assert written == [(rows, 1536 * maxima.KEPT // maxima.MEMBERS)] * 2


def test_also_where_a_few_units_are_much_larger_than_the_others(small_tiles):
    x, W, bias = draw(40, 48, 1536)
    x[:, [3, 17]] *= 100
    check_members(x, W, bias, 8)


@pytest.mark.parametrize("times", [2, 8, 32])
@pytest.mark.parametrize("blocks", [False, True])
def test_also_where_rows_are_copies_of_each_other(times, blocks, small_tiles):
    """Neighbours, or whole blocks of rows."""
    x, W, bias = draw(20, 48, 1536)
    latents = torch.arange(len(W))
    source = latents % (len(W) // times) if blocks else latents // times
    check_members(x, W[source], bias[source], 8)


def test_of_equals_the_first_come_out():
    """Zeros of both signs are equals."""
    W, bias = torch.zeros(1536, 4), torch.zeros(1536)
    bias[::2] = -0.0
    values, latents = screen.screened_top_k(torch.randn(3, 4), W, bias, 8, "bfloat16", "triton")
    assert bool((values == 0).all()) and latents.sort(1).values.tolist() == [list(range(8))] * 3


@pytest.mark.filterwarnings("ignore:invalid value:RuntimeWarning")  # numpy's, of NaN
@pytest.mark.parametrize("bad", [torch.nan, torch.inf, -torch.inf])
def test_what_is_no_number_comes_out(bad):
    x, W, bias = draw(4, 16, 768)
    x[1, 5] = bad  # all products of this token
    bias[300] = bad  # this latent, in all tokens
    values, latents = screen.screened_top_k(x, W, bias, 4, "bfloat16", "triton")
    assert not bool(values[1].isfinite().any())
    if bad > 0 or bad != bad:
        assert bool((latents[[0, 2, 3]] == 300).any(1).all())
        assert [row.isfinite().sum().item() for row in values[[0, 2, 3]]] == [3, 3, 3]
    else:
        assert not bool((latents[[0, 2, 3]] == 300).any()) and bool(values[[0, 2, 3]].isfinite().all())


def test_recall_counts_what_is_lost_where_more_share_a_group_than_are_written():
    """All members of each group alike: of the eight copies that are a token's largest, four come out."""
    _, W, _ = draw(1, 64, 1536)
    x = W[:20].clone()  # whose largest product is more than rounding larger than the next
    W[members(48)] = W[:48].clone()
    weights = {"W_enc": W, "b_enc": torch.zeros(1536)}
    rule = rules.find("topk")
    found = {
        name: float(rule.screen_recall(weights, x, SAEConfig(64, 1536, k=8, screen="bfloat16", kernels=name)))
        for name in ("torch", "triton")
    }
    assert found == {"torch": 1, "triton": maxima.KEPT / 8}


@pytest.mark.parametrize(
    ("n", "k", "by"), [(1520, 4, "bfloat16"), (736, 4, "bfloat16"), (1536, 4, "int8")], ids=["odd", "few", "int8"]
)
def test_other_sizes_and_products_go_by_the_written_product(n, k, by, written):
    x, W, bias = draw(30, 24, n)
    found, plain = (screen.screened_top_k(x, W, bias, k, by, name) for name in ("triton", "torch"))
    assert not written
    torch.testing.assert_close(found[0].sort(1).values, plain[0].sort(1).values, rtol=1e-5, atol=1e-5)


def test_what_is_written_has_a_limit(written, small_tiles, monkeypatch):
    x, W, bias = ((8 * part).round() for part in draw(50, 24, 768))  # whose sums are exact, in whatever order
    whole = maxima.rank_roughly(x, W, bias, 6)
    monkeypatch.setattr(select, "AT_ONCE", 20 * 768)
    parts = maxima.rank_roughly(x, W, bias, 6)
    assert written == [(50, 96), (20, 96), (20, 96), (10, 96)], "an eighth of the numbers that `AT_ONCE` allows"
    assert all(map(torch.equal, whole, parts)) and bool((whole[1].diff(dim=1) > 0).all())


@pytest.fixture
def plain_sums(monkeypatch):
    """The sparse products by torch: Triton's have their own tests and are slow when interpreted."""
    monkeypatch.setattr(kernels, "weighted_sums", sparse.weighted_sums)
    monkeypatch.setattr(kernels, "sampled_products", sparse.sampled_products)


@pytest.mark.parametrize("pieces", [1, 2])
@pytest.mark.parametrize("settings", [{"k": 4}, {"k": 4, "prefixes": (1 / 16, 1)}, {"multi_topk": True}], ids=str)
def test_steps_are_those_that_the_written_product_gives(settings, pieces, written, plain_sums):
    check_steps(SAEConfig(16, 768, **{"k": 1, "lr": 1e-3, "screen": "bfloat16", **settings}), 4, pieces, written)


def test_steps_by_all_kernels_are_torchs(written, monkeypatch):
    """In a dictionary too small to be served: no more candidates than are written of a group."""
    monkeypatch.setattr(maxima, "serves", lambda latents, count: count <= maxima.KEPT)
    check_steps(SAEConfig(6, 64, k=2, lr=1e-3, screen="bfloat16"), 3, 1, written)


def check_steps(config: SAEConfig, steps: int, pieces: int, written: list[torch.Size]) -> None:
    batches = draw(steps * 16, config.d_in, 1)[0].split(16)
    plain, ours = (Trainer(replace(config, kernels=name), accumulate=pieces) for name in ("torch", "triton"))
    for x in batches:
        a, b = plain.step(x), ours.step(x)
        assert a.keys() == b.keys()
        for name in a:
            torch.testing.assert_close(b[name], a[name], rtol=1e-5, atol=1e-6, msg=name)
    assert len(written) == (len(batches) + 1) * pieces, "each step, and the recall that the start measures, by pieces"
    assert ours.screen == "bfloat16"
    for name, tensor in plain.weights.items():
        torch.testing.assert_close(ours.weights[name], tensor, rtol=1e-4, atol=1e-6, msg=name)


def test_batchtopk_chooses_from_the_written_product(written, plain_sums):
    Trainer(SAEConfig(16, 1536, k=4, rule="batchtopk", screen="bfloat16", kernels="triton")).step(torch.randn(20, 16))
    assert not written


def test_the_bench_times_what_training_goes_by(written, plain_sums):
    line = sae_gpu.Line(16, 768, 32, 4, "bfloat16", "triton", "cpu")
    assert next(sae_gpu.steps_of(line, 1, 1e9))["tokens_per_s"] > 0 and len(written) > sae_gpu.WARM_UP


@pytest.mark.parametrize("k", [2, 5, 16, 32, 128, 1024])
def test_few_of_the_largest_share_a_group_where_it_serves(k):
    """Of k latents drawn at random, the expected share beyond `KEPT` of a group, in the smallest dictionary."""
    n = next(n for n in range(k, 1000 * k) if maxima.serves(n, screen.count_candidates(k)))
    in_group = binom(k, maxima.MEMBERS / n)
    beyond = sum((count - maxima.KEPT) * in_group.pmf(count) for count in range(maxima.KEPT + 1, k + 1))
    assert n / maxima.MEMBERS * beyond / k < 1e-5
