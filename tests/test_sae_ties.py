"""Of equal pre-activations the first is chosen: by value descending, then by place ascending, in every way there is."""

import pytest
import torch
from elsewhere import Elsewhere
from hypothesis import given, settings
from hypothesis import strategies as st

from saelab.sae import select

LEVELS = torch.tensor([-torch.inf, -2.0, -1.0, -0.0, 0.0, 1.0, 1.5, 3.0, torch.inf])


def crowded(rows: int, n: int, seed: int, positive: bool = False, dtype=torch.float32) -> torch.Tensor:
    """Few different numbers, so that there are ties at every edge; some below 0, and both zeros."""
    g = torch.Generator().manual_seed(seed)
    levels = LEVELS[4:] if positive else LEVELS
    return levels[torch.randint(len(levels), (rows, n), generator=g)].to(dtype)


def first_of_equals(numbers: list[float], k: int) -> list[int]:
    """The places of the k largest by Python's own sort, in their order."""
    return sorted(sorted(range(len(numbers)), key=lambda place: (-numbers[place], place))[:k])


SHAPES = st.sampled_from(
    [(1, 7, 7), (3, 8, 7), (3, 64, 1), (4, 64, 60), (5, 100, 12), (4, 512, 8), (2, 1024, 12), (3, 1024, 31)]
)


@settings(max_examples=60, deadline=None)
@given(SHAPES, st.booleans(), st.sampled_from([torch.float32, torch.float64, torch.bfloat16]), st.integers(0, 10**6))
def test_top_k_takes_the_first_of_equals(shape, positive, dtype, seed):
    rows, n, k = shape
    x = crowded(rows, n, seed, positive, dtype)
    for found in (select.top_k(x, k), select.rank(x, k)):
        values, places = found
        assert torch.equal(values, x.gather(1, places))
        assert places.sort(1).values.tolist() == [first_of_equals(row, k) for row in x.tolist()]


@settings(max_examples=60, deadline=None)
@given(SHAPES, st.booleans(), st.integers(0, 10**6))
def test_the_largest_of_a_batch_are_the_first_of_equals(shape, positive, seed):
    rows, n, k = shape
    x = crowded(rows, n, seed, positive)
    assert select.top_of_batch(x, rows * k)[1].tolist() == first_of_equals(x.flatten().tolist(), rows * k)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
def test_devices_that_are_not_waited_for_take_the_first_of_equals_too(dtype):
    x = crowded(6, 1024, 0, dtype=dtype)
    with Elsewhere("cuda") as device:
        there = x.to("cuda")
        found, flat = select.top_k(there, 12)[1], select.top_of_batch(there, 60)[1]
        assert not device.waits
        found, flat = found.to("cpu"), flat.to("cpu")
    assert found.sort(1).values.tolist() == [first_of_equals(row, 12) for row in x.tolist()]
    assert flat.tolist() == first_of_equals(x.flatten().tolist(), 60)


def test_what_is_no_number_is_chosen_on_such_devices_too():
    x = torch.randn(3, 1024, generator=torch.Generator().manual_seed(0))
    x[1, 700] = torch.nan
    with Elsewhere("cuda"):
        found, flat = select.top_k(x.to("cuda"), 5)[1].to("cpu"), select.top_of_batch(x.to("cuda"), 9)[1].to("cpu")
    assert 700 in found[1] and 1024 + 700 in flat


def test_no_tie_leaves_the_choice_and_its_order_as_torch_makes_them():
    x = torch.randperm(4 * 2048, generator=torch.Generator().manual_seed(0)).view(4, 2048) - 4000.0
    values, places = select.top_k(x, 16)
    assert torch.equal(values.flip(1), x.topk(16, dim=1).values) and torch.equal(values, x.gather(1, places))
