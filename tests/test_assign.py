"""Scorers against plain twins, dense against CSR, and what must hold whatever the numbers."""

import itertools
import math

import numpy as np
import pytest
import torch
from scipy.stats import mannwhitneyu, pearsonr
from sklearn.metrics import roc_auc_score
from torch.nn.functional import normalize

from saelab import planted
from saelab.errors import UserError
from saelab.label import assign, mine
from saelab.label.scorers import contrastive, elastic, formulas, linear, means
from saelab.label.scorers.registry import SCORERS

CLOSED = [n for n, s in SCORERS.items() if s.needs not in ("decoder", "maps")]


def world(images=80, units=9, labels=11, d=7, seed=0):
    g = torch.Generator().manual_seed(seed)
    acts = torch.rand(images, units, generator=g) * (torch.rand(images, units, generator=g) < 0.3)
    acts[:, 1] = torch.randn(images, generator=g)
    acts[:, 2] = torch.rand(images, generator=g) + 5
    return (
        acts,
        normalize(torch.randn(images, d, generator=g) + 0.7, dim=1),
        normalize(torch.randn(labels, d, generator=g) + 0.7, dim=1),
    )


def more(txt, images=80, seed=2):
    """What only some scorers ask for: marks of people, and labels and templates apart."""
    g = torch.Generator().manual_seed(seed)
    concepts = torch.rand(images, len(txt), generator=g) < 0.4
    return {"concepts": concepts, "filled_emb": txt * 0.9, "template_emb": torch.randn(txt.shape[1], generator=g) / 9}


def sets(units=3, k=5, d=7, labels=4, seed=1):
    g = torch.Generator().manual_seed(seed)
    pos, neg = (normalize(torch.randn(units, k, d, generator=g), dim=2) for _ in range(2))
    return pos, neg, torch.rand(units, k, generator=g) + 0.1, normalize(torch.randn(labels, d, generator=g), dim=1)


@pytest.mark.parametrize("name", CLOSED)
def test_dense_and_csr_give_the_same_scores(name):
    acts, emb, txt = world()
    dense = assign.Evidence.mined(acts, emb, txt, 10, **more(txt))
    csr = assign.Evidence.mined(acts.to_sparse_csr(), emb, txt, 10, **more(txt))
    a, b = (assign.score([name], e)[name] for e in (dense, csr))
    assert torch.equal(a.isnan(), b.isnan()) and a.shape == (9, 11)
    assert torch.allclose(a, b, atol=2e-6, equal_nan=True)


@pytest.mark.parametrize("name", CLOSED)
def test_blocks_of_units_give_the_same_scores(name, monkeypatch):
    acts, emb, txt = world()
    evidence = assign.Evidence.mined(acts, emb, txt, 10, **more(txt))
    whole = assign.score([name], evidence)[name]
    ranked = assign.ranking(whole, 3)
    monkeypatch.setattr("saelab.label.scorers.registry.BLOCK", 1 << 13)
    for field, value in vars(assign.rankings([name], evidence, 3)[name]).items():
        assert torch.allclose(value.float(), getattr(ranked, field).float(), atol=1e-6, equal_nan=True), field


def test_csp_is_its_formula_written_out():
    pos, neg, weights, txt = sets()
    for gamma in (0.0, 0.3, 1.0):
        expected = torch.zeros(3, 4, dtype=torch.float64)
        for u in range(3):
            centre = torch.zeros(7, dtype=torch.float64)
            for i in range(5):
                p, n = pos[u, i].double(), neg[u, i].double()
                centre += float(weights[u, i]) / (float(weights[u].sum()) + 1e-8) * (p - gamma * float(p @ n) * n)
            expected[u] = txt.double() @ (centre / centre.norm())
        assert torch.allclose(assign.csp(pos, neg, weights, txt, gamma).double(), expected, atol=1e-6)


def test_csp_identities():
    pos, neg, weights, txt = sets()
    assert torch.allclose(
        assign.csp(pos, neg, torch.ones_like(weights), txt, 0.0), assign.semanticlens(pos, txt), atol=1e-6
    )
    residual = contrastive.residuals(pos, neg, 1.0)
    along = (pos * neg).sum(2)
    assert (residual * neg).sum(2).abs().max() < 1e-6
    assert torch.allclose((residual**2).sum(2), 1 - along**2, atol=1e-6)
    assert torch.allclose(assign.csp(pos, neg, weights * 7, txt), assign.csp(pos, neg, weights, txt), atol=1e-6)
    long = txt * torch.tensor([[0.5], [2.0], [1.0], [3.0]])  # label means are not renormalised
    assert torch.allclose(
        assign.csp(pos, neg, weights, long), assign.csp(pos, neg, weights, txt) * long.norm(dim=1), atol=1e-6
    )


