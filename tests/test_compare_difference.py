"""A difference whose error knows what units share: arithmetic by brute force, worlds of known truth, bad input."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import settings as examples
from hypothesis import strategies as st
from scipy import stats
from sklearn.metrics import average_precision_score

from saelab.compare import Difference, Side, difference, join_groups
from saelab.compare.left_out import Parts, measure
from saelab.compare.shared import student
from saelab.compare.sides import check_groups
from saelab.errors import UserError


def side(seed: int, units: int = 30, images: int = 60, quality: float = 1.0, seeds: int = 1, labels: int = 30) -> Side:
    """Units that follow a label's column by `quality`, plus noise; labels L0.. in turn, the same columns everywhere."""
    columns = torch.from_numpy(np.random.default_rng(99).normal(size=(images, labels)))
    rng = np.random.default_rng(seed)
    acts, target, names = [], [], []
    for _ in range(seeds):
        which = torch.from_numpy(np.arange(units) % labels)
        noise = torch.from_numpy(rng.normal(size=(images, units)))
        acts.append(quality * columns[:, which] + noise)
        target.append(columns[:, which])
        names.append([f"L{i}" for i in which.tolist()])
    return Side(acts, target, names)


def pearson(x: torch.Tensor, y: torch.Tensor) -> np.ndarray:
    return np.array([np.corrcoef(x[:, u], y[:, u])[0, 1] for u in range(x.shape[1])])


def without_chance(a: Side, b: Side, **more) -> Difference:
    return difference(a, b, chance="none", **more)


def test_means_are_those_of_numpy_a_mean_over_seed_means():
    a, b = side(1, units=25, seeds=2), side(2, quality=0.3)
    found = without_chance(a, b)
    wanted = np.mean([pearson(x, t).mean() for x, t in zip(a.acts, a.target)])
    assert found.mean_a == pytest.approx(wanted) and found.mean_b == pytest.approx(
        pearson(b.acts[0], b.target[0]).mean()
    )
    assert found.difference == pytest.approx(found.mean_a - found.mean_b) and found.raw_a == found.mean_a
    assert found.low < found.difference < found.high and (found.low + found.high) / 2 == pytest.approx(found.difference)


def test_the_parts_left_out_are_what_deleting_those_images_gives():
    a = side(3, units=6)
    a.acts[0][:, 2].clamp_(min=1.0)
    groups = np.repeat(np.arange(12), 5)
    parts = Parts.deal(groups, 200, 0)
    reference = torch.from_numpy(np.random.default_rng(0).normal(size=60))
    reference = (reference - reference.mean()) / 30
    for metric in ("pearson", "auprc"):
        one = a if metric == "pearson" else Side(a.acts, [(a.target[0] > 0.8).double()], a.labels)
        found = measure(one, parts, metric, None)
        for g in range(12):
            x, t = one.acts[0][groups != g], one.target[0][groups != g]
            if metric == "pearson":
                np.testing.assert_allclose(found.left_out[g], pearson(x, t), atol=1e-10)
    found = measure(a, parts, "pearson", reference)
    x, t = (m - m.mean(0) for m in (a.acts[0], a.target[0]))
    x, t = x / x.norm(dim=0), t / t.norm(dim=0)
    wanted = ((x * t).sum(0) - x.T @ reference) / (1 - t.T @ reference)
    np.testing.assert_allclose(found.values, wanted, atol=1e-10)


def test_average_precision_without_an_image_is_that_of_scikit_learn_ties_and_all():
    rng = np.random.default_rng(0)
    acts = torch.from_numpy(rng.normal(size=(25, 5)).round(0))  # many ties
    true = torch.from_numpy(rng.random((25, 5)) < 0.3).double()
    one = Side([acts], [true], [[None] * 5])
    found = measure(one, Parts.deal(np.arange(25), 200, 0), "auprc", None)
    for u in range(5):
        assert found.values[u] == pytest.approx(average_precision_score(true[:, u], acts[:, u]))
        for i in range(25):
            keep = np.arange(25) != i
            wanted = average_precision_score(true[keep, u], acts[keep, u])
            assert found.left_out[i, u] == pytest.approx(wanted), (u, i)


