"""Metrics against scikit-learn, scipy and double loops; dense against CSR; splits into blocks change nothing."""

import math

import numpy as np
import pytest
import torch
from scipy.stats import mannwhitneyu, pearsonr
from sklearn.cluster import KMeans
from sklearn.metrics import average_precision_score, f1_score, jaccard_score, precision_recall_curve, roc_auc_score
from torch.nn.functional import normalize

from saelab import metrics
from saelab.errors import UserError
from saelab.metrics.sanity import METRICS, sanity_table
from saelab.metrics.two_means import two_means

LAYOUTS = [lambda a: a, lambda a: a.to_sparse_csr()]


def world(images=90, units=8, seed=0):
    """Sparse, tied, signed and dense units with a truth that goes with some of them."""
    g = torch.Generator().manual_seed(seed)
    truth = torch.rand(images, units, generator=g) < 0.25
    acts = (truth * 0.7 + torch.rand(images, units, generator=g)) * (torch.rand(images, units, generator=g) < 0.4)
    acts[:, 1] = (acts[:, 1] * 3).round()
    acts[:, 2] = torch.randn(images, generator=g)
    acts[:, 3] = acts[:, 3] - 0.2
    return acts, truth


@pytest.mark.parametrize("layout", LAYOUTS)
def test_auprc_f1_iou_and_threshold_against_scikit_learn(layout):
    acts, truth = world()
    a = layout(acts)
    threshold = metrics.best_f1_threshold(a, truth)
    found = {
        "auprc": metrics.auprc(a, truth),
        "f1": metrics.f1(a, truth, threshold),
        "iou": metrics.iou(a, truth, threshold),
    }
    for u in range(8):
        y, score = truth[:, u].numpy(), acts[:, u].numpy()
        assert float(found["auprc"][u]) == pytest.approx(average_precision_score(y, score), abs=1e-6)
        precision, recall, levels = precision_recall_curve(y, score)
        scores = 2 * precision[:-1] * recall[:-1] / np.maximum(precision[:-1] + recall[:-1], 1e-12)
        assert float(found["f1"][u]) == pytest.approx(scores.max(), abs=1e-6)
        assert float(threshold[u]) == pytest.approx(levels[np.flatnonzero(scores > scores.max() - 1e-9)].max())
        called = score >= float(threshold[u])
        assert float(found["f1"][u]) == pytest.approx(f1_score(y, called), abs=1e-6)
        assert float(found["iou"][u]) == pytest.approx(jaccard_score(y, called), abs=1e-6)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_correlations_against_scipy(layout):
    acts, _ = world()
    sims = torch.rand(90, 8, generator=torch.Generator().manual_seed(1)) * 0.01 + 0.2
    r = metrics.simulation_correlation(layout(acts), sims)
    c = metrics.cosine(layout(acts), sims)
    for u in range(8):
        assert float(r[u]) == pytest.approx(pearsonr(acts[:, u].double(), sims[:, u].double()).statistic, abs=1e-6)
        assert float(c[u]) == pytest.approx(float(torch.cosine_similarity(acts[:, u], sims[:, u], dim=0)), abs=1e-6)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_cosy_against_scipy_and_counting(layout):
    acts, _ = world()
    generated, control = acts[:30], acts[30:]
    g, c = layout(generated), layout(control)
    half, strict, tied = metrics.auroc(g, c), metrics.auroc(g, c, ties="strict"), metrics.tie_share(g, c)
    u, p = metrics.mann_whitney(g, c)
    mad, dma = metrics.mad(g, c), metrics.dma(g, acts.amax(dim=0))
    for j in range(8):
        a, b = generated[:, j], control[:, j]
        y = np.r_[np.ones(30), np.zeros(60)]
        assert float(half[j]) == pytest.approx(roc_auc_score(y, acts[:, j]), abs=1e-6)
        assert float(strict[j]) == pytest.approx(float((a[:, None] > b).float().mean()), abs=1e-6)
        assert float(tied[j]) == pytest.approx(float((a[:, None] == b).float().mean()), abs=1e-6)
        expected = mannwhitneyu(a.double().numpy(), b.double().numpy(), method="asymptotic")
        assert float(u[j]) == expected.statistic and float(p[j]) == pytest.approx(expected.pvalue)
        assert float(half[j]) == pytest.approx(expected.statistic / 1800, abs=1e-6)
        assert float(mad[j]) == pytest.approx(float((a.mean() - b.mean()) / b.std()), abs=1e-5)
        assert float(dma[j]) == pytest.approx(float(a.mean() / acts[:, j].max()), abs=1e-5)


