"""Candidates by a bound: the largest of each row and a few more, whatever the numbers, and whatever the other rows."""

import pytest
import torch

from saelab.sae import rough, screen, select
from saelab.sae.reach import MOST, in_rows, join, reach

SIZES = [(640, 16), (640, 48), (1280, 16), (2560, 5), (6144, 32), (500, 8), (96, 6), (2048, 1), (40, 40)]


def kinds(n: int, rows: int = 9) -> dict[str, torch.Tensor]:
    """Rows as training has them, and as would mislead a bound."""
    g = torch.Generator().manual_seed(n)
    plain = torch.randn(rows, n, generator=g)
    crowded = plain.clone()
    crowded[:, :: n // 4] += 20  # in few groups, since these hold numbers that lie far apart
    infinite, holed, mixed = plain.clone(), plain.clone(), plain.clone()
    infinite[0, 5], infinite[1, 7], infinite[2] = torch.inf, -torch.inf, -torch.inf
    holed[3, n // 2], holed[4] = torch.nan, torch.nan
    mixed[1], mixed[4], mixed[6, : n // 2] = 1, torch.nan, torch.inf
    return {
        "normal": plain,
        "far below 0": plain - 100,
        "rounded": plain.bfloat16().float(),
        "few values": torch.randint(-2, 3, (rows, n), generator=g).float(),
        "zeros of both signs": torch.where(plain.abs() > 2, plain, torch.where(plain > 0, 0.0, -0.0)),
        "equal": torch.ones(rows, n),
        "rising": torch.arange(n).float().expand(rows, n).contiguous(),
        "falling": -torch.arange(n).float().expand(rows, n).contiguous(),
        "crowded": crowded,
        "infinite": infinite,
        "not numbers": holed,
        "good and bad rows": mixed,
        "every other column": torch.randn(rows, 2 * n, generator=g)[:, ::2],
    }


@pytest.mark.parametrize(("n", "count"), SIZES)
@pytest.mark.parametrize("kind", list(kinds(64)))
def test_the_largest_are_among_few_candidates(kind, n, count):
    x = kinds(n)[kind]
    found = reach(x, count)
    assert len(found.least) == len(x) and found.offsets[-1] == len(found.columns)
    for row, first, last, least in zip(x, found.offsets[:-1], found.offsets[1:], found.least, strict=True):
        columns = found.columns[first:last]
        assert count <= len(columns) <= MOST * count and bool((columns.diff() > 0).all())
        wanted, largest = row.topk(count).values, row[columns].topk(count).values  # of both NaN is the largest
        torch.testing.assert_close(largest, wanted, rtol=0, atol=0, equal_nan=True)
        others = torch.ones(n, dtype=torch.bool).index_fill(0, columns, False)
        assert least.isnan() or not (row[others] > least).any()


@pytest.mark.parametrize(("n", "count"), SIZES)
def test_candidates_of_a_row_do_not_depend_on_the_others(n, count):
    x = kinds(n)["good and bad rows"]
    whole, alone = reach(x, count), join([reach(row, count) for row in x.split(1)])
    assert whole.columns.equal(alone.columns) and whole.offsets.equal(alone.offsets)
    torch.testing.assert_close(whole.least, alone.least, rtol=0, atol=0, equal_nan=True)


@pytest.mark.parametrize("kind", ["normal", "rounded", "rising"])
@pytest.mark.parametrize(("n", "count"), [(640, 16), (640, 32), (1280, 16), (6144, 32), (6144, 48), (12288, 64)])
def test_nothing_is_ranked_at_the_sizes_of_training(kind, n, count, monkeypatch):
    monkeypatch.setattr(select, "top_k", lambda *given: pytest.fail("ranked"))
    counts = reach(kinds(n)[kind], count).offsets.diff()
    assert kind == "rising" or counts.float().mean() < 1.4 * count


def test_rows_of_several_parts_are_one_after_the_other_and_laid_out_with_room():
    x = kinds(640, rows=20)["good and bad rows"].nan_to_num()
    whole = join([reach(part, 16) for part in (x[:3], x[3:4], x[4:])])
    rows = torch.arange(20).repeat_interleave(whole.offsets.diff())
    values, columns = in_rows(whole, x[rows, whole.columns])
    for row, (own, count) in enumerate(zip(x, whole.offsets.diff(), strict=True)):
        assert values[row, :count].equal(own[columns[row, :count]]) and (values[row, count:] == -torch.inf).all()
        assert (columns[row, :count].diff() > 0).all() and values[row, :count].amin() >= whole.least[row]


@pytest.mark.parametrize("by", rough.NUMBERS[:2])
def test_no_tokens_have_no_members(by):
    nothing, W, bias = torch.empty(0, 12), torch.randn(256, 12), torch.zeros(256)
    for values, indices in (screen.screened_top_k(nothing, W, bias, 8, by), screen.exact_top_k(nothing, W, bias, 8)):
        assert values.shape == indices.shape == (0, 8) and indices.dtype == torch.int64
