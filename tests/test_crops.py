"""Otsu crops and the re-ranking of Describe-and-Dissect."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from saelab.label import sheets
from saelab.label.crops import ALIKE, MOST, WHOLE, find_boxes, iou, otsu
from saelab.label.describe.ranking import rerank

GOLDEN = json.loads((Path(__file__).parent / "data" / "golden_describe_dissect.json").read_text())


def least_within(counts: np.ndarray) -> int:
    """Otsu's criterion as it is first put: the cut with the least variance within the two classes, by brute force."""
    values = np.arange(len(counts))

    def within(part: slice) -> float:
        weight = counts[part].sum()
        if weight == 0:
            return np.inf  # an empty class is no cut
        mean = (counts[part] * values[part]).sum() / weight
        return float((counts[part] * (values[part] - mean) ** 2).sum())

    spread = [within(slice(0, t + 1)) + within(slice(t + 1, None)) for t in range(len(counts) - 1)]
    return int(np.argmin(np.round(spread, 6))) if np.isfinite(spread).any() else 0


@given(st.lists(st.integers(0, 40), min_size=2, max_size=24))
def test_otsu_leaves_least_variance_within_its_classes(counts):
    counts = np.array(counts)
    found = otsu(counts)
    if (counts > 0).sum() < 2:
        assert found == 0
    else:
        mine, best = (_within(counts, cut) for cut in (found, least_within(counts)))
        assert mine == pytest.approx(best)


def closed_map(i: int) -> np.ndarray:
    """An 8-bit map of 20 x 24 places: waves and a spot, other ones for each i."""
    y, x = np.mgrid[:20, :24].astype(float)
    waves = np.sin(0.3 + 0.07 * i + 0.21 * x) * np.cos(0.11 * i + 0.17 * y)
    spot = np.exp(-((y - (7 * i) % 20) ** 2 + (x - (11 * i) % 24) ** 2) / (4 + i % 37))
    heat = np.clip(waves * (i % 5) / 4 + 2 * spot, 0, None)
    return (255 * heat / heat.max()).astype(np.uint8)


def test_otsu_gives_scikit_images_levels_on_200_maps():
    assert [otsu(np.bincount(closed_map(i).ravel(), minlength=256)) for i in range(200)] == GOLDEN["otsu"]


def _within(counts, cut):
    values = np.arange(len(counts))
    parts = [np.repeat(values[s], counts[s]) for s in (slice(0, cut + 1), slice(cut + 1, None))]
    return sum(len(part) * part.var() for part in parts)


@given(st.integers(0, 10_000), st.integers(3, 14), st.tuples(st.integers(40, 90), st.integers(40, 90)))
def test_boxes_obey_both_rules_and_lie_in_the_picture(seed, side, size):
    heat = np.random.default_rng(seed).normal(size=(side, side)).astype(np.float32)
    boxes = find_boxes(heat, size)
    assert len(boxes) <= MOST
    for i, box in enumerate(boxes):
        assert 0 <= box[0] < box[2] <= size[0] and 0 <= box[1] < box[3] <= size[1]
        assert iou(box, (0, 0, *size)) < WHOLE and all(iou(box, other) <= ALIKE for other in boxes[:i])
    areas = [(b[2] - b[0]) * (b[3] - b[1]) for b in boxes]
    assert areas == sorted(areas, reverse=True)


def test_two_planted_spots_are_two_boxes_and_a_flat_map_is_none():
    heat = np.zeros((20, 20))
    heat[2:6, 3:8] = 1
    heat[12:15, 13:18] = 0.9
    first, second = find_boxes(heat, (200, 100))  # twice as wide as high: 10 and 5 pixels a cell
    assert np.allclose(first, (30, 10, 80, 30), atol=8) and np.allclose(second, (130, 60, 180, 75), atol=8)
    assert find_boxes(np.ones((5, 5)), (50, 50)) == [] == find_boxes(-np.ones((5, 5)), (50, 50))
    assert iou((0, 0, 2, 2), (1, 0, 3, 2)) == pytest.approx(1 / 3)


def test_a_tile_is_cut_to_its_largest_box():
    heat = np.zeros((10, 10))
    heat[0:4, 0:4] = 1
    picture = Image.new("RGB", (100, 100), "blue")
    picture.paste("red", (0, 0, 40, 40))
    pixels = np.asarray(sheets.tile(picture, 60, "otsu", heat))
    assert (pixels[30, 30] == (255, 0, 0)).all() and (pixels[2, 2] == (255, 0, 0)).all()
    whole = np.asarray(sheets.tile(picture, 60, "otsu", np.ones((10, 10))))
    assert (whole == np.asarray(sheets.tile(picture, 60, "raw"))).all(), "no box: the whole picture"


# ---- re-ranking ------------------------------------------------------------------------------------------------------


def closed_form():
    c, p = torch.arange(20.0, dtype=torch.float64)[:, None], torch.arange(10.0, dtype=torch.float64)
    acts = (1.7 * c + 0.9 * p).sin() + 0.4 * (0.31 * c * (p + 1)).cos()
    return acts, 0.5 + 0.4 * (0.6 * c + 1.1 * p).cos()


def test_scores_are_those_of_the_original():
    found = rerank(*closed_form(), parity=True)
    for name, own in (("mean_squared_rank", found.squares), ("score", found.score), ("similarity", found.similarity)):
        assert own.tolist() == pytest.approx(GOLDEN[name], abs=1e-6), name
    assert found.order.tolist() == GOLDEN["order"]


def test_a_candidate_without_strong_pictures_comes_last_by_its_rank():
    """In the original the better one of these falls lower."""
    found = rerank(*closed_form())
    without = [c for c in range(20) if GOLDEN["similarity"][c] == -1]
    order = found.order.tolist()
    assert set(order[-len(without) :]) == set(without)
    squares = [GOLDEN["mean_squared_rank"][c] for c in order[-len(without) :]]
    assert squares == sorted(squares)
    kept = [c for c in GOLDEN["order"] if c not in without]
    assert order[: len(kept)] == kept


def test_candidates_with_few_pictures_or_none():
    acts = torch.tensor([[3.0, 9.0], [2.0, 0.0], [5.0, 5.0]])
    shown = torch.tensor([[True, False], [True, True], [False, False]])
    found = rerank(acts, torch.full((3, 2), 0.5), shown)
    assert found.squares.tolist() == [0.0, (1 + 4) / 2, 4.0] and found.places.tolist() == [3, 2, 1]
    assert found.similarity.tolist() == [0.5, 0.5, -1.0] and found.order.tolist() == [0, 1, 2]


def test_brute_force_over_random_pictures():
    rng = np.random.default_rng(0)
    for _ in range(20):
        acts, similarity = rng.permutation(60).reshape(6, 10) * 1.0, rng.uniform(0, 1, (6, 10))
        found = rerank(torch.tensor(acts), torch.tensor(similarity))
        rank = {value: i for i, value in enumerate(sorted(acts.ravel(), reverse=True))}
        squares = [np.mean([r**2 for r in sorted(rank[a] for a in row)[:5]]) for row in acts]
        assert found.squares.tolist() == pytest.approx(squares)
        assert found.places.tolist() == [sum(s <= t for t in squares) for s in squares]
        for row, values, mean in zip(acts, similarity, found.similarity.tolist()):
            near = [s for a, s in zip(row, values) if rank[a] < 10]
            assert mean == pytest.approx(np.mean(near) if near else -1)