def test_pairs_that_are_not_valid_do_not_count():
    pos, neg, weights, txt = sets()
    valid = torch.tensor([[True, True, False, False, True], [True] * 5, [False] * 5])
    wild = neg.clone()
    wild[~valid] = torch.nan
    found = assign.csp(pos, wild, weights, txt, valid=valid)
    kept = valid[0]
    assert torch.allclose(found[0], assign.csp(pos[:1, kept], neg[:1, kept], weights[:1, kept], txt)[0], atol=1e-6)
    assert torch.allclose(found[1], assign.csp(pos, neg, weights, txt)[1], atol=1e-6)
    assert bool(found[2].isnan().all())
    assert torch.allclose(
        assign.semanticlens(pos, txt, valid)[0], assign.semanticlens(pos[:1, kept], txt)[0], atol=1e-6
    )


def test_ablations():
    pos, neg, _, txt = sets()
    mean = lambda rows: rows.mean(dim=1)  # noqa: E731
    expected = normalize(mean(pos) - mean(neg), dim=1) @ txt.T
    assert torch.allclose(assign.difference_of_means(pos, neg, txt), expected, atol=1e-6)
    off = assign.set_projection(pos, neg, normalize(mean(neg), dim=1))
    assert off.diagonal().abs().max() < 1e-6
    assert torch.allclose(assign.centred_mean(pos, torch.zeros(7), txt), assign.semanticlens(pos, txt), atol=1e-6)
    filled = torch.randn(2, 4, 7)
    empty = torch.randn(2, 7)
    assert torch.allclose(assign.template_contrast(filled, empty), filled.mean(0) - empty.mean(0), atol=1e-6)
    decoder = torch.randn(5, 7)
    decoder[2] = 0
    cosines = assign.decoder_direction(decoder * 9, txt)
    assert bool(cosines[2].isnan().all())
    assert torch.allclose(cosines[0], torch.cosine_similarity(decoder[0], txt), atol=1e-6)


def test_weights_of_signed_units():
    values = torch.tensor([[3.0, 1.0, -2.0]])
    kinds = {"relu": [3, 1, 0], "abs": [3, 1, 2], "rank": [3, 2, 1], "equal": [1, 1, 1]}
    for kind, expected in kinds.items():
        assert assign.pair_weights(values, kind).tolist() == [expected]
    with pytest.raises(UserError, match="weights=raw"):
        assign.pair_weights(values, "raw")
    pos, neg, _, txt = sets(units=1, k=3)
    with pytest.raises(UserError, match="use relu, abs or rank weights"):
        assign.csp(pos, neg, values, txt)
    assert bool(assign.csp(pos, neg, torch.zeros(1, 3), txt).isnan().all())


@pytest.mark.parametrize("layout", [lambda a: a, lambda a: a.to_sparse_csr()])
def test_pearson_and_cos_cubed_against_scipy_and_numpy(layout):
    acts, emb, txt = world()
    sims = (emb.double() @ txt.double().T).numpy()
    r, cubed = assign.pearson(layout(acts), emb, txt), assign.cos_cubed(layout(acts), emb, txt)
    for u in range(9):
        a = acts[:, u].double().numpy()
        for l in range(11):
            assert float(r[u, l]) == pytest.approx(pearsonr(a, sims[:, l]).statistic, abs=2e-6)
            x, y = (a - a.mean()) ** 3, (sims[:, l] - sims[:, l].mean()) ** 3
            cosine = x @ y / max(np.linalg.norm(x), 1e-3) / max(np.linalg.norm(y), 1e-3)
            assert float(cubed[u, l]) == pytest.approx(cosine, abs=2e-6)


@pytest.mark.parametrize("layout", [lambda a: a, lambda a: a.to_sparse_csr()])
def test_constant_dead_and_nan_units_get_no_score(layout):
    acts, emb, txt = world()
    acts[:, 3], acts[:, 4] = 0, 3.7
    acts[5, 6] = torch.nan
    for name in ("pearson", "cos_cubed"):
        scores = getattr(assign, name)(layout(acts), emb, txt)
        assert bool(scores[[3, 4, 6]].isnan().all()) and bool(scores[[0, 1, 2, 5, 7, 8]].isfinite().all())
    evidence = assign.Evidence.mined(layout(acts), emb, txt, 10, **more(txt))
    for name, scores in assign.score([n for n in CLOSED if n != "linear_explanations"], evidence).items():
        assert bool(scores[6].isnan().all()), name
        assert not bool(scores[0].isnan().all()), name
    assert bool(assign.score(["csp"], evidence)["csp"][3].isnan().all())  # dead: no weight
    assert assign.rankings(["csp"], evidence)["csp"].label[[3, 4, 6]].tolist() == [-1, -1, -1]


