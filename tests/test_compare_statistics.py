"""The statistics of a comparison against scipy and statsmodels, brute force, and known error rates; and matching."""

import numpy as np
import pytest
import torch
from scipy import stats
from statsmodels.stats.multitest import multipletests
from statsmodels.stats.weightstats import CompareMeans

from saelab import metrics
from saelab.compare import Side, statistics
from saelab.compare.evidence import cliffs_delta
from saelab.compare.left_out import Measured, Parts, measure
from saelab.compare.matching import match
from saelab.compare.random_directions import among
from saelab.compare.shared import combine


def draw(seed: int, *sizes: int, shift: float = 0.0) -> list[np.ndarray]:
    rng = np.random.default_rng(seed)
    return [rng.normal(shift, 1, n) for n in sizes]


def test_cliffs_delta_is_the_share_of_pairs_above_less_the_share_below():
    a, b = np.round(draw(0, 37)[0], 1), np.round(draw(1, 23, shift=0.4)[0], 1)  # with ties
    assert cliffs_delta(a, b) == pytest.approx(np.sign(a[:, None] - b[None]).mean())


def test_methods_on_the_same_units_match_scipy_column_by_column():
    a, b = np.stack(draw(0, 90, 90, shift=0.2), 1), np.stack(draw(1, 90, 90), 1)
    a[:10, 1] = np.nan
    b[5:20, 1] = np.nan
    found = statistics.on_same_units(a, b, 0.05, 8000, 0)
    for j in range(2):
        keep = np.isfinite(a[:, j]) & np.isfinite(b[:, j])
        gap = a[keep, j] - b[keep, j]
        twin = stats.bootstrap((gap,), np.mean, n_resamples=8000, method="percentile", rng=1).confidence_interval
        assert found[j].n == keep.sum() and found[j].mean_a - found[j].mean_b == pytest.approx(gap.mean())
        assert (found[j].low, found[j].high) == pytest.approx((twin.low, twin.high), abs=0.02)
        assert found[j].p_wilcoxon == pytest.approx(stats.wilcoxon(gap, method="approx").pvalue)


def test_a_method_against_itself_is_no_difference_and_an_empty_column_is_none():
    a = draw(0, 40)[0][:, None]
    itself, empty = statistics.on_same_units(np.hstack([a, a]), np.hstack([a, a * np.nan]), 0.05, 100, 0)
    assert (itself.low, itself.high, itself.p_wilcoxon) == (0, 0, 1) and empty is None


@pytest.mark.parametrize("p", [[0.3], [0.04, 0.01, 0.03, 0.005], [0.5, 0.5, 0.001], [0.9, 0.0, 1.0, 0.02, 0.02, 0.4]])
def test_holm_is_that_of_statsmodels(p):
    assert metrics.holm(p) == pytest.approx(multipletests(p, method="holm")[1].tolist())


def side_of(values: list[np.ndarray]) -> Measured:
    """Units of labels of their own, an array a seed."""
    numbers, seed = np.concatenate(values), np.repeat(np.arange(len(values)), [len(x) for x in values])
    units = np.concatenate([np.arange(len(x)) for x in values])
    return Measured(numbers, numbers, np.zeros((0, len(numbers))), np.arange(len(numbers)), seed, units, len(values), 0)


def test_without_seeds_and_images_it_is_welch():
    (a,), (b,) = draw(0, 80, shift=0.5), draw(1, 60)
    found = combine(side_of([a]), side_of([b]), None)
    assert found.p == pytest.approx(stats.ttest_ind(a, b, equal_var=False).pvalue)
    assert (found.low, found.high) == pytest.approx(CompareMeans.from_data(a, b).tconfint_diff(usevar="unequal"))


def test_the_mean_of_two_bases_has_half_the_variance_of_one():
    """A mutant that doesn't divide the error of several bases by their number fails here."""
    (a, other), (b,) = draw(0, 40, 40), draw(1, 60)
    one, two = (combine(side_of(x), side_of([b]), None).variance for x in ([a], [a, other]))
    assert one["units_a"] == pytest.approx(a.var(ddof=1) / 40)
    spread = np.concatenate([a, other]).var(ddof=1) / 80
    assert two["units_a"] == pytest.approx(spread) and two["units_b"] == one["units_b"]
    within = (a.var(ddof=1) + other.var(ddof=1)) / 40 / 4
    assert two["seeds"] == pytest.approx(max(0, (a.mean() - other.mean()) ** 2 / 4 - within))


