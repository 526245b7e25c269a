"""Rates, strengths, counts and means of an evaluation by hand, on splits of unequal size."""

import numpy as np
import pytest
import torch
from test_evaluate import IMAGES, label_rows, world

from saelab import evaluate as ev
from saelab.evaluate.evaluate import add_pixels, mean_of
from saelab.evaluate.faithfulness import Splits
from saelab.units import UnitActivations

MINE, TEST = np.arange(0, 38), np.arange(38, IMAGES)
TEXTS = ["cat", "dog", "cat", "unseen", None, None, "owl"]


@pytest.fixture(scope="module")
def evaluated():
    acts, evidence = world(1)
    units = UnitActivations(acts, "neuron", {})
    return acts, evidence, *ev.evaluate(units, label_rows(TEXTS, {2}), evidence, Splits(MINE, TEST), 7, resamples=0)


def test_rates_are_shares_of_their_own_split_and_strength_is_the_mean_of_the_strongest(evaluated):
    acts, _, rows, _ = evaluated
    for u, row in enumerate(rows):
        mine, test = acts[MINE, u], acts[TEST, u]
        assert row["firing_rate"] == pytest.approx(int((mine > 1e-5).sum()) / 38)
        assert row["test_firing_rate"] == pytest.approx(int((test > 1e-5).sum()) / 22)
        assert row["strength"] == pytest.approx(float(mine.sort(descending=True).values[:7].mean()), rel=1e-6)
    assert 0 < rows[0]["firing_rate"] != rows[0]["test_firing_rate"] > 0


def test_coherence_looks_at_a_tenth_of_the_test_images_at_most_ten_and_at_least_two(evaluated):
    acts, evidence, rows, summary = evaluated
    assert summary["k"] == 2 and summary["images"] == {"mine": 38, "test": 22}
    top = TEST[acts[TEST, 0].topk(2).indices.numpy()]
    cosine = float(evidence.judge.images[top[0]] @ evidence.judge.images[top[1]])
    assert rows[0]["clarity"] == pytest.approx(cosine, abs=1e-6)
    there = [row["clarity"] for row in rows if row["clarity"] is not None]
    assert summary["coherence"]["clarity"] == {"mean": pytest.approx(np.mean(there)), "units": len(there)}


def test_the_summary_counts_what_the_rows_say(evaluated):
    _, evidence, rows, summary = evaluated
    assert (summary["units"], summary["labelled"], summary["abstained"]) == (7, 4, 1)
    known = evidence.truth.known[TEST]
    assert summary["captioned_test_images"] == summary["described_test_images"] == int(known.sum()) < 22
    final = summary["by_scorer"]["final"]
    assert (final["labelled"], final["distinct"], final["without_truth"]) == (4, 4, 1)
    assert summary["by_scorer"]["csp"]["distinct"] == 4 and summary["by_scorer"]["csp"]["labelled"] == 5
    entries = [row["final"] for row in rows]
    confirmed = sum((entry["truth_images"] or 0) > 0 for entry in entries)
    assert final["confirmed"] == confirmed == 3
    for metric in ("scs", "auprc"):
        values = [entry[metric] for entry in entries if entry[metric] is not None]
        found, everywhere = final["metrics"][metric], ev.over_all(entries, metric)
        assert (found["mean"], found["units"]) == (pytest.approx(np.mean(values)), len(values))
        counted = [value for value in everywhere if value is not None]
        assert (found["mean_all"], found["units_all"]) == (pytest.approx(np.mean(counted)), len(counted))
        assert everywhere[2] == everywhere[4] == everywhere[5] == 0, "abstained; no label"
    assert ev.over_all(entries, "auprc")[3] is None and len([v for v in ev.over_all(entries, "scs") if v is None]) == 0


def test_a_mean_is_over_the_numbers_that_are_there():
    assert mean_of([0.25, None, float("nan"), 0.75]) == {"mean": 0.5, "units": 2}
    assert mean_of([None, float("nan")]) == {"mean": None, "units": 0}


def test_pixel_iou_counts_detectors_above_the_bar():
    rows = [{"by_scorer": {"netdissect": {}} if u != 2 else {}} for u in range(5)]
    summary: dict = {}
    add_pixels(rows, summary, torch.tensor([0.04, 0.05, 0.5, torch.nan, 0.01]))
    assert [row["by_scorer"]["netdissect"]["pixel_iou"] for row in rows if row["by_scorer"]] == [
        pytest.approx(0.04),
        pytest.approx(0.05),
        None,
        pytest.approx(0.01),
    ]
    found = summary["pixel_iou"]
    assert (found["mean"], found["units"], found["best"]) == (pytest.approx(0.15), 4, pytest.approx(0.5))
    assert found["above_bar"] == 0.5, "at the bar (but for float32) is not above it"
    empty: dict = {}
    add_pixels(rows[:1], empty, torch.tensor([torch.nan]))
    assert empty["pixel_iou"] == {"mean": None, "units": 0, "best": None, "above_bar": None}