def test_mann_whitney_of_a_handful_of_images_is_asymptotic_too():
    """Left to itself, scipy takes the exact distribution for few numbers without ties, and p jumps where a tie is."""
    generated, control = torch.tensor([[0.9], [0.4], [0.7], [0.8]]), torch.tensor([[0.1], [0.5], [0.2], [0.3], [0.0]])
    u, p = metrics.mann_whitney(generated, control)
    score = (19 - 20 / 2 - 0.5) / math.sqrt(20 * 10 / 12)  # 19 of 20 pairs above, corrected for continuity
    assert float(u) == 19 and float(p) == pytest.approx(math.erfc(score / math.sqrt(2)))


def test_ties_decide_on_sparse_units():
    """method.md's warning: on a 99 %-zero unit an unrelated label gets 0.50 by halves and 0.02 strictly."""
    g = torch.Generator().manual_seed(2)
    acts = (torch.rand(4000, 1, generator=g) < 0.01).float()
    generated, control = acts[:2000], acts[2000:]
    assert float(metrics.auroc(generated, control)) == pytest.approx(0.5, abs=0.01)
    assert float(metrics.auroc(generated, control, ties="strict")) == pytest.approx(0.01, abs=0.01)
    assert float(metrics.tie_share(generated, control)) > 0.97
    assert float(metrics.mad(acts[:5] * 0, torch.zeros(9, 1))) == 0


@pytest.mark.parametrize("layout", LAYOUTS)
def test_monosemanticity_is_the_mean_over_pairs(layout):
    acts, _ = world(images=40)
    emb = normalize(torch.randn(40, 6, generator=torch.Generator().manual_seed(3)) + 0.5, dim=1)
    found = metrics.monosemanticity(layout(acts), emb * 3)
    for u in range(8):
        a = acts[:, u].double()
        a = (a - a.min()) / (a.max() - a.min())
        weight = a[:, None] * a
        weight.fill_diagonal_(0)
        assert float(found[u]) == pytest.approx(float((weight * (emb @ emb.T)).sum() / weight.sum()), abs=1e-5)
    hard = torch.zeros(40, 3)
    hard[3, 1] = 1.0
    hard[5, 2] = torch.nan
    assert bool(metrics.monosemanticity(layout(hard), emb).isnan().all())  # constant, one image, not finite


def test_clarity_and_redundancy_in_loops():
    g = torch.Generator().manual_seed(4)
    pos = torch.randn(5, 6, 7, generator=g)
    valid = torch.rand(5, 6, generator=g) < 0.7
    valid[3] = torch.tensor([True] + [False] * 5)
    valid[4] = False
    clarity, redundancy = metrics.clarity(pos, valid), metrics.redundancy(pos, valid)
    means = [pos[u, valid[u]].mean(dim=0) for u in range(4)]
    for u in range(3):
        rows = normalize(pos[u, valid[u]], dim=1)
        pairs = [float(rows[i] @ rows[j]) for i in range(len(rows)) for j in range(len(rows)) if i != j]
        assert float(clarity[u]) == pytest.approx(np.mean(pairs), abs=1e-5)
    for u in range(4):
        others = [float(torch.cosine_similarity(means[u], means[v], dim=0)) for v in range(4) if v != u]
        assert float(redundancy[u]) == pytest.approx(max(others), abs=1e-5)
    assert bool(clarity[3:].isnan().all()) and bool(redundancy[4].isnan())


@pytest.mark.parametrize("apart", [0.0, 0.5, 1.5])
def test_two_means_give_scikit_learns_clusters(apart):
    """From one blob, where runs end in different splits, to two: whatever the number of valid rows."""
    g = torch.Generator().manual_seed(1)
    rows = torch.randn(40, 24, 12, generator=g) * torch.linspace(2, 0.1, 12)
    rows += apart * torch.randn(40, 1, 12, generator=g) * (torch.rand(40, 24, 1, generator=g) < 0.4)
    valid = torch.rand(40, 24, generator=g) < 0.8
    valid[:3], valid[3, :23], valid[4] = True, False, False
    found = two_means(rows, valid)
    assert not bool(found[3:5].any())  # fewer than two rows
    for u in range(40):
        if int(valid[u].sum()) > 12:
            fit = KMeans(n_clusters=2, n_init=10, random_state=123).fit(rows[u, valid[u]].double().numpy())
            second = fit.labels_ != fit.labels_[0]
            assert found[u, valid[u]].tolist() == second.tolist()
        assert not bool((found[u] & ~valid[u]).any())


