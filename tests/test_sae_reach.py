"""What reaches a bound: all of the largest, and nothing that does not, whatever the numbers."""

import pytest
import torch

from saelab.sae import rough, select
from saelab.sae.reach import MOST, fixed, in_rows, join, reach

SIZES = [(640, 16), (640, 48), (1280, 16), (2560, 5), (6144, 32), (500, 8), (96, 6), (2048, 1)]


def kinds(n: int, rows: int = 9) -> dict[str, torch.Tensor]:
    """Rows as training has them, and as would mislead a bound."""
    g = torch.Generator().manual_seed(n)
    plain = torch.randn(rows, n, generator=g)
    heavy = plain.clone()
    heavy[:, ::16] += 20  # the largest are neighbours of neighbours: in other groupings one group holds many
    infinite = plain.clone()
    infinite[0, 5], infinite[1, 7], infinite[2] = torch.inf, -torch.inf, -torch.inf
    holed = plain.clone()
    holed[3, n // 2], holed[4] = torch.nan, torch.nan
    return {
        "normal": plain,
        "far below 0": plain - 100,
        "rounded": plain.bfloat16().float(),
        "few values": torch.randint(-2, 3, (rows, n), generator=g).float(),
        "zeros of both signs": torch.where(plain > 0, 0.0, -0.0),
        "equal": torch.ones(rows, n),
        "rising": torch.arange(n).float().expand(rows, n).contiguous(),
        "falling": -torch.arange(n).float().expand(rows, n).contiguous(),
        "steps": heavy,
        "infinite": infinite,
        "not numbers": holed,
        "every other column": torch.randn(rows, 2 * n, generator=g)[:, ::2],
    }


@pytest.mark.parametrize(("n", "count"), SIZES)
@pytest.mark.parametrize("kind", list(kinds(64)))
def test_all_that_reaches_the_bound_is_found_and_the_largest_reach_it(kind, n, count):
    x = kinds(n)[kind]
    found = reach(x, count)
    if found is None:
        return
    counts = found.offsets.diff()
    assert counts.min() >= count and counts.max() <= MOST * count
    rows = torch.arange(len(x)).repeat_interleave(counts)
    inside = torch.zeros(x.shape, dtype=torch.bool)
    inside[rows, found.columns] = True
    assert inside.equal(x >= found.least.unsqueeze(1)), "what reaches the bound, and nothing else"
    assert (x.topk(count).values[:, -1] >= found.least).all()
    assert found.columns.equal(inside.nonzero()[:, 1]), "row after row, in the order of the columns"


@pytest.mark.parametrize(("n", "count"), [(640, 16), (640, 32), (1280, 16), (6144, 32), (6144, 48), (12288, 64)])
def test_training_s_sizes_find_a_bound(n, count):
    assert reach(kinds(n)["normal"], count) is not None and reach(kinds(n)["rounded"], count) is not None


@pytest.mark.parametrize("kind", ["equal", "infinite", "not numbers", "few values"])
def test_where_no_bound_is_of_use_ranking_decides(kind):
    assert reach(kinds(640)[kind], 16) is None


def test_rows_of_several_parts_are_one_after_the_other_and_laid_out_with_room():
    x = kinds(640, rows=20)["normal"]
    parts = [reach(x[:3], 16), fixed(*select.rank(x[3:4], 16)), reach(x[4:], 16)]
    whole = join([part for part in parts if part is not None])
    assert len(parts) == 3 and len(whole.least) == 20
    rows = torch.arange(20).repeat_interleave(whole.offsets.diff())
    values, columns = in_rows(whole, x[rows, whole.columns])
    for row, (own, count) in enumerate(zip(x, whole.offsets.diff(), strict=True)):
        assert values[row, :count].equal(own[columns[row, :count]]) and (values[row, count:] == -torch.inf).all()
        assert (columns[row, :count].diff() > 0).all() and values[row, :count].amin() >= whole.least[row]


def test_no_row_has_no_candidates():
    nothing, W = torch.empty(0, 12), torch.randn(256, 12)
    found = rough.reach_roughly(nothing, W, torch.zeros(256), 8, "int8")
    assert len(found.columns) == 0 and found.offsets.tolist() == [0]