READ_POSITIVES = [n for n in CLOSED if SCORERS[n].needs in ("positives", "pairs", "templates")] + ["soft_wpmi", "wpmi"]


@pytest.mark.parametrize("name", [*READ_POSITIVES, "clip_dissect_neurolens"])
def test_silent_images_fill_nobodys_positives(name):
    """A unit that fires on 4 images scores the same whatever the silent ones show, and whatever k is."""
    acts, emb, txt = world(labels=5)
    acts = acts[:, [0, 3, 4]]
    acts[:, 0] = 0
    firing = torch.tensor([11, 30, 45, 70])
    acts[firing, 0] = torch.tensor([4.0, 3.0, 2.0, 1.0])
    marks = more(txt)
    some, many = (assign.Evidence.mined(acts, emb, txt, k, **marks) for k in (4, 40))
    if name in ("semanticlens", "csp", "csp_0.5", "www", "semanticlens_package", "set_projection", "falcon"):
        a, b = (assign.score([name], e)[name][0] for e in (some, many))
        torch.testing.assert_close(a, b, equal_nan=True)
    assert many.positive_ids[0].tolist() == firing.tolist() + [-1] * 36
    assert many.positives(100)[0][0].tolist() == firing.tolist() + [-1] * 76
    if SCORERS[name].needs in ("positives", "templates"):
        moved = emb.clone()
        silent = (acts == 0).all(1)
        moved[silent] = normalize(torch.randn(int(silent.sum()), 7, generator=torch.Generator().manual_seed(1)), dim=1)
        if name != "centred_mean":
            (other,) = assign.score([name], assign.Evidence.mined(acts, moved, txt, 40, **marks)).values()
            torch.testing.assert_close(other[0], assign.score([name], many)[name][0], equal_nan=True)


@pytest.mark.parametrize(("name", "k"), [("soft_wpmi", 100), ("wpmi", 28)])
def test_wpmi_of_units_that_fire_on_different_numbers_of_images(name, k):
    """Written out: each unit's own images, and a prior of the other units' images as if they were as many."""
    acts, emb, txt = world(images=300)
    counts = [1, 3, 3, 20, 28, 40, 100, 150, 0]
    for u, count in enumerate(counts):
        acts[:, u] = 0
        acts[torch.randperm(300, generator=torch.Generator().manual_seed(u))[:count], u] = torch.arange(count, 0, -1.0)
    sims = emb.double() @ txt.double().T
    q = ((10 if name == "soft_wpmi" else 2) * sims).softmax(1)
    ll, n = torch.zeros(8, 11, dtype=torch.float64), [min(c, k) for c in counts[:8]]
    for u in range(8):
        for r, i in enumerate(acts[:, u].argsort(descending=True)[: n[u]].tolist()):
            p = 0.998 - 0.028 * r / 100
            ll[u] += (1 + p * (q[i] - 1)).log() if name == "soft_wpmi" else q[i].log()
        ll[u] += 1e-7 * (k - n[u]) if name == "soft_wpmi" else 0
    (found,) = assign.score([name], assign.Evidence.mined(acts, emb, txt, 5)).values()
    for u in range(8):
        prior = torch.stack([ll[v] * n[u] / n[v] for v in range(8)]).exp().mean(0).log()
        assert torch.allclose(found[u].double(), ll[u] - (1 if name == "soft_wpmi" else 0.6) * prior, atol=1e-3)
    assert bool(found[8].isnan().all())


def test_the_packages_semanticlens_takes_off_each_templates_own_vector():
    acts, emb, txt = world()
    g = torch.Generator().manual_seed(4)
    filled, empty = (normalize(torch.randn(3, *size, generator=g), dim=-1) for size in ((11, 7), (7,)))
    marks = {"filled_emb": filled.mean(dim=0), "template_emb": empty.mean(dim=0)}
    evidence = assign.Evidence.mined(acts, emb, txt, 10, **marks)
    expected = assign.semanticlens(emb[evidence.positive_ids], assign.template_contrast(filled, empty))
    (found,) = assign.score(["semanticlens_package"], evidence).values()
    torch.testing.assert_close(found, expected)


def test_scorers_of_several_labels_give_them_best_first():
    acts, emb, txt = world(labels=40)
    evidence = assign.Evidence.mined(acts, emb, txt, 10, **more(txt))
    names = [f"label {i}" for i in range(40)]
    for name in ("falcon", "www"):
        scores = assign.score([name], evidence)[name]
        for unit, own in enumerate(assign.explained(name, scores, evidence, names)):
            values = [value for _, value in own["labels"]]
            assert values == sorted(values, reverse=True)
            assert all(scores[unit, int(label.split()[1])] == value for label, value in own["labels"])
            if name == "www":
                assert own["labels"][0][0] == names[int(scores[unit].argmax())]
    scores = assign.score(["linear_explanations"], evidence)["linear_explanations"]
    found = assign.explained("linear_explanations", scores, evidence, names)
    plain = assign.linear_explanations(acts, linear.concept_activations(evidence.sims))
    assert [[label for label, _ in own["labels"]] for own in found] == [[names[i] for i in e.labels] for e in plain]
    assert [own["test_r"] for own in found] == [e.test_r for e in plain]
    assert assign.explained("pearson", scores, evidence, names) == [{}] * 9


