"""Over-represented classes: units that have nothing to do with classes show them no more often than promised."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from saelab.report import enriched

UNITS, SHOWN = 400, 30


def world(sizes, classes, rng):
    """Images of series of these sizes, each of one class; the table of classes, and the series."""
    groups = np.repeat(np.arange(len(sizes)), sizes)
    table = np.zeros((len(groups), max(classes) + 1), bool)
    table[np.arange(len(groups)), np.asarray(classes)[groups]] = True
    order = rng.permutation(len(groups))  # files of a series need not lie together
    return table[order], groups[order]


def share_with_a_class(table, groups, mined, rng, own=0.3):
    """Share of units with an over-represented class. Their activations are the series' own, with a little noise."""
    known = enriched.of_classes([f"class {j}" for j in range(table.shape[1])], table, groups, mined)
    found = 0
    for _ in range(UNITS):
        acts = rng.normal(size=groups.max() + 1)[groups] + own * rng.normal(size=len(groups))
        ids = np.flatnonzero(acts > 0)
        found += bool(enriched.classes(ids, acts[ids], SHOWN, known))
    return found / UNITS


@pytest.mark.parametrize("frames", [1, 5, 10, 30])
@pytest.mark.parametrize("own", [0.3, 3])
def test_series_are_no_evidence_of_their_number(frames, own):
    rng = np.random.default_rng(frames)
    count = max(1000 // frames, 80)
    table, groups = world([frames] * count, rng.integers(10, size=count), rng)
    assert share_with_a_class(table, groups, np.arange(len(groups)), rng, own) <= 0.05 + 3 * 0.011


@pytest.mark.parametrize("own", [0.3, 3])
def test_a_class_of_long_series_is_no_evidence(own):
    """Of large groups the strongest image is stronger, whatever it shows."""
    rng = np.random.default_rng(0)
    sizes = [30] * 10 + [1] * 300
    table, groups = world(sizes, [0] * 10 + rng.integers(1, 6, size=300).tolist(), rng)
    assert share_with_a_class(table, groups, np.arange(len(groups)), rng, own) <= 0.05 + 3 * 0.011


def test_a_class_that_was_wholly_mined_is_no_evidence():
    rng = np.random.default_rng(0)
    classes = [0] * 150 + rng.integers(1, 6, size=850).tolist()
    table, groups = world([1] * 1000, classes, rng)
    of_it = np.flatnonzero(table[:, 0])
    mined = np.sort(np.concatenate([of_it, rng.permutation(np.flatnonzero(~table[:, 0]))[:450]]))
    assert share_with_a_class(table, groups, mined, rng) <= 0.05 + 3 * 0.011


def test_a_unit_of_a_class_shows_it():
    rng = np.random.default_rng(0)
    table, groups = world([5] * 100, rng.integers(10, size=100), rng)
    known = enriched.of_classes(list("abcdefghij"), table, groups, np.arange(500))
    acts = 3.0 * table[:, 4] + rng.random(500)
    series = len(np.unique(groups[table[:, 4]]))
    (found, *rest) = enriched.classes(np.arange(500), acts, series, known)
    assert found[:5] == ["e", series, series, series, 100] and found[5] < 1e-5 and not rest


@given(st.integers(0, 2**16), st.integers(1, 40), st.integers(1, 6))
@settings(max_examples=50, deadline=None)
def test_order_of_images_means_nothing_among_equals(seed, count, levels):
    """Activations of few values, in whatever order their images are listed: the same classes."""
    rng = np.random.default_rng(seed)
    table, groups = rng.random((60, 3)) < 0.3, np.arange(60)
    acts = rng.integers(levels + 1, size=60).astype(np.float32)
    order = rng.permutation(60)
    found = [
        enriched.classes(np.arange(60), acts[o], count, enriched.of_classes(list("abc"), table[o], groups, groups))
        for o in (np.arange(60), order)
    ]
    assert found[0] == found[1]
    silent = enriched.classes(np.arange(0), acts[:0], count, enriched.of_classes(list("abc"), table, groups, groups))
    assert silent == []