def test_precision_above_chance_is_0_for_a_unit_that_ranks_at_random_whatever_the_frequency():
    rng = np.random.default_rng(0)
    acts = torch.from_numpy(rng.normal(size=(4000, 60)))
    shares = np.linspace(0.05, 0.9, 60)
    true = torch.from_numpy(rng.random((4000, 60)) < shares).double()
    one = Side([acts], [true], [[f"{u}" for u in range(60)]])
    found = difference(one, one, metric="auprc")
    assert abs(found.mean_a) < 0.01 and found.raw_a > 0.4


def test_variance_of_independent_units_and_images_is_the_textbook_s():
    """Units of labels of their own, images of their own: spread of values over n, and the jackknife of the mean."""
    a, b = side(1), side(2)
    found = without_chance(a, b)
    values = pearson(a.acts[0], a.target[0])
    spread = values.var(ddof=1) / 30
    assert 0 < found.variance["units_a"] <= spread and found.variance["seeds"] == 0
    gaps = []
    for i in range(60):
        keep = torch.arange(60) != i
        gaps.append(
            pearson(a.acts[0][keep], a.target[0][keep]).mean() - pearson(b.acts[0][keep], b.target[0][keep]).mean()
        )
    assert found.variance["images"] == pytest.approx(59 / 60 * np.square(np.array(gaps) - np.mean(gaps)).sum())
    assert found.clusters == {"a": pytest.approx(30), "b": pytest.approx(30), "images": 60}


def test_student_is_two_sided_with_satterthwaite_s_freedom():
    low, high, p, df = student(0.3, [(0.01, 9.0), (0.02, 19.0), (0.0, 1.0)])
    assert df == pytest.approx(0.03**2 / (0.01**2 / 9 + 0.02**2 / 19))
    assert p == pytest.approx(2 * stats.t.sf(0.3 / np.sqrt(0.03), df)) and student(-0.3, [(0.03, df)])[
        2
    ] == pytest.approx(p)
    assert (low, high) == pytest.approx(stats.t.interval(0.95, df, 0.3, np.sqrt(0.03)))
    assert student(0.0, [(0.0, 1.0)])[:3] == (0, 0, 1) and student(0.1, [(0.0, 1.0)])[2] == 0


def test_both_bases_add_to_the_error():
    """A mutant that divides the error by the number of bases, or forgets one side, fails here."""
    a, b = side(1), side(2)
    found = without_chance(a, b)
    _, _, p, df = student(
        found.difference,
        [(found.variance["units_a"], 29), (found.variance["units_b"], 29), (found.variance["images"], 59)],
    )
    assert (found.p, found.df) == (pytest.approx(p), pytest.approx(df))


def test_copies_of_a_unit_add_nothing_to_what_is_known():
    a, b = side(1), side(2)
    copied = Side([torch.cat([a.acts[0]] * 8, 1)], [torch.cat([a.target[0]] * 8, 1)], [a.labels[0] * 8])
    one, many = without_chance(a, b), without_chance(copied, b)
    for name in one.variance:
        assert many.variance[name] == pytest.approx(one.variance[name]), name
    assert many.clusters["a"] == pytest.approx(30) and (many.p, many.df) == (
        pytest.approx(one.p),
        pytest.approx(one.df),
    )
    seeds = Side(a.acts * 3, a.target * 3, a.labels * 3)
    assert without_chance(seeds, b).variance == pytest.approx(one.variance)


def test_repeated_images_in_one_group_add_nothing_either():
    a, b = side(1), side(2)
    twice = [Side([x.acts[0].repeat_interleave(3, 0)], [x.target[0].repeat_interleave(3, 0)], x.labels) for x in (a, b)]
    groups = torch.arange(60).repeat_interleave(3)
    one, many = without_chance(a, b), without_chance(*twice, groups=groups)
    assert many.variance["images"] == pytest.approx(one.variance["images"]) and many.p == pytest.approx(one.p)
    assert without_chance(*twice).variance["images"] < 0.5 * one.variance["images"]


def test_seeds_that_differ_widen_the_interval():
    a = side(1, seeds=3)
    apart = Side([a.acts[0], a.acts[1], a.target[2] + 0.3 * a.acts[2]], a.target, a.labels)
    assert without_chance(apart, side(2)).variance["seeds"] > 20 * without_chance(a, side(2)).variance["seeds"]