def test_label_equal_on_all_images_has_no_correlation():
    acts, emb, _ = world()
    emb[:, 0] = 0
    flat = normalize(torch.eye(7)[:2], dim=1)
    scores = assign.pearson(acts, emb, flat)
    assert bool(scores[:, 0].isnan().all()) and bool(scores[:, 1].isfinite().all())


def test_soft_wpmi_and_wpmi_in_plain_loops():
    acts, emb, txt = world()
    ids, _ = mine.top_images(acts, 20)
    sims = emb.double() @ txt.double().T
    for soft in (True, False):
        q = ((10 if soft else 2) * sims).softmax(1)
        ll = torch.zeros(9, 11, dtype=torch.float64)
        for u in range(9):
            for r, i in enumerate(ids[u].tolist()):
                p = 0.998 - 0.028 * r / 20
                ll[u] += (1 + p * (q[i] - 1) + 1e-7).log() if soft else (q[i] + 1e-7).log()
        prior = ll.exp().sum(0).log() - math.log(9)
        expected = ll - (1 if soft else 0.6) * prior
        found = (assign.soft_wpmi if soft else assign.wpmi)(acts, emb, txt, top_k=20)
        assert torch.allclose(found.double(), expected, atol=1e-4)


@pytest.mark.parametrize("scale_p", [0.5, 2.0])
def test_rank_reorder_in_plain_loops(scale_p):
    acts, emb, txt = world(images=200)
    sims = emb @ txt.T
    ids, values = mine.top_images(acts, 10)
    found = assign.rank_reorder(acts, emb, txt, scale_p=scale_p)
    for u in range(9):
        top = values[u].tolist()
        chance = sum(abs(a - b) ** 3 for a in top for b in top) / 100
        for l in range(11):
            seen = sims[ids[u], l].tolist()
            rank = [sorted(seen).index(s) for s in seen]
            error = sum(abs(a - sorted(top)[r]) ** 3 for a, r in zip(top, rank, strict=True)) / 10
            mean = sum(seen) / 10
            expected = -(error / chance) / mean**scale_p if mean > 0 else -math.inf
            assert float(found[u, l]) == pytest.approx(expected, rel=1e-4, abs=1e-6)


@pytest.mark.parametrize("layout", [lambda a: a, lambda a: a.to_sparse_csr()])
def test_invert_against_scikit_learn(layout):
    acts, _, _ = world()
    acts[:, 5] = (acts[:, 5] * 3).round()
    concepts = torch.rand(80, 6, generator=torch.Generator().manual_seed(3)) < 0.3
    concepts[:, 4], concepts[:, 5] = False, True
    auc = assign.invert_auc(layout(acts), concepts)
    for u in range(9):
        for l in range(4):
            expected = roc_auc_score(concepts[:, l].numpy(), acts[:, u].numpy())
            assert float(auc[u, l]) == pytest.approx(expected, abs=1e-6)
    assert bool(auc[:, 4:].isnan().all())


def test_invert_finds_the_formula_it_was_given():
    g = torch.Generator().manual_seed(4)
    concepts = torch.rand(500, 12, generator=g) < 0.4
    wanted = torch.stack(
        [concepts[:, 2] & ~concepts[:, 7], concepts[:, 1] | concepts[:, 5], concepts[:, 3], ~concepts[:, 0]], dim=1
    )
    acts = wanted.float() + 0.3 * torch.rand(500, 4, generator=g)
    found = assign.invert_formulas(acts, concepts, length=2)
    names = [f"c{i}" for i in range(12)]
    assert found[0] is not None and found[0].text(names) == "(c2 and not c7)"
    assert found[1] is not None and set(found[1].labels) == {1, 5} and found[1].operators == ("or",)
    assert found[2] is not None and found[2].text(names) == "c3"
    for formula, truth in zip(found[:3], wanted.T[:3], strict=True):
        assert torch.equal(formula.holds(concepts), truth)
        assert formula.auc == pytest.approx(1.0) and formula.share == pytest.approx(float(truth.float().mean()))
    noise = torch.randn(500, 1, generator=g).round()
    (formula,) = assign.invert_formulas(noise, concepts, length=3)
    assert formula is not None
    inside = formula.holds(concepts).numpy()
    values = noise[:, 0].double().numpy()
    assert formula.auc == pytest.approx(roc_auc_score(inside, values), abs=1e-9)
    expected = mannwhitneyu(values[inside], values[~inside], method="asymptotic").pvalue
    assert formula.p_value == pytest.approx(expected, rel=1e-6)
    assert assign.invert_formulas(noise * torch.nan, concepts) == [None]


