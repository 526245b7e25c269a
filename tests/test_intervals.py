"""Intervals of single units over test images: the resampled numbers against their twins, and whether they cover."""

import numpy as np
import pytest
import torch
from scipy import stats
from sklearn.metrics import average_precision_score, f1_score, jaccard_score
from test_evaluate import GIVEN, MINE, TEST, label_rows, world

from saelab import evaluate as ev
from saelab import metrics
from saelab.acts import columns
from saelab.evaluate import intervals
from saelab.evaluate.faithfulness import Judges, Splits
from saelab.truth import Similarity, Truth
from saelab.units import UnitActivations


def unit(n: int, rate: float, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Activations that follow a concept of this frequency, and the concept."""
    rng = np.random.default_rng(seed)
    true = rng.random(n) < rate
    return np.maximum(0, true + rng.normal(0, 0.6, n) - 0.3).round(2), true


def test_draws_are_resamples_of_all_images_and_hold_to_their_seed():
    made = intervals.draws(50, seed=3, resamples=400)
    assert (made.sum(1) == 50).all() and made.max() > 2
    np.testing.assert_array_equal(made, intervals.draws(50, seed=3, resamples=400))
    assert abs(made.mean(0) - 1).max() < 0.25  # no image is favoured


def test_resampled_numbers_are_those_of_the_repeated_images():
    a, true = unit(80, 0.25, 0)
    other = np.random.default_rng(1).normal(size=80) + true
    drawn = intervals.draws(80, 5, 40)
    r = intervals.correlations(np.stack([a, a], 1), np.stack([other, true.astype(float)], 1), drawn)
    precision = intervals.average_precision(a, true, drawn)
    for i, counts in enumerate(drawn):
        chosen = np.repeat(np.arange(80), counts)
        assert r[i, 0] == pytest.approx(np.corrcoef(a[chosen], other[chosen])[0, 1], abs=1e-10)
        assert r[i, 1] == pytest.approx(np.corrcoef(a[chosen], true[chosen])[0, 1], abs=1e-10)
        assert precision[i] == pytest.approx(average_precision_score(true[chosen], a[chosen]), abs=1e-12)


def test_blocks_of_resamples_do_not_change_a_number(monkeypatch):
    a, true = unit(80, 0.25, 0)
    drawn = intervals.draws(80, 5, 40)
    whole = (
        intervals.correlations(a[:, None], true[:, None].astype(float), drawn),
        intervals.average_precision(a, true, drawn),
    )
    monkeypatch.setattr(intervals, "ELEMENTS", 80 * 7)
    np.testing.assert_allclose(intervals.correlations(a[:, None], true[:, None].astype(float), drawn), whole[0])
    np.testing.assert_array_equal(intervals.average_precision(a, true, drawn), whole[1])


def test_a_resample_in_which_the_unit_is_constant_has_no_correlation():
    a = np.zeros((30, 1))
    a[4] = 2
    drawn = intervals.draws(30, 0, 200)
    r = intervals.correlations(a, np.random.default_rng(0).normal(size=(30, 1)), drawn)[:, 0]
    np.testing.assert_array_equal(np.isnan(r), drawn[:, 4] == 0)


def test_intervals_of_a_basis_are_quantiles_of_its_resamples_sparse_or_dense():
    acts, evidence = world()
    mine, test = acts[MINE], acts[TEST]
    splits = Splits(MINE, TEST)
    found = intervals.intervals(mine, test, GIVEN, evidence, splits, 2, 200)
    sparse = [columns(part.to_sparse_csr()) for part in (mine, test)]
    for own, wanted in zip(intervals.intervals(*sparse, GIVEN, evidence, splits, 2, 200), found, strict=True):
        assert own == {name: pytest.approx(bounds, abs=1e-12) for name, bounds in wanted.items()}
    known = evidence.truth.known[TEST].numpy()
    drawn = intervals.draws(int(known.sum()), 2, 200)
    a, true = test[known, 0].numpy(), evidence.truth.member[TEST][known, 0].numpy()
    threshold = float(
        metrics.best_f1_threshold(*(x[evidence.truth.known[MINE]][:, :1] for x in (mine, evidence.truth.member[MINE])))
    )
    twins = {"auprc": [], "f1": [], "iou": []}
    for counts in drawn:
        chosen = np.repeat(np.arange(len(a)), counts)
        if not true[chosen].any():
            continue  # no number to be had
        twins["auprc"].append(average_precision_score(true[chosen], a[chosen]))
        twins["f1"].append(f1_score(true[chosen], a[chosen] >= threshold))
        twins["iou"].append(jaccard_score(true[chosen], a[chosen] >= threshold))
    free = int(known.sum()) - 1
    out = stats.norm.cdf(np.sqrt((free + 1) / free) * stats.t.ppf(0.025, free))  # expanded: 27 images are few
    for name, values in twins.items():
        assert found[0][name] == pytest.approx(np.quantile(values, [out, 1 - out]).tolist(), abs=1e-9)


def test_there_is_no_interval_where_a_number_hangs_on_a_handful_of_images():
    acts, evidence = world()
    splits = Splits(MINE, TEST)
    found = intervals.intervals(acts[MINE], acts[TEST], GIVEN, evidence, splits)
    assert found[5] == {} and found[4] == {}  # no label; silent on the test images
    assert set(found[3]) == {"scs", "caption_r"}  # a label without truth
    few = acts.clone()
    few[TEST[4:], 0] = 0
    assert intervals.intervals(few[MINE], few[TEST], GIVEN, evidence, splits)[0] == {}
    rare = evidence.truth.member.clone()
    rare[TEST[rare[TEST, 1]][4:], 1] = False
    scarce = Judges(evidence.judge, evidence.captions, Truth(rare, *list(vars(evidence.truth).values())[1:]))
    assert set(intervals.intervals(acts[MINE], acts[TEST], GIVEN, scarce, splits)[1]) == {"scs", "caption_r"}


def test_an_evaluation_holds_the_interval_around_the_number_of_the_label():
    acts, evidence = world()
    units, splits = UnitActivations(acts, "neuron", {}), Splits(MINE, TEST)
    rows, _ = ev.evaluate(units, label_rows(GIVEN, {6}), evidence, splits)
    seen = 0
    for row in rows:
        for name, (low, high) in row["interval"].items():
            assert low <= row["by_scorer"]["csp"][name] <= high, (row["unit"], name)
            seen += 1
    assert seen > 15 and rows[6]["interval"]  # abstained, yet its label has numbers
    assert all(row["interval"] == {} for row in ev.evaluate(units, label_rows(GIVEN), evidence, splits, resamples=0)[0])


def test_intervals_cover_what_more_images_would_give():
    """In 150 worlds of 174 images: the interval of 19 in 20 units should hold the number of very many images."""
    a, true = unit(200_000, 0.2, 1)
    wanted = np.corrcoef(a, true)[0, 1], average_precision_score(true, a)
    covered = np.zeros((150, 2))
    for w in range(150):
        a, true = unit(174, 0.2, 100 + w)
        drawn = intervals.draws(174, w, 400)
        made = [
            intervals.correlations(a[:, None], true[:, None].astype(float), drawn)[:, 0],
            intervals.average_precision(a, true, drawn),
        ]
        bounds = intervals.bounds_of(np.stack(made, 1), 174)
        covered[w] = [low <= x <= high for x, (low, high) in zip(wanted, bounds, strict=True)]
    assert (covered.mean(0) > 0.89).all() and (covered.mean(0) < 0.99).all()


def test_a_series_is_drawn_as_one_and_its_intervals_cover():
    """In 60 worlds of 35 series of five images: drawn image by image they would hold the number in 6 of 10."""

    def series(scenes: int, seed: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        rng = np.random.default_rng(seed)
        true = (rng.random(scenes) < 0.3).repeat(5)
        noise = 0.5 * rng.normal(size=scenes).repeat(5) + 0.2 * rng.normal(size=5 * scenes)
        return (
            np.maximum(0, true + noise - 0.3),
            true + 0.8 * rng.normal(size=scenes).repeat(5),
            np.arange(scenes).repeat(5),
        )

    a, b, _ = series(40_000, 1)
    wanted, covered = np.corrcoef(a, b)[0, 1], []
    for w in range(60):
        a, b, groups = series(35, 100 + w)
        for of, count in ((groups, 35), (None, 175)):
            drawn = intervals.draws(175, w, 400, of)
            low, high = intervals.bounds_of(intervals.correlations(a[:, None], b[:, None], drawn), count)[0]
            covered.append(low <= wanted <= high)
    grouped, single = np.reshape(covered, (60, 2)).mean(0)
    assert grouped >= 0.86 and single < 0.8


def test_groups_of_unequal_size_are_repeated_images_of_whole_groups():
    a, true = unit(40, 0.4, 0)
    groups = np.repeat([3, 1, 7, 9, 2], [20, 10, 5, 3, 2])
    drawn = intervals.draws(40, 0, 30, groups)
    r = intervals.correlations(a[:, None], true[:, None].astype(float), drawn)
    for i, counts in enumerate(drawn):
        assert all(len(set(counts[groups == g])) == 1 for g in groups)
        chosen = np.repeat(np.arange(40), counts)
        with np.errstate(invalid="ignore", divide="ignore"):
            wanted = np.corrcoef(a[chosen], true[chosen])[0, 1]
        np.testing.assert_allclose(r[i, 0], wanted, atol=1e-10)


def test_an_interval_needs_five_series_not_five_images():
    acts, evidence = world()
    splits = Splits(MINE, TEST)
    alone = intervals.intervals(acts[MINE], acts[TEST], GIVEN, evidence, splits, resamples=50)
    few = intervals.intervals(acts[MINE], acts[TEST], GIVEN, evidence, splits, 0, 50, np.arange(30) // 8)
    assert alone[0] and few == [{}] * 7


def test_memory_of_a_large_basis_stays_bounded():
    """2,000 sparse units on 5,000 images are worked off in blocks: what is multiplied would be 400 MB at once."""
    import tracemalloc

    generator = torch.Generator().manual_seed(0)
    vectors = torch.nn.functional.normalize(torch.randn(4, 8, generator=generator), dim=1)
    images = torch.nn.functional.normalize(torch.randn(5000, 8, generator=generator), dim=1)
    space = Similarity.of("judge", images, ["a", "b", "c", "d"], vectors)
    places = torch.randint(0, 5000 * 2000, (400_000,), generator=generator).unique()
    acts = torch.sparse_coo_tensor(torch.stack([places // 2000, places % 2000]), torch.ones(len(places)), (5000, 2000))
    tracemalloc.start()
    intervals.intervals(
        columns(acts),
        columns(acts),
        ["a"] * 2000,
        Judges(space, None, None),
        Splits(np.arange(0), np.arange(5000)),
        resamples=200,
    )
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 120 * 2**20