def test_chance_is_taken_off_and_p_is_two_sided():
    """Arithmetic of one number above chance: (r - chance) / (1 - own share); and p doubles one tail."""
    acts, target = torch.tensor([[1.0], [2], [4], [3]]), torch.tensor([[0.0], [1], [3], [1]])
    reference = torch.tensor([0.1, -0.2, 0.3, 0.0])
    parts = Parts.deal(np.arange(4), 10, 0)
    found = measure(Side([acts], [target], [["x"]]), parts, "pearson", reference)
    z, t = (((x - x.mean()) / (x - x.mean()).norm()).double()[:, 0] for x in (acts, target))
    c = reference.double() - reference.double().mean()
    assert found.raw[0] == pytest.approx(float(z @ t))
    assert found.values[0] == pytest.approx((float(z @ t) - float(z @ c)) / (1 - float(t @ c)))
    same, far = draw(0, 30), [x - 100 for x in draw(0, 30)]
    p = [combine(side_of(x), side_of(y), None).p for x, y in ((same, far), (far, same))]
    assert p[0] == pytest.approx(p[1]) and p[0] < 1e-12


def rejections(tau: float, seeds: int, runs: int = 300) -> float:
    """Share of p < 0.05 where groups of bases differ by nothing but the luck of their seeds (spread `tau`)."""
    rng, count = np.random.default_rng(1), 0
    for _ in range(runs):
        a = [rng.normal(tau * rng.normal(), 1, 60) for _ in range(seeds)]
        count += combine(side_of(a), side_of([rng.normal(0, 1, 40)]), None).p < 0.05
    return count / runs


def test_intervals_keep_their_error_rate_over_seeds_and_one_seed_does_not():
    assert rejections(tau=0.0, seeds=3) < 0.08
    assert rejections(tau=0.2, seeds=3) < 0.09  # 5 % and three standard errors of 300 runs
    assert rejections(tau=0.2, seeds=1) > 0.11  # why one seed is flagged: its units can't speak for other seeds


def test_matching_makes_histograms_alike_and_takes_equally_many():
    rng = np.random.default_rng(0)
    a, b = [rng.beta(1, 9, 2000), rng.beta(1, 8, 1500)], [rng.beta(2, 5, 300)]
    picked_a, picked_b = match(a, b, 10, seed=0)
    n = len(picked_b[0])
    assert n > 100 and all(len(index) == n == len(set(index.tolist())) for index in [*picked_a, *picked_b])
    gap = abs(a[0].mean() - b[0].mean())
    assert abs(a[0][picked_a[0]].mean() - b[0][picked_b[0]].mean()) < 0.1 * gap
    again = match(a, b, 10, seed=0)
    assert all(np.array_equal(x, y) for x, y in zip([*picked_a, *picked_b], [*again[0], *again[1]]))


def test_matching_finds_nothing_where_ranges_do_not_meet():
    picked_a, picked_b = match([np.full(50, 0.9)], [np.linspace(0, 0.3, 50), np.full(50, 0.9)], 10, 0)
    assert [len(index) for index in [*picked_a, *picked_b]] == [0, 0, 0]


def test_matching_copes_with_one_shared_value_and_leaves_nan_out():
    values = np.array([1.0] * 30 + [np.nan] * 10)
    (a,), (b,) = match([values], [np.ones(20)], 10, 0)
    assert len(a) == len(b) == 20 and (a < 30).all()


def test_a_unit_among_random_directions_is_the_share_that_do_worse():
    drawn = np.concatenate([np.arange(20.0), [np.nan]])
    found = among(np.array([-1.0, 0.0, 9.5, 19.0, 30.0, np.nan]), drawn)
    assert found[:5].tolist() == [0.0, 0.025, 0.5, 0.975, 1.0] and np.isnan(found[5])
    assert bool(np.isnan(among(np.array([1.0]), drawn[:19])).all())  # too few to say anything
    rng = np.random.default_rng(0)  # of their like, a twentieth are better than 95 %
    assert 0.04 < float((among(rng.normal(size=20_000), rng.normal(size=4_000)) > 0.95).mean()) < 0.06