@pytest.mark.parametrize("settings", [(100.0, 5, 0.1), (20.0, 5, 0.15), (100.0, 2, 0.3)])
def test_falcon_in_plain_loops(settings):
    _, emb, txt = world()
    temperature, best, removed_from = settings
    sims = emb @ txt.T
    pos, neg = torch.tensor([[0, 5, 9], [1, 2, -1]]), torch.tensor([[4, 4, -1], [-1, -1, -1]])
    support = torch.zeros(80, 11)
    for i in range(80):
        p = (temperature * sims[i]).softmax(0)
        for l in p.argsort(descending=True)[:best]:
            support[i, l] = p[l]
    expected = torch.stack([support[pos[0]].mean(0), support[[1, 2]].mean(0)])
    expected[0][support[4] >= removed_from] = torch.nan
    assert torch.allclose(assign.falcon(sims, pos, neg, *settings), expected, atol=1e-6, equal_nan=True)
    assert bool(expected[0].isnan().any())
    (first, _) = assign.falcon_labels(expected)
    assert first == [l for l in expected[0].nan_to_num().argsort(descending=True).tolist() if expected[0, l] > 0][:8]


def test_www_keeps_labels_near_the_best():
    pos, _, _, txt = sets()
    template = normalize(torch.randn(7, generator=torch.Generator().manual_seed(5)), dim=0)
    scores = assign.www(pos, txt, template)
    for u in range(3):
        for l in range(4):
            expected = sum(float(p @ txt[l] - p @ template) for p in pos[u])
            assert float(scores[u, l]) == pytest.approx(expected, abs=1e-5)
    kept = assign.www_labels(torch.tensor([[1.0, 0.94, 0.96, 0.95], [-1.0, -0.5, -2, -3], [torch.nan] * 4]))
    assert kept == [[0, 2], [], []]


def test_linear_explanation_finds_planted_weights():
    g = torch.Generator().manual_seed(6)
    concepts = torch.rand(600, 30, generator=g)
    acts = torch.stack(
        [2 * concepts[:, 4] + concepts[:, 9], concepts[:, 1], torch.zeros(600), torch.rand(600, generator=g)], dim=1
    )
    found = assign.linear_explanations(acts, concepts)
    assert found[0].labels == (4, 9)
    assert found[0].weights == pytest.approx((2.0, 1.0), abs=1e-6) and found[0].bias == pytest.approx(0, abs=1e-6)
    assert found[0].test_r == pytest.approx(1.0) and found[0].validation_r == pytest.approx(1.0)
    assert found[1].labels == (1,)
    assert found[2].labels == () and math.isnan(found[2].test_r)
    assert len(found[3].labels) >= 1 and abs(found[3].test_r) < 0.4  # the first always joins; noise stays noise
    train, validation, test = linear.splits(600)
    assert (len(train), len(validation), len(test)) == (420, 60, 120)
    assert sorted(torch.cat([train, validation, test]).tolist()) == list(range(600))


def test_linear_explanations_of_units_that_are_tiny_or_not_finite_where_nothing_is_fitted():
    g = torch.Generator().manual_seed(14)
    concepts = torch.rand(200, 20, generator=g)
    acts = concepts[:, [3, 3, 5]].clone()
    acts[:, 0] *= 1e-15
    acts[linear.splits(200)[2][0], 2] = torch.nan  # a test image
    tiny, whole, holed = linear.linear_explanations(acts, concepts)
    assert tiny.labels == whole.labels == (3,) and tiny.weights[0] == pytest.approx(1e-15)
    assert holed.labels == () and math.isnan(holed.validation_r)


def test_elastic_net_meets_its_optimality_conditions():
    g = torch.Generator().manual_seed(7)
    concepts = torch.rand(200, 12, generator=g)
    acts = concepts[:, :2].sum(1, keepdim=True) + 0.5 * torch.randn(200, 1, generator=g)
    w = assign_net(acts, concepts)[0].double()
    x = (concepts - concepts.mean(0)) / concepts.std(0)
    y = (acts[:, 0] - acts[:, 0].mean()) / acts[:, 0].std()
    slope = x.double().T @ (y.double() - x.double() @ w) / 200 - 0.05 * 0.01 * w
    active = w != 0
    assert 2 <= int(active.sum()) < 12
    assert torch.allclose(slope[active], 0.05 * 0.99 * w[active].sign(), atol=1e-4)
    assert bool((slope[~active].abs() <= 0.05 * 0.99 + 1e-4).all())


def assign_net(acts, concepts):
    return linear.elastic_net(acts, concepts)