def test_sparse_acts_and_targets_made_on_demand_give_the_same():
    a, b = side(1), side(2)
    rectified = Side([a.acts[0].relu()], a.target, a.labels)
    lazy = Side([a.acts[0].relu().to_sparse_csr()], [lambda block: a.target[0][:, block]], a.labels)
    dense, sparse = (vars(difference(x, b)) for x in (rectified, lazy))
    assert sparse.pop("variance") == pytest.approx(dense.pop("variance"), rel=1e-9)
    assert [sparse[x] for x in ("mean_a", "low", "high", "p", "df")] == pytest.approx(
        [dense[x] for x in ("mean_a", "low", "high", "p", "df")], rel=1e-9
    )


def test_more_groups_than_parts_are_bundled_and_change_little():
    a, b = side(1, images=600), side(2, images=600)
    all_, few = without_chance(a, b, resamples=600), without_chance(a, b, resamples=100)
    shares = [
        without_chance(a, b, resamples=100, seed=seed).variance["images"] / all_.variance["images"]
        for seed in range(10)
    ]
    # A variance from 100 parts errs by sqrt(2 / 99) = 14 %: three of these for one draw, and for the mean of ten.
    assert max(abs(share - 1) for share in shares) < 0.43 and np.mean(shares) == pytest.approx(1, abs=0.14)
    assert few == without_chance(a, b, resamples=100) and few != without_chance(a, b, resamples=100, seed=1)
    assert few.mean_a == all_.mean_a and few.clusters["images"] == 600


def test_a_part_that_all_labels_and_units_share_is_no_matter_of_the_labels():
    a, b = side(1, quality=0.0), side(2, quality=0.0)
    drive = torch.from_numpy(np.random.default_rng(5).normal(size=(60, 1)))
    tilted = Side([a.acts[0] + drive], [a.target[0] + drive], a.labels)
    plain = Side([b.acts[0]], [b.target[0] + drive], b.labels)
    found = difference(tilted, plain)
    assert found.raw_a > 0.3 and abs(found.mean_a) < 0.06 and found.p > 0.05


def test_identical_sides_do_not_differ():
    found = difference(side(1), side(1))
    assert found.difference == 0 and found.p == 1 and found.variance["images"] == 0


def test_units_without_a_label_are_clusters_of_their_own():
    a = side(1, labels=3)
    named, unnamed = without_chance(a, side(2)), without_chance(Side(a.acts, a.target, [[None] * 30]), side(2))
    assert named.refused == "only 3 different labels on side a; an interval needs 20" and named.p is None
    assert named.difference == unnamed.difference and unnamed.refused is None
    assert unnamed.clusters["a"] == pytest.approx(30)


def test_nan_is_left_out_and_counted_and_constants_count_0():
    a, b = side(1), side(2)
    acts, target = a.acts[0].clone(), a.target[0].clone()
    acts[3, 0], target[:, 1], acts[:, 2], target[:, 3] = torch.nan, torch.nan, 7.0, 0.0
    found = without_chance(Side([acts], [target], a.labels), b)
    values = pearson(acts[:, 4:], target[:, 4:])
    assert found.left_out == {"a": 2, "b": 0} and found.mean_a == pytest.approx(values.sum() / 28)
    assert np.isfinite(list(found.variance.values())).all() and np.isfinite([found.low, found.high, found.p]).all()
    gone = without_chance(Side([acts * torch.nan], [target], a.labels), b)
    assert gone.mean_a is None and gone.refused == "no unit with a number in a seed on side a"


def test_one_label_for_all_units_of_both_sides_is_refused():
    one = side(1, labels=1)
    found = difference(one, side(2, labels=1))
    assert found.p is None and found.low is None and "nothing can be above chance" in found.refused


