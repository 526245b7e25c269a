"""The Triton kernels against dense float64 sums and their torch twins; test_sae_kernels.py runs it interpreted."""

import pytest
import torch

from saelab.sae import SAEConfig, kernels, objectives, sparse

COUNTS = {  # pairs of each row: none, one, a tile's worth, one more, several tiles
    "uneven": [3, 0, 1, 8, 9, 0, 21],
    "none": [0, 0, 0],
    "k5": [5] * 6,
}


def problem(counts: list[int], d_in: int, index: torch.dtype, storage: torch.dtype, sources: int = 9):
    """CSR lists with duplicates (more pairs than sources) and zero weights; left and right matrices."""
    g = torch.Generator().manual_seed(d_in)
    offsets = torch.tensor([0, *torch.tensor(counts).cumsum(0).tolist()], dtype=index)
    columns = torch.randint(0, sources, (sum(counts),), generator=g).to(index)
    weights = torch.randn(sum(counts), generator=g).to(storage)
    weights[::4] = 0
    left = torch.randn(len(counts), d_in, generator=g).to(storage)
    return offsets, columns, weights, left, torch.randn(sources, d_in, generator=g).to(storage)


@pytest.mark.parametrize("counts", COUNTS.values(), ids=COUNTS)
@pytest.mark.parametrize("d_in", [1, 24, 300])
@pytest.mark.parametrize(
    ("index", "storage"), [(torch.int32, torch.float32), (torch.int64, torch.float32), (torch.int32, torch.bfloat16)]
)
def test_products_equal_dense_sums_and_their_twins(counts, d_in, index, storage):
    offsets, columns, weights, left, right = problem(counts, d_in, index, storage)
    row = torch.arange(len(counts)).repeat_interleave(torch.tensor(counts))
    wide, places = right.double(), columns.long()
    sums = torch.zeros(len(counts), d_in, dtype=torch.float64).index_add_(
        0, row, weights.double()[:, None] * wide[places]
    )
    dots = (left.double()[row] * wide[places]).sum(1)

    out = torch.full((len(counts), d_in), torch.nan)
    assert kernels.weighted_sums(offsets, columns, weights, right, out) is out
    found = kernels.sampled_products(offsets, columns, left, right)
    torch.testing.assert_close(out.double(), sums, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(found.double(), dots, rtol=1e-5, atol=1e-5)
    if storage == torch.float32:
        twin = sparse.weighted_sums(offsets, columns, weights, right, torch.empty_like(out))
        torch.testing.assert_close(out, twin, rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(found, sparse.sampled_products(offsets, columns, left, right), rtol=1e-5, atol=1e-5)
    again = kernels.weighted_sums(offsets, columns, weights, right, torch.empty_like(out))
    assert torch.equal(again, out) and torch.equal(kernels.sampled_products(offsets, columns, left, right), found)


def test_sums_can_be_stored_in_bfloat16():
    offsets, columns, weights, _, right = problem([3, 8, 9], 24, torch.int32, torch.bfloat16)
    exact = kernels.weighted_sums(offsets, columns, weights, right, torch.empty(3, 24))
    rounded = kernels.weighted_sums(offsets, columns, weights, right, torch.empty(3, 24, dtype=torch.bfloat16))
    torch.testing.assert_close(rounded.float(), exact, rtol=2**-7, atol=0)  # the interpreter cuts off, GPUs round


@pytest.mark.parametrize(
    "settings",
    [{"k": 3}, {"k": 3, "rule": "batchtopk"}, {"k": 4, "prefixes": (0.25, 1)}, {"k": 2, "multi_topk": True}],
    ids=str,
)
def test_gradients_with_the_kernels_are_those_without(settings):
    g = torch.Generator().manual_seed(0)
    weights = {name: torch.randn(16, 6, generator=g) for name in ("W_enc", "W_dec")}
    weights |= {"b_enc": torch.randn(16, generator=g), "b_dec": torch.zeros(6)}
    centred = torch.randn(10, 6, generator=g)
    pre = centred @ weights["W_enc"].T + weights["b_enc"]
    (plain, error), (ours, our_error) = (
        objectives.sparse_gradients(
            weights, centred, pre, SAEConfig(6, 16, kernels=name, **settings), torch.tensor(2.0), 10
        )
        for name in ("torch", "triton")
    )
    torch.testing.assert_close(our_error, error, rtol=1e-5, atol=1e-5)
    assert torch.equal(ours.fired, plain.fired) and plain.fired.any() and not plain.fired.all()
    for name, tensor in {**plain.grads, **plain.metrics}.items():
        torch.testing.assert_close({**ours.grads, **ours.metrics}[name], tensor, rtol=1e-5, atol=1e-5, msg=name)