@pytest.mark.parametrize("wide", [False, True])
@pytest.mark.parametrize("rounds", [0, 1, 50])
def test_elastic_nets_from_any_start_are_scikit_learns(wide, rounds, monkeypatch):
    """Wherever the signs begin, and where coordinate descent has to take over; equal columns share their weight."""
    from sklearn.linear_model import ElasticNet

    monkeypatch.setattr(elastic, "ROUNDS", rounds)
    if wide:
        monkeypatch.setattr(elastic, "HELD", 8)  # products of columns are not kept
    g = torch.Generator().manual_seed(11)
    x = torch.randn(40, 10, generator=g).double() @ torch.randn(10, 60, generator=g).double()
    x = linear.standardised(x + torch.randn(40, 60, generator=g))
    x[:, 7] = x[:, 3]
    y = linear.standardised(
        (x[:, [3, 20, 41]] @ torch.randn(3, 9, generator=g).double()) + torch.randn(40, 9, generator=g)
    ).T
    net = elastic.ElasticNet(x, 0.05, 0.9)
    model = ElasticNet(alpha=0.05, l1_ratio=0.9, fit_intercept=False, tol=1e-12, max_iter=100_000)
    expected = torch.stack([torch.from_numpy(model.fit(x.numpy(), row.numpy()).coef_) for row in y])
    assert 5 < float((expected != 0).sum(dim=1).double().mean()) < 40
    for near in (torch.zeros_like(expected), torch.randn(9, 60, generator=g).double(), -expected, net.descend(y)):
        found = net.solve(y, near)
        torch.testing.assert_close(found, expected, atol=1e-6 if rounds < 50 else 1e-8, rtol=0)
    assert torch.allclose(expected[:, 3], expected[:, 7], atol=1e-8)
    if rounds == 50:  # a near start comes to rest without help
        near = net.descend(y)
        monkeypatch.setattr(net, "descend", None)
        torch.testing.assert_close(net.solve(y, near), expected, atol=1e-8, rtol=0)


def test_concepts_that_say_nothing_get_no_weight():
    """Constant ones, and such as are nowhere likely; units that say nothing get NaN."""
    g = torch.Generator().manual_seed(14)
    concepts = torch.rand(60, 5, generator=g)
    concepts[:, 1], concepts[:, 3] = 0.8, concepts[:, 3] * 0.4
    acts = torch.stack([concepts[:, 0] + concepts[:, 3], torch.ones(60)], dim=1)
    found = linear.elastic_net(acts, concepts)
    assert found[0, [1, 3]].tolist() == [0, 0] and float(found[0, 0]) > 0.4 and bool(found[1].isnan().all())
    assert linear.elastic_net(acts, concepts[:, [1, 3]])[0].tolist() == [0, 0]


def test_greedy_explanations_are_those_of_plain_least_squares():
    """The same labels, weights and correlations as fitting every trial anew; also with two labels the same."""
    g = torch.Generator().manual_seed(12)
    concepts = torch.rand(160, 40, generator=g)
    concepts[:, 9] = concepts[:, 5]
    acts = concepts @ (torch.randn(40, 12, generator=g) * (torch.rand(40, 12, generator=g) < 0.2))
    acts = acts + 0.4 * torch.randn(160, 12, generator=g)
    train, validation, test = (ids.numpy() for ids in linear.splits(160))
    coefficients = linear.elastic_net(acts[train], concepts[train])
    x, found = concepts.double().numpy(), linear.linear_explanations(acts, concepts, coefficients)

    def fitted(labels, y):
        design = np.column_stack([x[:, labels], np.ones(160)])
        return design @ np.linalg.lstsq(design[train], y[train], rcond=None)[0]

    for unit, explanation in enumerate(found):
        y, order = acts[:, unit].double().numpy(), coefficients[unit].argsort(descending=True, stable=True).tolist()
        chosen, dropped, best = [], set(), 0.0
        while len(chosen) < 10:
            trials = [l for l in order if l not in chosen and l not in dropped][:10]
            gains = {l: pearsonr(fitted([*chosen, l], y)[validation], y[validation]).statistic - best for l in trials}
            dropped |= {l for l in trials if chosen and gains[l] < 0.02}
            left = [l for l in trials if l not in dropped]
            if not left:
                break
            chosen.append(max(left, key=gains.get))
            best += gains[chosen[-1]]
        assert list(explanation.labels) == chosen
        assert explanation.validation_r == pytest.approx(best, abs=1e-9)
        own = x[:, chosen] @ np.array(explanation.weights) + explanation.bias
        assert own == pytest.approx(fitted(chosen, y), abs=1e-9)
        assert explanation.test_r == pytest.approx(pearsonr(own[test], y[test]).statistic, abs=1e-9)
    assert max(len(explanation.labels) for explanation in found) > 3


