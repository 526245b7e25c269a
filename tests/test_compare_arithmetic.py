"""The parts of a difference's error in plain loops: each image group deleted for real, each sum written out."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from sklearn.metrics import average_precision_score

from saelab.compare import Side, difference
from saelab.compare.left_out import Parts, measure
from saelab.compare.matching import match
from saelab.compare.shared import combine, of_one, student
from saelab.compare.sides import typical
from saelab.compare.statistics import resampled_means

IMAGES = 36
GROUPS = np.repeat(np.arange(12), [1, 5, 2, 4, 1, 6, 3, 2, 4, 5, 1, 2])  # of unequal size


def side(seed: int, *sizes: int, labels: int = 26) -> Side:
    """A seed of each size; labels L0, L1 ... recur within seeds and over them, the first unit of each has none."""
    rng = np.random.default_rng(seed)
    columns = rng.normal(size=(IMAGES, labels))
    acts, target, names = [], [], []
    for size in sizes:
        which = rng.permutation(np.arange(size) % labels)
        quality = rng.uniform(0, 1, size)
        acts.append(torch.from_numpy(quality * columns[:, which] + rng.normal(size=(IMAGES, size))))
        target.append(torch.from_numpy(columns[:, which]))
        names.append([None, *(f"L{i}" for i in which[1:])])
    return Side(acts, target, names)


def unit_length(x: np.ndarray) -> np.ndarray:
    return (x - x.mean()) / np.linalg.norm(x - x.mean())


def reference_of(*sides: Side) -> np.ndarray:
    """Sides weigh alike, in each its seeds, in each of these its labelled units with a column that varies."""
    means = []
    for one in sides:
        seeds = []
        for target, labels in zip(one.target, one.labels):
            columns = [target[:, u].numpy() for u, label in enumerate(labels) if label is not None]
            seeds.append(np.mean([unit_length(x) for x in columns if np.ptp(x) > 0], axis=0))
        means.append(np.mean(seeds, axis=0))
    return np.mean(means, axis=0)


def values_of(one: Side, keep: np.ndarray, reference: np.ndarray | None) -> list[np.ndarray]:
    """By seed: each unit's correlation on the kept images, above the reference where there is one."""
    found = []
    for acts, target in zip(one.acts, one.target):
        seed = []
        for a, t in zip(acts.numpy()[keep].T, target.numpy()[keep].T):
            a, t = unit_length(a), unit_length(t)
            if reference is None:
                seed.append(a @ t)
            else:  # of length 1 on all images: on fewer of them shorter by the root of their share
                c = (reference[keep] - reference[keep].mean()) / np.sqrt(keep.mean())
                seed.append((a @ t - a @ c) / (1 - t @ c))
        found.append(np.array(seed))
    return found


def mean_of_means(values: list[np.ndarray]) -> float:
    return float(np.mean([x.mean() for x in values]))


def test_the_reference_is_the_mean_of_sides_of_seeds_of_labelled_columns():
    a, b = side(1, 8, 20), side(2, 5)
    a.target[1][:, 3] = 0.7  # a label equally like every image says nothing
    expected = reference_of(a, b)
    np.testing.assert_allclose((typical(a) + typical(b)) / 2, expected, atol=1e-12)
    one = Side(a.acts[:1], a.target[:1], a.labels[:1])
    found = difference(one, b)
    expected = reference_of(one, b)
    everything = np.ones(IMAGES, bool)
    for mean, raw, given in ((found.mean_a, found.raw_a, one), (found.mean_b, found.raw_b, b)):
        assert mean == pytest.approx(mean_of_means(values_of(given, everything, expected)))
        assert raw == pytest.approx(mean_of_means(values_of(given, everything, None)))


def test_numbers_above_the_reference_without_a_group_are_those_of_the_other_images():
    a = side(3, 7)
    reference = reference_of(a, side(4, 9))
    found = measure(a, Parts.deal(GROUPS, 200, 0), "pearson", torch.from_numpy(reference))
    for g in range(12):
        (expected,) = values_of(a, g != GROUPS, reference)
        np.testing.assert_allclose(found.left_out[g], expected, atol=1e-10)


def test_precision_above_chance_without_an_image_is_that_of_scikit_learn():
    rng = np.random.default_rng(0)
    acts, true = rng.normal(size=(25, 5)).round(0), rng.random((25, 5)) < 0.3
    one = Side([torch.from_numpy(acts)], [torch.from_numpy(true).double()], [[None] * 5])
    found = measure(one, Parts.deal(np.arange(25), 200, 0), "auprc", torch.zeros(25))
    for u in range(5):
        for i in (None, *range(25)):
            keep = np.arange(25) != (-1 if i is None else i)
            share = true[keep, u].mean()
            expected = (average_precision_score(true[keep, u], acts[keep, u]) - share) / (1 - share)
            assert (found.values[u] if i is None else found.left_out[i, u]) == pytest.approx(expected), (u, i)


