"""The melanoma study's statistics: a p that knows how many units were tried, and controls drawn as the page says."""

import melanoma
import melanoma_page as page
import numpy as np
import pytest
import torch
from sklearn.metrics import roc_auc_score


def test_the_best_of_many_units_is_no_find(monkeypatch):
    """Units that have nothing to do with concepts: the best of 60 looks good, and its p is as even as chance."""
    monkeypatch.setattr(melanoma, "PERMUTATIONS", 99)
    rng = np.random.default_rng(0)
    found = [
        melanoma.max_corrected(torch.from_numpy(rng.random((80, 60))), rng.random((80, 10)) < 0.3, seed)
        for seed in range(20)
    ]
    areas, p = (np.concatenate([own[i] for own in found]) for i in (1, 2))
    assert areas.mean() > 0.65  # what a page without the correction would show
    assert (p <= 0.05).mean() == pytest.approx(0.05, abs=0.04) and p.mean() == pytest.approx(0.5, abs=0.06)


def test_a_unit_that_knows_a_concept_is_found_with_its_area():
    rng = np.random.default_rng(1)
    concepts = rng.random((80, 2)) < 0.3
    acts = rng.random((80, 60))
    acts[:, 17] += concepts[:, 1]
    best, area, p = melanoma.max_corrected(torch.from_numpy(acts), concepts, 0)
    assert best[1] == 17 and p[1] == pytest.approx(1 / (melanoma.PERMUTATIONS + 1)) and p[0] > 0.05
    assert area[1] == pytest.approx(roc_auc_score(concepts[:, 1], acts[:, 17]))


def test_random_sets_are_near_in_what_they_are_matched_by_and_hold_no_unit_twice():
    values = torch.arange(100.0)
    together = np.array([20, 21, 22, 90, 99])
    drawn = melanoma.draw_sets(values, together, np.random.default_rng(0))
    assert len(drawn) == melanoma.SETS
    for units in drawn:
        assert len(set(units)) == 5 and not set(units) & set(together)
        assert np.abs(units - together).max() <= 16  # ten others, less those that are taken
    assert len({tuple(units) for units in drawn}) > 15


def test_a_head_of_dealt_out_diagnoses_knows_nothing():
    rng = np.random.default_rng(2)
    sick = rng.random(120) < 0.25
    outputs = rng.normal(size=(120, 30)) + sick[:, None] * np.r_[1.5, np.zeros(29)]
    mine, test = np.arange(0, 80), np.arange(80, 120)
    real = melanoma.fit_head(outputs[mine], sick[mine], mine)
    dealt = melanoma.fit_head(outputs[mine], rng.permutation(sick[mine]), mine)
    areas = [roc_auc_score(sick[test], head(torch.from_numpy(outputs[test])).numpy()) for head in (real, dealt)]
    assert areas[0] > 0.75 and abs(areas[1] - 0.5) < 0.25


class Linear:
    """A host whose later layers are one linear map of the mean token."""

    def __init__(self, outputs: int = 12) -> None:
        draw = torch.Generator().manual_seed(0)
        self.weight = torch.randn(melanoma.WIDTH, outputs, generator=draw) / melanoma.WIDTH**0.5

    def resume(self, tokens: torch.Tensor, layer: str) -> torch.Tensor:
        return tokens.mean(1) @ self.weight


def test_the_same_pictures_give_the_same_page(monkeypatch):
    monkeypatch.setattr(melanoma, "PERMUTATIONS", 9)
    rng, host = np.random.default_rng(3), Linear()
    names = tuple(sorted({*melanoma.SIGNS, melanoma.DISEASE}))
    concepts = rng.random((80, len(names))) < 0.4
    tokens = torch.rand(80, 4, melanoma.WIDTH, generator=torch.Generator().manual_seed(1))
    outputs = host.resume(tokens, melanoma.LAYER).numpy()

    def draw() -> str:
        torch.manual_seed(0)
        made = melanoma.Lesions(names, concepts, np.arange(80), tokens, outputs, host)
        return page.draw(names, concepts, [melanoma.measure(made, seed) for seed in range(2)])

    first = draw()
    assert draw() == first and "| Streaks: P | neurons |" in first and "Nothing on this page is clinical" in first