def test_few_groups_of_images_are_refused():
    found = without_chance(side(1), side(2), groups=torch.arange(60) // 10)
    assert found.refused == "only 6 groups of images; an interval needs 10" and found.difference is not None


def test_an_image_in_each_group_is_like_no_groups():
    a, b = side(1), side(2)
    assert difference(a, b, groups=torch.randperm(60)).variance == pytest.approx(difference(a, b).variance)


@pytest.mark.parametrize(
    ("groups", "message"),
    [
        (torch.arange(59), r"groups=\(59,\): expected a group for each of the 60 images"),
        (torch.zeros(60, 2), "expected a group for each"),
        ([0] * 59 + [None], r"image 59 has no group \(None\), 1 in all lack one"),
        ([0.0] * 59 + [float("nan")], "image 59 has no group"),
        (torch.tensor([-1] + [0] * 59), r"image 0 has no group \(-1\)"),
        ([0.5] * 60, "expected whole numbers or texts"),
    ],
)
def test_group_columns_that_do_not_fit_are_refused(groups, message):
    with pytest.raises(UserError, match=message) as caught:
        difference(side(1), side(2), groups=groups)
    assert "\n" not in str(caught.value)


def test_sides_that_do_not_fit_are_refused():
    a, b = side(1), side(2)
    with pytest.raises(UserError, match="expected as many of each, one a seed"):
        difference(Side([], [], []), b)
    with pytest.raises(UserError, match="a=29 labels in seed 0: acts have 30 units"):
        difference(Side(a.acts, a.target, [a.labels[0][:-1]]), b)
    with pytest.raises(UserError, match=r"target \(60, 29\) in seed 0"):
        difference(Side(a.acts, [a.target[0][:, 1:]], a.labels), b)
    with pytest.raises(UserError, match=r"b=60 images in seed 0: .*\(59\)"):
        difference(side(1, images=59), b)
    with pytest.raises(UserError, match="numbers other than 0 and 1"):
        difference(a, b, metric="auprc")
    with pytest.raises(UserError, match="metric=f1"):
        difference(a, b, metric="f1")


def test_groups_join_whatever_any_column_ties():
    joined = join_groups([0, 1, 2, 3, 4], ["x", None, "x", "y", None], np.array([7, 8, 9, 8, 6]))
    assert joined[0] == joined[2] and joined[1] == joined[3] and len(set(joined.tolist())) == 3


@examples(max_examples=25)
@given(
    st.integers(0, 2**20), st.booleans(), st.sampled_from(["pearson", "auprc"]), st.sampled_from(["reference", "none"])
)
def test_whatever_is_given_numbers_are_finite_and_add_up(seed, sparse, metric, chance):
    """Silent, constant, rare, huge and NaN columns, unnamed units, groups of any size, one seed or more."""
    rng = np.random.default_rng(seed)
    images = int(rng.integers(10, 40))

    def any_side() -> Side:
        acts, target, labels = [], [], []
        for _ in range(rng.integers(1, 4)):
            units = int(rng.integers(1, 30))
            scale = 10.0 ** rng.integers(-6, 7, units)
            x = torch.from_numpy(np.maximum(rng.normal(size=(images, units)) - rng.integers(0, 3, units), 0) * scale)
            t = torch.from_numpy((rng.random((images, units)) < rng.random(units)).astype(float))
            if rng.random() < 0.3:
                x[0, 0] = torch.nan
            acts.append(x.to_sparse_csr() if sparse else x)
            target.append(t)
            labels.append([f"{i}" if i else None for i in rng.integers(0, 40, units)])
        return Side(acts, target, labels)

    found = difference(any_side(), any_side(), rng.integers(0, images, images), metric, chance)
    assert all(np.isfinite(v) and v >= 0 for v in found.variance.values())
    numbers = [found.low, found.high, found.p, found.df]
    assert all(x is None for x in numbers) if found.refused else all(np.isfinite(x) for x in numbers)
    if not found.refused:
        assert found.low <= found.difference <= found.high and 0 <= found.p <= 1


def test_groups_are_numbered_in_their_order():
    assert check_groups(["b", "a", "b"], 3).tolist() == [0, 1, 0]


@examples(max_examples=20)
@given(st.integers(0, 10_000), st.integers(1, 3), st.booleans())
def test_where_no_value_differs_nothing_is_said_of_how_sure_it_is(seed, seeds, silent):
    """Silent bases on both sides, or sides of which every unit is its label to the bit: no interval of width 0."""
    rng = np.random.default_rng(seed)

    def alike() -> Side:
        targets = [torch.from_numpy(rng.normal(size=(40, 25))) for _ in range(seeds)]
        acts = [torch.zeros_like(t) if silent else t for t in targets]
        return Side(acts, targets, [[f"{s} {u}" for u in range(25)] for s in range(seeds)])

    found = difference(alike(), alike(), chance="none")
    assert found.refused and "no value differs" in found.refused and found.difference == pytest.approx(0)
    assert found.low is found.high is found.p is found.p_a is None