def test_a_unit_silent_on_the_validation_images_gets_one_label():
    g = torch.Generator().manual_seed(13)
    concepts = torch.rand(100, 20, generator=g)
    acts = concepts[:, [2]].clone()
    acts[linear.splits(100)[1]] = 0
    (found,) = linear.linear_explanations(acts, concepts)
    assert found.labels == (2,) and math.isnan(found.validation_r) and found.test_r == pytest.approx(1.0)


def test_netdissect_in_plain_numbers():
    g = torch.Generator().manual_seed(8)
    maps = torch.rand(20, 2, 4, 4, generator=g)
    masks = torch.zeros(20, 3, 8, 8, dtype=torch.bool)
    masks[:, 0, :4] = True
    threshold = maps.transpose(0, 1).flatten(1).sort(dim=1, descending=True).values[:, 32]  # 10 % of 320 places above
    up = torch.nn.functional.interpolate(maps, size=(8, 8), mode="bilinear", align_corners=False)
    masks[:, 1] = up[:, 1] > threshold[1]
    iou = assign.netdissect(maps, masks, share=0.1)
    assert float(iou[1, 1]) == 1.0
    on = up[:, 0] > threshold[0]
    assert float(iou[0, 0]) == pytest.approx(float((on & masks[:, 0]).sum() / (on | masks[:, 0]).sum()), abs=1e-6)
    assert bool(iou[:, 2].isnan().all())


def test_ranking_orders_breaks_ties_and_says_none():
    nan = math.nan
    scores = torch.tensor([[0.1, 0.9, 0.9, nan], [nan, nan, 2.0, nan], [nan] * 4, [4.0, 3.0, 2.0, 1.0]])
    ranked = assign.ranking(scores, 2)
    assert ranked.label.tolist() == [1, 2, -1, 0]
    assert ranked.runners_up.tolist() == [[2, 0], [-1, -1], [-1, -1], [1, 2]]
    assert ranked.margin[[0, 3]].tolist() == [0, 1] and bool(ranked.margin[[1, 2]].isnan().all())
    assert assign.rank_of(scores, torch.tensor([0, 2, 1, 3])).tolist() == [3, 1, -1, 4]
    assert assign.rank_of(scores, torch.tensor([2, 0, -1, 0])).tolist() == [1, -1, -1, 1]
    never = torch.tensor([[-math.inf, -math.inf, nan], [-math.inf, -5.0, -math.inf]])  # as rank reorder gives
    ranked = assign.ranking(never, 2)
    assert ranked.label.tolist() == [-1, 1] and ranked.runners_up.tolist() == [[-1, -1], [-1, -1]]
    assert bool(ranked.margin.isnan().all()) and assign.rank_of(never, torch.tensor([0, 1])).tolist() == [-1, 1]
    single = assign.ranking(torch.ones(2, 1))
    assert single.label.tolist() == [0, 0] and bool(single.margin.isnan().all())


def test_two_meanings_are_found_in_two_concept_units():
    from saelab.label.clusters import Chance, meanings

    world = planted.make(planted.WorldSpec(images=1500, units=80, kinds=(0.5, 0.0, 0.5), seed=3))
    evidence = assign.Evidence.mined(world.acts, world.image_emb, world.label_emb)
    found = meanings(
        evidence.images_of(evidence.positive_ids),
        evidence.positive_values,
        world.label_emb,
        Chance(world.image_emb, world.label_emb),
        evidence.images_of(evidence.contrast_ids),
        evidence.valid,
    )
    for unit in found:
        assert sum(m.share for m in unit) == pytest.approx(1.0, abs=1e-5)
        assert sorted(i for m in unit for i in m.members) == list(range(30))
        assert len(unit) == 1 or unit[0].share >= unit[1].share
    several = torch.tensor([len(unit) == 2 for unit in found])
    truth = world.second >= 0
    assert float(several[truth].float().mean()) > float(several[~truth].float().mean()) + 0.3
    both = [{m.label for m in found[u]} for u in (several & truth).nonzero()[:, 0].tolist()]
    planted_pairs = [{int(world.label[u]), int(world.second[u])} for u in (several & truth).nonzero()[:, 0].tolist()]
    assert np.mean([len(a & b) for a, b in zip(both, planted_pairs, strict=True)]) > 1.4


