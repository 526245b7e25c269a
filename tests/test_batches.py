"""Batches: a pure function of (seed, epoch, step), every row once an epoch, however the cache is stored."""

import threading

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from saelab.cache import batches
from saelab.cache.batches import Batches, permute
from saelab.errors import UserError


@settings(max_examples=60)
@given(st.integers(1, 3000), st.integers(0, 2**40), st.integers(0, 50))
def test_the_order_is_a_permutation(n, seed, epoch):
    order = permute(np.arange(n, dtype=np.uint64), n, seed, epoch)
    assert np.array_equal(np.sort(order), np.arange(n))
    place = n // 2
    assert permute(np.array([place], dtype=np.uint64), n, seed, epoch)[0] == order[place], "no place needs the others"


def test_the_order_is_well_mixed_and_changes_with_seed_and_epoch():
    n = 20_000
    orders = [permute(np.arange(n, dtype=np.uint64), n, seed, epoch) for seed, epoch in ((0, 0), (0, 1), (1, 0))]
    for order in orders:
        assert abs(np.corrcoef(order, np.arange(n))[0, 1]) < 0.03
        assert abs(np.corrcoef(order[1:], order[:-1])[0, 1]) < 0.03
        counts = np.histogram2d(np.arange(n), order, bins=10)[0]
        assert ((counts - n / 100) ** 2 / (n / 100)).sum() < 160, "chi-square of 81 degrees of freedom"
    for a, b in ((0, 1), (0, 2), (1, 2)):
        assert (orders[a] == orders[b]).mean() < 0.001


def test_each_epoch_takes_each_row_once_and_steps_are_pure():
    x = np.arange(103, dtype=np.float32)[:, None]
    batches = Batches(x, 10, seed=4)
    assert batches.steps_per_epoch == 10
    for epoch in range(3):
        seen = torch.cat([batches.batch(epoch * 10 + i) for i in range(10)]).flatten().tolist()
        assert len(set(seen)) == 100
    assert torch.equal(batches.batch(17), Batches(x, 10, seed=4).batch(17))
    ahead = list(batches.prefetch(5, 12))
    assert len(ahead) == 7 and all(torch.equal(b, batches.batch(5 + i)) for i, b in enumerate(ahead))


def test_rows_types_and_processes(tmp_path):
    x = np.random.default_rng(0).normal(size=(64, 3)).astype(np.float16)
    np.save(tmp_path / "x.npy", x)
    rows = np.arange(0, 64, 2)
    stored = Batches(np.load(tmp_path / "x.npy", mmap_mode="r"), 8, rows=rows)
    for step in range(6):
        whole = stored.batch(step)
        assert whole.dtype == torch.float32
        assert torch.equal(whole, Batches(torch.from_numpy(x), 8, rows=rows).batch(step))
        halves = torch.cat([stored.batch(step, rank, 2) for rank in range(2)])
        assert torch.equal(halves, whole)
        assert all(any(torch.equal(row, torch.from_numpy(x[r]).float()) for r in rows) for row in whole)


def test_what_cannot_be_drawn_from_is_refused():
    with pytest.raises(UserError, match="at least one token"):
        Batches(np.zeros((0, 3)), 8)
    with pytest.raises(UserError, match="rows=0"):
        Batches(np.zeros((5, 3)), 8, rows=np.array([], dtype=int))
    x = np.ones((20, 3), np.float32)
    x[13, 1] = np.nan
    with pytest.raises(UserError, match=r"a\.h5.*row 13"):
        Batches(x, 20, name="a.h5").batch(0)
    with pytest.raises(UserError, match="divisible by the 3 processes"):
        Batches(np.ones((20, 3)), 10).batch(0, 0, 3)


def test_batches_are_shuffled_anew_each_epoch_and_by_seed():
    """The batches themselves, not only the permutation: each of 10 holds a fair share of each tenth of the rows."""
    x = np.arange(2000, dtype=np.float32)[:, None]
    batches, other = Batches(x, 200, seed=4), Batches(x, 200, seed=5)
    for step in range(20):
        rows = batches.batch(step).flatten()
        shares = torch.histc(rows, bins=10, min=0, max=2000)
        assert int(shares.min()) >= 5 and int(shares.max()) <= 40, "in order, one tenth would hold all 200"
        for later in (batches.batch(step + 10), batches.batch(step + 20), other.batch(step)):
            assert int(torch.isin(rows, later).sum()) < 50, "20 of 200 by chance"


def test_the_rows_that_do_not_fill_a_batch_are_others_in_each_epoch():
    batches = Batches(np.arange(109, dtype=np.float32)[:, None], 10, seed=1)
    left = [
        set(range(109)) - set(torch.cat([batches.batch(epoch * 10 + i) for i in range(10)]).flatten().int().tolist())
        for epoch in range(4)
    ]
    assert all(len(rows) == 9 for rows in left) and len(set.union(*left)) > 18


def test_another_thread_fetches_and_the_one_that_trains_widens_and_checks(monkeypatch):
    """torch gives whoever computes threads of its own; two such crowds on one CPU wait for each other."""
    seen: dict[str, set[str]] = {"block": set(), "to_float32": set(), "_checked": set()}

    def noted(name, work):
        return lambda *given: (seen[name].add(threading.current_thread().name), work(*given))[1]

    for name in ("block", "to_float32"):
        monkeypatch.setattr(batches, name, noted(name, getattr(batches, name)))
    monkeypatch.setattr(Batches, "_checked", noted("_checked", Batches._checked))
    rows = np.random.default_rng(0).standard_normal((90, 3)).astype(np.float16)
    made = Batches(rows, 8, seed=1)
    found = list(made.prefetch(2, 20))
    here = threading.current_thread().name
    assert seen["to_float32"] == seen["_checked"] == {here} and here not in seen["block"] and len(seen["block"]) == 1
    plain = Batches(torch.from_numpy(rows), 8, seed=1)
    for step, x in enumerate(found, 2):
        assert torch.equal(x, made.batch(step)) and torch.equal(x, plain.batch(step))
    assert all(torch.equal(a, b) for a, b in zip(found, plain.prefetch(2, 20), strict=True))
    shares = [list(made.prefetch(2, 5, rank, 2)) for rank in (0, 1)]
    assert all(torch.equal(torch.cat(pair), whole) for *pair, whole in zip(*shares, found))
