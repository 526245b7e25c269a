"""Contrasts among near cells: the exact ones where the cells hold all images, and how many are missed where not."""

import logging

import pytest
import torch
from test_mine import LAYOUTS, brute_contrast
from torch.nn.functional import normalize

from saelab.acts import columns, runs
from saelab.errors import UserError
from saelab.label import mine
from saelab.label.exemplars import MiningSettings
from saelab.label.mine import cells, contrast, lookup
from saelab.label.mine.candidates import Candidates, Interval
from saelab.label.mine.contrast import ContrastRule, choose_contrasts
from saelab.label.mine.neighbours import Neighbours

IMAGES, UNITS = 2000, 30


def world(noise: float = 0.5) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Images in 40 themes, units that fire on one theme in part and at random, and pairs of near-duplicates."""
    g = torch.Generator().manual_seed(0)
    theme = torch.randint(40, (IMAGES,), generator=g)
    centres = torch.randn(40, 24, generator=g)
    emb = normalize(centres[theme] + noise * torch.randn(IMAGES, 24, generator=g), dim=1)
    fires = (theme[:, None] == torch.arange(UNITS)) & (torch.rand(IMAGES, UNITS, generator=g) < 0.6)
    acts = torch.rand(IMAGES, UNITS, generator=g) * (fires | (torch.rand(IMAGES, UNITS, generator=g) < 0.01))
    acts[:, 3] = (torch.rand(IMAGES, generator=g) - 0.5) * (acts[:, 3] > 0)  # some below 0
    acts[:, 4] = torch.rand(IMAGES, generator=g)  # fires everywhere
    return acts, emb, torch.arange(IMAGES) // 2


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("rule", ["below_mean", "below_quantile", "zero"])
@pytest.mark.parametrize("grouped", [False, True])
@pytest.mark.parametrize("at_once", [1 << 22, 5000])
def test_cells_that_hold_all_images_give_the_exact_contrasts(layout, rule, grouped, at_once, monkeypatch):
    monkeypatch.setattr(cells, "REACH", IMAGES)
    monkeypatch.setattr(cells, "AT_ONCE", at_once)
    acts, emb, groups = world()
    groups = groups if grouped else None
    ids = mine.positive_images(acts, 8)[0]
    given = (LAYOUTS[layout](acts), emb, ids)
    exact = choose_contrasts(*given, ContrastRule(rule), groups, apart=True)[0]
    assert torch.equal(choose_contrasts(*given, ContrastRule(rule, exact_below=100), groups, apart=True)[0], exact)
    if rule == "below_mean":
        assert mine.contrast_images(*given, rule, groups=groups)[0].tolist() == brute_contrast(
            acts, emb, ids, rule, groups
        )


def test_what_cells_miss_is_measured_and_told(monkeypatch, caplog):
    monkeypatch.setattr(cells, "SIZE", 20)
    monkeypatch.setattr(cells, "REACH", 60)
    monkeypatch.setattr(lookup, "CHECKED", IMAGES)  # all pairs: what is told must be the whole truth
    acts, emb, _ = world(2.0)
    ids = mine.positive_images(acts, 20)[0]
    exact, best = choose_contrasts(acts, emb, ids, ContrastRule(), apart=True)
    with caplog.at_level(logging.INFO, "saelab"):
        found, own = choose_contrasts(acts, emb, ids, ContrastRule(exact_below=100), apart=True)
    table = lookup.CellTable(lookup.Scores(emb, None, None), ids, 0)
    table.search(lookup.Scores(emb, None, None), candidates(acts, ids), ids)
    there = ids >= 0
    assert 0.3 < table.settled / table.pairs < 1  # the rest is searched exactly
    missed = int((found != exact)[there].sum())
    assert 0 < missed < 0.6 * int(there.sum())
    assert table.checked - table.same == missed  # pairs that cells don't settle are exact
    assert table.lost == pytest.approx(float((best - own)[there].sum()), abs=1e-3)
    assert f"{table.same / table.checked:.3f} are the same" in caplog.text
    assert bool(((best - own)[there] >= -1e-6).all())  # an approximation finds nothing better


def candidates(acts, ids):
    return Candidates(acts, mine.candidate_interval(acts, "below_mean"), apart=ids)


def test_the_public_function_keeps_the_exact_search_where_asked(monkeypatch):
    monkeypatch.setattr(cells, "SIZE", 20)
    monkeypatch.setattr(cells, "REACH", 60)
    acts, emb, _ = world(2.0)
    ids = mine.positive_images(acts, 20)[0]
    exact = mine.contrast_images(acts, emb, ids, exact_below=IMAGES)[0]
    assert torch.equal(exact, mine.contrast_images(acts, emb, ids)[0])
    assert not torch.equal(exact, mine.contrast_images(acts, emb, ids, exact_below=100)[0])


@pytest.mark.parametrize("least", [100, IMAGES])
def test_passes_over_sparse_units_do_not_change_a_contrast(least, monkeypatch):
    acts, emb, groups = world()
    ids = mine.positive_images(acts, 8)[0]
    given = (acts.to_sparse_csr(), emb, ids, ContrastRule(exact_below=least), groups)
    whole = choose_contrasts(*given, apart=True)[0]
    monkeypatch.setattr(contrast, "MASK_ENTRIES", 150)
    monkeypatch.setattr("saelab.label.mine.candidates.ENTRIES", 40)
    assert torch.equal(choose_contrasts(*given, apart=True)[0], whole)


def test_runs_hold_every_unit_once():
    acts = columns(world()[0].to_sparse_csr())
    for entries in (1, 150, 1 << 30):
        slices = list(runs(acts, entries))
        assert [s.start for s in slices] == [0, *(s.stop for s in slices[:-1])] and slices[-1].stop == UNITS
        assert all(s.stop - s.start == 1 or int(acts.counts[s].sum()) <= entries for s in slices)


def test_an_image_that_is_not_stored_strikes_no_other():
    acts = torch.zeros(6, 3)
    acts[5, 0] = acts[0, 1] = acts[2, 2] = 1.0
    interval, apart = mine.candidate_interval(acts, "below_mean"), torch.tensor([[1], [0], [4]])
    free = Candidates(acts.to_sparse_csr(), Interval(interval.low, interval.high + 5)).rows(torch.arange(3))
    struck = Candidates(acts.to_sparse_csr(), Interval(interval.low, interval.high + 5), apart=apart)
    assert (free & ~struck.rows(torch.arange(3))).nonzero().tolist() == [[1, 0]]


@pytest.mark.parametrize("apart", [False, True])
def test_candidates_of_sparse_units_are_those_of_their_columns(apart):
    acts, _, _ = world()
    ids = mine.positive_images(acts, 8)[0] if apart else None
    for rule in ("below_mean", "below_quantile", "zero"):
        interval = mine.candidate_interval(acts, rule)
        for units in (slice(None), slice(3, 11)):
            some = None if ids is None else ids[units]
            dense = Candidates(acts, interval, units, some)
            sparse = Candidates(acts.to_sparse_csr(), interval, units, some)
            rows = torch.arange(len(interval.low[units])).flip(0)
            assert torch.equal(dense.rows(rows), sparse.rows(rows))
            unit, image = torch.randint(len(rows), (500,)), torch.randint(IMAGES, (500,))
            assert torch.equal(dense.of(unit, image), sparse.of(unit, image))


def test_moved_pictures_find_their_contrasts_in_cells_too(monkeypatch):
    monkeypatch.setattr(cells, "REACH", IMAGES)
    acts, emb, groups = world()
    ids = mine.positive_images(acts, 8)[0]
    source = torch.randperm(IMAGES, generator=torch.Generator().manual_seed(1))
    found = [
        Neighbours(acts, emb, ids, ContrastRule(exact_below=least), groups).contrasts(source) for least in (100, IMAGES)
    ]
    assert torch.equal(*found)


def test_cells_hold_each_image_once_and_near_ones_together():
    _, emb, _ = world()
    centres, cell = cells.divide(emb, 40)
    assert torch.equal(cell, (emb @ centres.T).argmax(dim=1))
    apart = torch.randperm(IMAGES, generator=torch.Generator().manual_seed(1))
    together = cell[:, None] == cell
    alike = emb @ emb.T
    assert float(alike[together].mean()) > 0.4 > float(alike[:, apart][together].mean())
    again = cells.divide(emb, 40)
    assert torch.equal(centres, again[0]) and torch.equal(cell, again[1])


def test_a_limit_that_is_none_is_refused():
    from saelab.label.exemplars import RANGES
    from saelab.settings import check

    with pytest.raises(UserError, match=r"label\.mining\.exact_below=0"):
        check(MiningSettings(exact_below=0), "label.mining.", RANGES)
    assert "exact_below" not in MiningSettings().recipe()
    assert MiningSettings(exact_below=5).recipe()["exact_below"] == 5


def test_cells_are_named_only_where_contrasts_are_looked_for_in_them():
    assert MiningSettings(exact_below=5).in_cells(6) and not MiningSettings(exact_below=5).in_cells(5)
    assert not MiningSettings(exact_below=5, rule="random").in_cells(6)
    assert not MiningSettings(exact_below=5, reuse=False).in_cells(6)