def test_two_means_of_few_rows_are_the_best_of_all_splits():
    g = torch.Generator().manual_seed(2)
    rows = torch.randn(20, 7, 5, generator=g)
    for u, found in enumerate(two_means(rows)):
        costs = {}
        for code in range(1, 64):
            second = torch.tensor([False] + [bool(code >> i & 1) for i in range(6)])
            sides = (rows[u, second].double(), rows[u, ~second].double())
            costs[tuple(second.tolist())] = sum(float((s - s.mean(0)).square().sum()) for s in sides)
        assert tuple(found.tolist()) == min(costs, key=costs.get)


def test_polysemanticity_against_scikit_learn():
    g = torch.Generator().manual_seed(5)
    centres = torch.randn(3, 2, 1, 8, generator=g)
    two = (centres + 0.1 * torch.randn(3, 2, 10, 8, generator=g)).flatten(1, 2)  # 20 positives, two far clusters
    found = metrics.polysemanticity(two)
    for u in range(3):
        fit = KMeans(n_clusters=2, n_init=10, random_state=123).fit(two[u].double().numpy())
        a, b = fit.cluster_centers_
        assert float(found[u]) == pytest.approx(1 - a @ b / np.linalg.norm(a) / np.linalg.norm(b), abs=1e-5)
    few = two[:, [0, 1, 2, 10, 11, 12]]  # the exact search over splits finds the same clusters
    for u in range(3):
        a, b = few[u, :3].mean(0), few[u, 3:].mean(0)
        assert float(metrics.polysemanticity(few)[u]) == pytest.approx(
            1 - float(torch.cosine_similarity(a, b, dim=0)), abs=1e-5
        )
    lone = torch.cat([two[0, :9], -50 * two[0, :1]])[None]  # one far away: the rule for a cluster of one
    mean = lone[0].mean(dim=0, keepdim=True)
    expected = 1 - float(torch.cosine_similarity(mean, lone[0]).mean())
    assert float(metrics.polysemanticity(lone)) == pytest.approx(expected, abs=1e-5)
    assert math.isnan(float(metrics.polysemanticity(lone[:, :1])))
    pair = torch.tensor([[[1.0, 0.0], [0.0, 1.0]]])  # two clusters of one: each 45 degrees from the mean of both
    assert float(metrics.polysemanticity(pair)) == pytest.approx(1 - math.sqrt(0.5), abs=1e-6)


@pytest.mark.parametrize("k", [2, 5, 12, 13, 14, 30])
def test_equal_positives_are_one_cluster(k):
    """Of many, 2-means leaves one side empty: its centre is nowhere, not at 0."""
    g = torch.Generator().manual_seed(k)
    rows = torch.randn(20, 1, 8, generator=g).expand(20, k, 8).clone()
    valid = torch.rand(20, k, generator=g) < 0.8
    for kept in (None, valid):
        found = metrics.polysemanticity(rows, kept)
        few = torch.zeros(20, dtype=torch.bool) if kept is None else kept.sum(dim=1) < 2
        assert bool((found[~few].abs() < 1e-6).all()) and bool(found[few].isnan().all())


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32, torch.float64])
def test_controls_that_are_equal_have_no_spread_whatever_their_number_and_value(dtype):
    g = torch.Generator().manual_seed(0)
    for n in range(2, 60):
        level = (torch.randn(30, generator=g) * 10 ** (3 * torch.rand(30, generator=g) - 2)).to(dtype)
        assert bool((metrics.mad(2 * level[None] + 1, level.expand(n, 30)) == 0).all())
    control = 1 + 1e-6 * torch.randn(50, 1, generator=g, dtype=torch.float64)  # little, and yet a spread
    expected = (2 - control.mean()) / control.std()
    assert float(metrics.mad(torch.full((3, 1), 2.0, dtype=torch.float64), control)) == pytest.approx(float(expected))