def clustered(one: Side, values: list[np.ndarray]) -> tuple[dict, dict, float]:
    """Weighted sums of values by label, the labels' weights, and the mean: units of no label stand for themselves."""
    total: dict[object, float] = {}
    weight: dict[object, float] = {}
    for seed, (numbers, labels) in enumerate(zip(values, one.labels)):
        for u, (value, label) in enumerate(zip(numbers, labels)):
            key, share = label or (seed, u), 1 / len(values) / len(numbers)
            total[key] = total.get(key, 0) + share * value
            weight[key] = weight.get(key, 0) + share
    return total, weight, sum(total.values())


def test_every_part_of_the_error_in_loops_with_unequal_seeds_labels_and_groups():
    a, b = side(5, 30, 44), side(6, 40)
    found = difference(a, b, torch.from_numpy(GROUPS), chance="none")
    share = np.bincount(GROUPS) / IMAGES
    everything = np.ones(IMAGES, bool)
    freedom, means = {}, []
    for name, one in (("units_a", a), ("units_b", b)):
        values = values_of(one, everything, None)
        total, weight, mean = clustered(one, values)
        spread = sum((total[c] - weight[c] * mean) ** 2 / (1 - weight[c]) for c in total)
        moved = []
        for g in range(12):
            some, _, without = clustered(one, values_of(one, g != GROUPS, None))
            moved.append([some[c] - weight[c] * without for c in total])
            means.append(without)
        moved = np.array(moved) - np.mean(moved, axis=0)
        noise = sum((1 - share[g]) * (moved[g] ** 2).sum() for g in range(12))
        assert found.variance[name] == pytest.approx(spread - noise) and noise > 0.1 * spread
        effective = 1 / sum(w**2 for w in weight.values())
        assert found.clusters[name[-1]] == pytest.approx(effective) and effective < len(weight)
        freedom[name] = effective - 1
    gaps = np.array(means[:12]) - np.array(means[12:])
    images = sum((1 - share[g]) * (gaps[g] - gaps.mean()) ** 2 for g in range(12))
    assert found.variance["images"] == pytest.approx(images)
    by_seed = values_of(a, everything, None)
    within = 0.0
    for seed, numbers in enumerate(by_seed):
        total, weight, mean = clustered(Side(a.acts[:1], a.target[:1], [a.labels[seed]]), [numbers])
        within += sum((total[c] - weight[c] * mean) ** 2 / (1 - weight[c]) for c in total)
    between = np.var([x.mean() for x in by_seed], ddof=1) / 2
    assert found.variance["seeds"] == pytest.approx(max(0.0, between - within / 4))
    assert found.mean_a == pytest.approx(mean_of_means(by_seed))
    freedom |= {"images": 1 / (share**2).sum() - 1, "seeds": 1.0}
    total = sum(found.variance.values())
    assert found.df == pytest.approx(total**2 / sum(v**2 / freedom[n] for n, v in found.variance.items()))


def test_the_noise_of_images_is_no_spread_of_units():
    """Units of one quality scatter by their images alone; of planted qualities, the spread of these is what is left."""
    rng = np.random.default_rng(0)
    target = torch.from_numpy(rng.normal(size=(300, 200)))
    target = (target - target.mean(0)) / target.std(0)
    noise = torch.from_numpy(rng.normal(size=(300, 200)))
    other = Side([noise], [target], [[None] * 200])
    for spread in (0.0, 0.15):
        r = torch.from_numpy(0.4 + spread * np.where(np.arange(200) % 2, 1.0, -1.0))
        acts = r * target + (1 - r**2).sqrt() * noise
        found = difference(Side([acts], [target], [[None] * 200]), other, chance="none").variance["units_a"] * 200
        assert found == pytest.approx(spread**2, abs=0.001), "0.0024 to 0.003 of noise beside it"


def test_one_side_against_zero_is_the_difference_from_units_that_are_all_zero():
    one = measure(side(7, 25, 30), Parts.deal(GROUPS, 200, 0), "pearson", None)
    zeros = measure(side(8, 30), Parts.deal(GROUPS, 200, 0), "pearson", None).zero(np.ones(30, bool))
    for parts in (Parts.deal(GROUPS, 200, 0), None):
        found, twin = of_one(one, parts), combine(one, zeros, parts)
        for name in ("mean_a", "difference", "low", "high", "p", "df", "raw_a"):
            assert getattr(found, name) == pytest.approx(getattr(twin, name)), name
        assert found.variance == pytest.approx(twin.variance) and found.clusters["a"] == twin.clusters["a"]
        assert found.low < found.mean_a < found.high and 0 < found.p < 0.05


