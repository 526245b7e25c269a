"""Twins: cutting a unit to a firing rate, and differences of pairs."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import settings as examples
from hypothesis import strategies as st
from scipy import stats

from saelab.compare import Side, cut_to_rate, difference, paired_difference
from saelab.errors import UserError


@examples(max_examples=30)
@given(st.integers(0, 10_000), st.floats(0.01, 0.99), st.booleans())
def test_a_cut_unit_fires_on_that_share_of_mine_and_keeps_what_stays(seed, rate, sparse):
    rng = np.random.default_rng(seed)
    acts = torch.from_numpy(rng.normal(size=(60, 5)).round(int(rng.integers(0, 4))))
    if sparse:
        acts = acts.relu()
    mine = torch.from_numpy(rng.permutation(60)[:40])
    cut = cut_to_rate(acts.to_sparse_csr() if sparse else acts, mine, rate)
    fired, before = (x[mine].gt(0).double().mean(0) for x in (cut, acts))
    assert (fired <= min(rate, 1) + 1e-9).all() and (fired <= before).all()
    assert ((cut == 0) | (cut == acts)).all()
    rare = before <= rate - 1 / 40
    assert torch.equal(cut[:, rare], acts[:, rare].relu())
    distinct = torch.tensor([len(set(column.tolist())) == 40 for column in acts[mine].T])
    often = distinct & (before > rate)
    assert (fired[often] >= rate - 1 / 40 - 1e-9).all()


def test_the_threshold_never_looks_at_other_images():
    acts = torch.rand(50, 3)
    other = acts.clone()
    other[30:] = other[30:] * 5
    mine = torch.arange(30)
    assert torch.equal(cut_to_rate(acts, mine, 0.2)[:30], cut_to_rate(other, mine, 0.2)[:30])


@pytest.mark.parametrize("rate", [0.0, 1.0, -0.2, 7])
def test_rates_that_are_no_shares_are_refused(rate):
    with pytest.raises(UserError, match="expected shares between 0 and 1"):
        cut_to_rate(torch.rand(9, 2), torch.arange(9), rate)


def twins(seed: int, loss: float) -> tuple[Side, Side]:
    rng = np.random.default_rng(seed)
    target = torch.from_numpy(rng.normal(size=(80, 40)))
    acts = target * torch.from_numpy(rng.uniform(0.2, 2, 40)) + torch.from_numpy(rng.normal(size=(80, 40)))
    labels = [[f"L{i}" for i in range(40)]]
    other = acts + loss * torch.from_numpy(rng.normal(size=(80, 40)))
    return Side([acts], [target], labels), Side([other], [target], labels)


def test_pairs_show_what_a_gate_costs_where_two_bases_could_not():
    a, b = twins(0, 0.4)
    paired, whole = paired_difference(a, b), difference(a, b)
    assert paired.difference == pytest.approx(whole.difference) and paired.mean_a == pytest.approx(whole.mean_a)
    assert paired.p < 0.01 and paired.high - paired.low < 0.5 * (whole.high - whole.low)
    same = paired_difference(a, a)
    assert (same.difference, same.p) == (0, 1)


def test_the_spread_of_pairs_is_that_of_a_paired_t_test():
    a, b = twins(1, 0.4)
    found = paired_difference(a, b)
    gaps = [
        difference(*(Side([s.acts[0][:, [u]]], [s.target[0][:, [u]]], [["x"]]) for s in (a, b)), chance="none")
        for u in range(40)
    ]
    raw = np.array([x.difference for x in gaps])
    assert found.raw_a == pytest.approx(raw.mean())
    total = found.variance["units_a"] + found.variance["images"]
    assert 0.3 < total / stats.sem(raw) ** 2 < 3


def test_a_pair_with_nan_is_left_out_whole_and_unequal_sides_are_refused():
    a, b = twins(2, 0.2)
    b.acts[0][0, 3] = torch.nan
    found = paired_difference(a, b)
    assert found.left_out == {"a": 1} and found.clusters["a"] == pytest.approx(39)
    with pytest.raises(UserError, match="expected a twin for every unit"):
        paired_difference(a, Side([b.acts[0][:, 1:]], [b.target[0][:, 1:]], [b.labels[0][1:]]))