def test_numbers_that_cannot_be_had_are_nan():
    acts, truth = world()
    truth[:, 0] = False
    acts[3, 4] = torch.nan
    acts[:, 5] = 1.5
    for layout in LAYOUTS:
        a = layout(acts)
        threshold = metrics.best_f1_threshold(a, truth)
        for values in (metrics.auprc(a, truth), metrics.f1(a, truth, threshold), metrics.iou(a, truth, threshold)):
            assert bool(values[[0, 4]].isnan().all()) and bool(values[[1, 2, 3, 5, 6, 7]].isfinite().all())
        r = metrics.simulation_correlation(a, truth.float())
        assert bool(r[[0, 4, 5]].isnan().all()) and bool(r[[1, 2, 3, 6, 7]].isfinite().all())
        assert math.isnan(float(metrics.auroc(a, a)[4]))
    assert math.isnan(float(metrics.dma(torch.ones(3, 1), torch.zeros(1))))


def test_blocks_of_units_do_not_change_a_number(monkeypatch):
    acts, truth = world()
    whole = metrics.auprc(acts, truth), metrics.simulation_correlation(acts, truth.float())
    emb = normalize(torch.randn(90, 6), dim=1)
    mono = metrics.monosemanticity(acts, emb)
    from saelab import acts as columns

    original = columns.blocks
    for module in ("faithfulness", "coherence"):
        monkeypatch.setattr(f"saelab.metrics.{module}.blocks", lambda a, elements=0: original(a, 200))
    assert torch.equal(whole[0], metrics.auprc(acts, truth))
    assert torch.equal(whole[1], metrics.simulation_correlation(acts, truth.float()))
    assert torch.allclose(mono, metrics.monosemanticity(acts, emb), atol=1e-6)


def test_random_labels_pass_at_their_rate():
    """A label that has nothing to do with the unit: AUPRC is its frequency, half-credit AUROC one half."""
    g = torch.Generator().manual_seed(6)
    acts, truth = torch.rand(2000, 200, generator=g), torch.rand(2000, 200, generator=g) < 0.1
    assert float(metrics.auprc(acts, truth).mean()) == pytest.approx(0.1, abs=0.01)
    _, p = metrics.mann_whitney(acts[:400], acts[400:])
    assert float((p < 0.05).double().mean()) == pytest.approx(0.05, abs=0.05)


def test_bootstrap_interval_covers_and_leaves_out_nan():
    g = torch.Generator().manual_seed(7)
    covered = 0
    for seed in range(60):
        values = torch.rand(40, generator=g) ** 2  # mean 1/3, skewed
        values[0] = torch.nan
        found = metrics.bootstrap_interval(values, level=0.9, resamples=400, seed=seed)
        assert found.units == 39 and found.low < found.mean < found.high
        covered += found.low < 1 / 3 < found.high
    assert 0.78 <= covered / 60 <= 0.99
    assert metrics.bootstrap_interval(torch.full((5,), 0.5))[:3] == (0.5, 0.5, 0.5)
    assert metrics.bootstrap_interval(torch.tensor([torch.nan])).units == 0


def test_sanity_tests_tell_the_metrics_apart():
    """NeuronEval: five metrics pass both tests; recall and AUROC, which saelab's tables leave out, do not."""
    names = ("correlation", "cosine", "auprc", "f1", "iou", "recall", "precision", "auroc", "mad")
    rows = {
        r.metric: r.passes for r in sanity_table(4000, 10, (0.3, 0.01, 0.001), chosen={n: METRICS[n] for n in names})
    }
    assert all(rows[n] == (True, True) for n in ("correlation", "cosine", "auprc", "f1", "iou"))
    assert rows["recall"] == (True, False) and rows["precision"] == (False, True)
    assert rows["auroc"] == (False, True) and rows["mad"] == (False, True)


@pytest.mark.parametrize(
    ("call", "told"),
    [
        (lambda a, t: metrics.auprc(a, t[:50]), "truth=(50, 8)"),
        (lambda a, t: metrics.f1(a, t, torch.zeros(3)), "threshold=(3,)"),
        (lambda a, t: metrics.auroc(a, a[:, :3]), "generated=(90, 8)"),
        (lambda a, t: metrics.auroc(a, a, ties="none"), "ties=none: expected half or strict"),
        (lambda a, t: metrics.dma(a, torch.ones(2)), "positive_max=(2,)"),
        (lambda a, t: metrics.clarity(a), "pos_emb=(90, 8)"),
        (lambda a, t: metrics.monosemanticity(a, torch.ones(5, 3)), "image_emb=(5, 3)"),
    ],
)
def test_mistakes_are_told_in_one_line(call, told):
    with pytest.raises(UserError) as error:
        call(*world())
    assert told in str(error.value) and "\n" not in str(error.value)