@pytest.mark.parametrize("where", [combine, lambda a, b, parts: of_one(a, parts)])
def test_fewest_labels_and_groups_are_twenty_and_ten(where):
    def of(units: int, groups: int) -> str | None:
        parts = Parts.deal(np.arange(40) % groups, 200, 0)
        made = Side([torch.randn(40, units)], [torch.randn(40, units)], [[None] * units])
        return where(*2 * [measure(made, parts, "pearson", None)], parts).refused

    torch.manual_seed(0)
    assert of(20, 10) is None
    assert "only 19 different labels" in of(19, 10) and "only 9 groups of images" in of(20, 9)


def test_only_some_units_of_a_side_keep_their_numbers_labels_and_seeds():
    whole = measure(side(9, 6, 5), Parts.deal(GROUPS, 200, 0), "pearson", None)
    keep = np.array([True, False, True, True, False, False, True, True, False, True, True])
    some = whole.only(keep)
    for name in ("values", "raw", "seed", "unit"):
        np.testing.assert_array_equal(getattr(some, name), getattr(whole, name)[keep])
    np.testing.assert_array_equal(some.left_out, whole.left_out[:, keep])
    assert some.kept == (3, 4) and whole.kept == (6, 5)
    alike = whole.cluster[keep][:, None] == whole.cluster[keep]
    np.testing.assert_array_equal(some.cluster[:, None] == some.cluster, alike)
    none = whole.zero(keep)
    np.testing.assert_array_equal(none.values == 0, keep)
    np.testing.assert_array_equal((none.left_out == 0).all(0), keep)
    np.testing.assert_array_equal(none.raw[~keep], whole.raw[~keep])


def test_matching_takes_of_each_level_what_the_smallest_basis_has():
    """Numbers of five levels, as many bins as tell them apart: the histograms agree level by level."""
    counts = {"a": [20, 30, 0, 40, 10], "b": [25, 10, 50, 15, 30], "c": [40, 40, 40, 40, 40]}
    values = SimpleNamespace(**{name: np.repeat(np.arange(5.0), n) for name, n in counts.items()})
    (a, c), (b,) = match([values.a, values.c], [values.b], 50, 0)
    for own, index in ((values.a, a), (values.b, b), (values.c, c)):
        assert np.bincount(own[index].astype(int), minlength=5).tolist() == [20, 10, 0, 15, 10]
        assert len(set(index.tolist())) == len(index) and (np.diff(index) > 0).all()
    again = match([values.a, values.c], [values.b], 50, 1)
    assert not np.array_equal(again[0][1], c), "another seed draws other units"


def test_bins_of_a_matching_are_quantiles_in_which_both_groups_weigh_alike():
    """Half of all weight on 0 to 10, half on 0 to 2: two bins part at 5 / 3, however many units and bases `a` has."""
    a, b = [np.linspace(0, 10, 1001)] * 3, [np.r_[np.linspace(0, 2, 40), 10.0]]
    picked, (of_b,) = match(a, b, 2, 0)
    assert len(of_b) == 41, "every bin of a holds more"
    wanted = (b[0] > 5 / 3).sum()  # 8; parted at 5, where the median of all units lies, it would be 26
    for values, index in zip(a, picked):
        assert (values[index] > 5 / 3).sum() == pytest.approx(wanted, abs=1)


def test_a_part_of_one_degree_of_freedom_weighs_as_such_and_less_than_one_counts_as_one():
    df = student(0.3, [(0.02, 1.0), (0.01, 19.0)])[3]
    assert df == pytest.approx(0.03**2 / (0.02**2 / 1 + 0.01**2 / 19))
    assert student(0.3, [(0.02, 0.4), (0.01, 19.0)])[3] == pytest.approx(df)


def test_resamples_draw_every_unit_equally_often_as_many_as_there_are():
    """Of the unit vectors, the mean of a resample is the share of each unit in it."""
    n, resamples = 6, 4000
    shares = resampled_means(np.eye(n), np.ones((n, n), bool), resamples, 0)
    np.testing.assert_allclose(shares.sum(1), 1)
    np.testing.assert_allclose(shares * n, (shares * n).round(), atol=1e-12)
    assert abs(shares.mean(0) - 1 / n).max() < 5 * np.sqrt((1 - 1 / n) / n / n / resamples)
    assert shares.var(0).mean() == pytest.approx((1 - 1 / n) / n / n, rel=0.1)
    gone = np.ones((n, n), bool)
    gone[0] = False
    of_others = resampled_means(np.eye(n), gone, resamples, 0)[:, 1:]
    drawn = shares[:, 0] < 1
    np.testing.assert_allclose(of_others[drawn].sum(1), 1)  # a mean over those that are there