@pytest.mark.parametrize(
    ("call", "told"),
    [
        (lambda a, e, t: assign.pearson(a, e, t[:0]), "label_emb=(0, 7): expected at least one label"),
        (lambda a, e, t: assign.pearson(a, e, t[:, :5]), "label_emb=(11, 5): the images' embeddings have 7"),
        (lambda a, e, t: assign.cos_cubed(a, e[:40], t), "image_emb=(40, 7)"),
        (lambda a, e, t: assign.clip_dissect_neurolens(a - 9, e, t), "acts=negative"),
        (lambda a, e, t: assign.rank_reorder(a, e, t, top_fraction=0.01), "top_fraction=0.01: leaves 0 of 80"),
        (lambda a, e, t: assign.invert_auc(a, torch.ones(3, 2) > 0), "concepts=(3, 2)"),
        (lambda a, e, t: assign.score(["cps"], assign.Evidence.mined(a, e, t, 5)), "scorer=cps: expected one of "),
        (lambda a, e, t: assign.score([], assign.Evidence.mined(a, e, t, 5)), "expected at least one name"),
        (lambda a, e, t: assign.score(["invert"], assign.Evidence.mined(a, e, t, 5)), "concepts=None"),
        (lambda a, e, t: assign.decoder_direction(t[:, :4], t), "label_emb=(11, 7): the images' embeddings have 4"),
        (lambda a, e, t: assign.csp(e[None, :5], e[None, :4], torch.ones(1, 5), t), "neg_emb=(1, 4, 7)"),
        (lambda a, e, t: assign.pair_weights(a, "loud"), "weights=loud"),
    ],
)
def test_mistakes_are_told_in_one_line(call, told):
    with pytest.raises(UserError) as error:
        call(*world())
    assert told in str(error.value) and "\n" not in str(error.value)


def test_weights_are_shares():
    vectors = torch.tensor([[[1.0, 0.0], [0.0, 1.0], [5.0, 5.0]]])
    valid = torch.tensor([[True, True, False]])
    found = means.weighted_sum(vectors, torch.tensor([[1.0, 3.0, 9.0]]), valid)
    torch.testing.assert_close(found, torch.tensor([[0.25, 0.75]]))
    # A mean that is held against the mean of all images has to be one, whatever the number of positives.
    mean, txt = torch.tensor([0.4, 0.2]), torch.tensor([[1.0, 0.0], [0.0, 1.0]])
    scores = assign.centred_mean(vectors, mean, txt, valid)
    torch.testing.assert_close(scores[0], normalize(torch.tensor([0.1, 0.3]), dim=0))


def test_a_beam_that_holds_everything_is_an_exhaustive_search():
    """Of the 1, 2 and 3 of four concepts with every operator, the best; a beam cut at any step misses some."""
    g = torch.Generator().manual_seed(0)
    concepts = torch.rand(80, 4, generator=g) < 0.5
    acts = torch.rand(80, 12, generator=g)
    orders = [p for n in (1, 2, 3) for p in itertools.permutations(range(4), n)]
    ways = [(p, o) for p in orders for o in itertools.product(formulas.OPERATORS, repeat=len(p) - 1)]
    masks = [formulas.Formula(p, o, 0.0, 0.0, 0.0).holds(concepts) for p, o in ways]
    masks = torch.stack([mask for mask in masks if 10 <= int(mask.sum()) <= 70]).double()
    counts = masks.sum(dim=1)
    for unit, found in zip(acts.T, assign.invert_formulas(acts, concepts, beam=10_000), strict=True):
        ranks = unit.argsort().argsort().double() + 1
        auc = (masks @ ranks - counts * (counts + 1) / 2) / (counts * (80 - counts))
        assert found.auc == pytest.approx(float(auc.max()))


def test_a_wider_beam_finds_what_the_best_first_step_hides():
    """The unit answers to (b and c). Concept a says more of it than b or c alone, and leads a beam of one astray."""
    g = torch.Generator().manual_seed(0)
    b, c = (torch.rand(400, generator=g) < 0.5 for _ in range(2))
    target = b & c
    a = target ^ (torch.rand(400, generator=g) < 0.1)
    concepts = torch.stack([a, b, c], dim=1)
    acts = (target.float() + 0.01 * torch.rand(400, generator=g))[:, None]
    auc = assign.invert_auc(acts, concepts)[0]
    assert auc[0] > auc[1] and auc[0] > auc[2]
    (wide,), (one,) = (assign.invert_formulas(acts, concepts, beam=beam) for beam in (5, 1))
    assert set(wide.labels) == {1, 2} and wide.operators == ("and",) and wide.auc > 0.99
    assert one.labels[0] == 0 and one.auc < 0.99
    assert assign.invert_formulas(acts, concepts) == [wide]  # five is what its authors use


def test_a_search_that_can_not_grow_gives_the_best_single_concept():
    """Of one concept, and of two that joined hold on too few images or on too many."""
    first = torch.zeros(40, dtype=torch.bool)
    first[:20] = True
    acts = torch.arange(40.0, 0, -1)[:, None]
    for concepts in (first[:, None], torch.stack([first, first], dim=1)):
        (formula,) = assign.invert_formulas(acts, concepts, length=3)
        assert (formula.labels, formula.operators, formula.auc) == ((0,), (), 1.0)
