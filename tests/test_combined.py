"""contrast_evidence: its formula, what it must not depend on, and planted answers that single scorers miss."""

import math

import pytest
import torch
from torch.nn.functional import normalize

from saelab.errors import UserError
from saelab.label import assign, mine
from saelab.label.scorers import memberships
from saelab.label.scorers.combined import contrast_evidence, contrast_evidence_rows, summed_evidence
from saelab.label.scorers.frame import Draw, Frame
from saelab.label.scorers.memberships import baseline
from saelab.label.scorers.permuted import whole


def world(images=1500, units=60, scene=0.95, habit=0.75, seed=0, parents=12, per=4, d=128):
    """Concepts in families, each picture in an incidental scene that goes with its family; a label for everything.

    Labels: parents, their children, scenes. Units fire on one child (two in three) or one parent. Returns acts,
    image_emb, label_emb, truth [units], scene label of each unit.
    """
    g = torch.Generator().manual_seed(seed)

    def draw(*size):
        return torch.randn(*size, generator=g)

    base, own, scenes = (normalize(draw(n, d), dim=1) for n in (parents, parents * per, parents))
    family = torch.arange(parents).repeat_interleave(per)
    children = normalize(0.8 * base[family] + 0.6 * own, dim=1)
    label_emb = normalize(torch.cat([base, children, scenes]) + 0.9 * normalize(draw(d), dim=0), dim=1)
    child = torch.randint(parents * per, (images,), generator=g)
    place = torch.where(
        torch.rand(images, generator=g) < habit, family[child], torch.randint(parents, (images,), generator=g)
    )
    noise = 0.6 * normalize(draw(images, d), dim=1) + 0.9 * normalize(draw(d), dim=0)
    image_emb = normalize(0.75 * children[child] + scene * scenes[place] + noise, dim=1)
    target = torch.randint(parents * per, (units,), generator=g)
    broad = torch.arange(units) % 3 == 0
    inside = torch.where(broad, family[child][:, None] == family[target], child[:, None] == target)
    acts = torch.relu(inside * (1 + 0.25 * draw(images, units)) + 0.12 * draw(images, units) - 0.05)
    truth = torch.where(broad, family[target], parents + target)
    return acts, image_emb, label_emb, truth, parents + parents * per + family[target]


def pairs(acts, image_emb, k=30):
    positives, _ = mine.top_images(acts, k)
    return positives, mine.contrast_images(acts, image_emb, positives)[0]


def brute_force(acts, image_emb, label_emb, positives, contrasts):
    """The docstring's formula, one unit and label at a time, in float64."""
    acts, sims = acts.double(), image_emb.double() @ label_emb.double().T
    n = len(acts)
    spread = sims.std(0, correction=0)
    z = (sims - sims.mean(0)) / spread
    worth = (spread / spread.quantile(0.75)).clamp(max=1).sqrt()
    scores = torch.zeros(acts.shape[1], z.shape[1], dtype=torch.float64)
    for u in range(acts.shape[1]):
        a = acts[:, u]
        step = min(float(a.std(correction=0)), float(a.max() - a.mean()) / 2)
        fires = (a - a.mean() - step).clamp(min=0)
        there = [(p, c) for p, c in zip(positives[u].tolist(), contrasts[u].tolist()) if p >= 0 and c >= 0]
        for t in range(z.shape[1]):
            graded = correlated(a, z[:, t], n) / 4 + 3 * correlated(fires, z[:, t] ** 3, n) / 4
            score = graded + correlated(fires, torch.exp(z[:, t]) / torch.exp(z).sum(1), n)
            score += sum((z[p, t] - z[c, t]) / math.sqrt(2 * len(there)) for p, c in there)
            scores[u, t] = score * worth[t] if score > 0 else score
    return scores


def correlated(left, right, n):
    """sqrt(n) (r - se / 2)."""
    x, y = left - left.mean(), right - right.mean()
    x, y = x / x.norm(), y / y.norm()
    r = (x * y).sum()
    se = ((x * y - r / n) ** 2).sum().sqrt()
    return math.sqrt(n) * (r - se / 2)


@pytest.fixture(scope="module")
def small():
    acts, image_emb, label_emb, _, _ = world(images=150, units=5, parents=3)
    return acts, image_emb, label_emb[:9], *pairs(acts, image_emb, 8)


def test_is_its_formula(small):
    acts, image_emb, label_emb, positives, contrasts = small
    contrasts = contrasts.clone()
    contrasts[1, 3:] = -1
    contrasts[2] = -1
    expected = brute_force(acts, image_emb, label_emb, positives, contrasts)
    score = contrast_evidence(acts, image_emb, label_emb, positives, contrasts)
    torch.testing.assert_close(score.double(), expected, rtol=0, atol=2e-4)
    wide = contrast_evidence(acts.double(), image_emb.double(), label_emb.double(), positives, contrasts)
    torch.testing.assert_close(wide, expected, rtol=0, atol=1e-9)


@pytest.mark.parametrize("shift", [0.0, -0.4, 0.4])
def test_sparse_equals_dense(small, shift):
    """Also where every image has an entry (shift 0.4) and where zeros lie above the baseline (shift -0.4)."""
    acts, image_emb, label_emb, positives, contrasts = small
    acts = torch.where(acts > 0.1, acts, 0.0) + shift
    acts[::7] = 0.0
    dense = contrast_evidence(acts, image_emb, label_emb, positives, contrasts)
    sparse = contrast_evidence(acts.to_sparse_csr(), image_emb, label_emb, positives, contrasts)
    torch.testing.assert_close(sparse, dense, rtol=0, atol=2e-4)


def test_mostly_negative_units_keep_their_unstored_zeros(small):
    """A unit whose stored entries are all negative: its implicit zeros are its strongest images."""
    _, image_emb, label_emb, positives, contrasts = small
    acts = torch.zeros(150, 5)
    acts[20:] = -torch.rand(130, 5, generator=torch.Generator().manual_seed(1)) - 1
    dense = contrast_evidence(acts, image_emb, label_emb, positives, contrasts)
    sparse = contrast_evidence(acts.to_sparse_csr(), image_emb, label_emb, positives, contrasts)
    assert dense.isfinite().all()
    torch.testing.assert_close(sparse, dense, rtol=0, atol=2e-4)


@pytest.mark.parametrize("labels", [1, 3])
def test_labels_without_competitors_are_read_by_the_rest(small, labels):
    """Of one label, or of equal ones, competition says nothing: what is left is half a standard error of chance."""
    acts, image_emb, label_emb, positives, contrasts = small
    acts, alike = torch.where(acts > 0.1, acts, 0.0), label_emb[4:5].expand(labels, -1)
    seen = memberships.Memberships(image_emb @ alike.T)
    z = seen.z()
    graded = list(seen.readings(z))[:2]
    bases = memberships.baselines(acts)
    expected = memberships.paired(z, positives, contrasts, contrasts >= 0) - 0.5
    for reading in graded:
        expected += reading.weight * memberships.whole(acts, bases[reading.clear], reading)
    for given in (acts, acts.to_sparse_csr()):
        score = contrast_evidence(given, image_emb, alike, positives, contrasts)
        torch.testing.assert_close(score, expected, rtol=0, atol=2e-4)


def test_neither_scale_offset_nor_other_units_matter(small):
    acts, image_emb, label_emb, positives, contrasts = (t.double() if t.is_floating_point() else t for t in small)
    score = contrast_evidence(acts, image_emb, label_emb, positives, contrasts)
    scaled = contrast_evidence(
        acts * torch.tensor([1e-3, 2, 7, 1e3, 1]).double() - 3.0, image_emb, label_emb, positives, contrasts
    )
    torch.testing.assert_close(scaled, score)
    alone = contrast_evidence(acts[:, 2:3], image_emb, label_emb, positives[2:3], contrasts[2:3])
    torch.testing.assert_close(alone, score[2:3])
    sims = image_emb @ label_emb.T
    rows = contrast_evidence_rows(acts, sims, positives, contrasts)
    torch.testing.assert_close(torch.cat([rows(slice(0, 2)), rows(slice(2, 5))]), score)
    moved = contrast_evidence(acts, 3 * image_emb + 0.2, label_emb, positives, contrasts)
    torch.testing.assert_close(moved, score)


def test_order_of_images_and_labels_is_only_order(small):
    acts, image_emb, label_emb, positives, contrasts = (t.double() if t.is_floating_point() else t for t in small)
    score = contrast_evidence(acts, image_emb, label_emb, positives, contrasts)
    g = torch.Generator().manual_seed(2)
    images, labels = torch.randperm(150, generator=g), torch.randperm(9, generator=g)
    place = images.argsort()
    shuffled = contrast_evidence(acts[images], image_emb[images], label_emb[labels], place[positives], place[contrasts])
    torch.testing.assert_close(shuffled, score[:, labels])


def test_units_and_labels_that_say_nothing_are_nan(small):
    acts, image_emb, label_emb, positives, contrasts = small
    acts, label_emb = acts.clone(), label_emb.clone()
    acts[:, 0], acts[:, 1], acts[5, 2] = 0.0, 0.3, torch.nan
    label_emb[4] = 0.0
    for given in (acts, acts.to_sparse_csr()):
        score = contrast_evidence(given, image_emb, label_emb, positives, contrasts)
        assert score[:3].isnan().all()
        assert score[3:, 4].isnan().all()
        assert score[3:, [0, 1, 2, 3, 5, 6, 7, 8]].isfinite().all()


def test_units_that_saturate_are_still_scored():
    """Firing fully on half of the images or more, a unit has nothing above its mean + one standard deviation."""
    acts = torch.zeros(100, 3)
    acts[:50, 0], acts[:90, 1], acts[:4, 2] = 6.0, 6.0, 6.0
    mean = acts.double().mean(0)
    expected = mean + torch.tensor([1.5, 0.3, acts[:, 2].double().std(correction=0)])
    torch.testing.assert_close(baseline(acts), expected)
    torch.testing.assert_close(baseline(acts.to_sparse_csr()), expected)
    assert (acts > baseline(acts)).sum(0).tolist() == [50, 90, 4]


def test_names_what_single_scorers_miss():
    """Under scenes stronger than the concepts: pairs alone lose broad concepts, whole sets alone fall for the scene."""
    right: dict[str, list[float]] = {}
    for seed in range(3):
        acts, image_emb, label_emb, truth, scene = world(scene=1.3, seed=seed)
        evidence = assign.Evidence.mined(acts, image_emb, label_emb)
        names = ["contrast_evidence", "csp", "cos_cubed", "pearson", "semanticlens"]
        for name, score in assign.score(names, evidence).items():
            best = score.argmax(1)
            right.setdefault(name, []).append(float((best == truth).float().mean()))
            if name == "contrast_evidence":
                assert (best == scene).float().mean() <= 0.05
    ours = sum(right.pop("contrast_evidence")) / 3
    assert ours >= 0.9
    assert ours >= max(sum(shares) / 3 for shares in right.values()) + 0.03


def test_chance_has_the_stated_variance():
    """Units that have nothing to do with the labels: each kind of evidence has about unit variance, half a standard
    error is taken off, and no label is favoured."""
    g = torch.Generator().manual_seed(3)
    _, image_emb, label_emb, _, _ = world(images=800)
    acts = torch.relu(torch.randn(800, 400, generator=g))
    seen, bases = memberships.Memberships(image_emb @ label_emb.T), memberships.baselines(acts)
    z = seen.z()
    for reading in seen.readings(z):
        evidence = memberships.whole(acts, bases[reading.clear], reading)
        assert abs(float(evidence.mean()) + 0.5) < 0.05
        assert 0.8 < float(evidence.std()) < 1.1
    left, right = (torch.randint(800, (400, 30), generator=g) for _ in range(2))
    pairs_alone = memberships.paired(z, left, right, torch.ones(400, 30, dtype=torch.bool))
    assert abs(float(pairs_alone.mean())) < 0.05
    assert 0.9 < float(pairs_alone.std()) < 1.1


def test_labels_that_no_image_shows_are_discounted():
    """16 of 64 labels are shown. Standardised, the others are as loud in noise; discounted, they win less often."""
    g = torch.Generator().manual_seed(5)
    label_emb = normalize(torch.randn(64, 96, generator=g), dim=1)
    shown = label_emb[torch.randint(16, (300,), generator=g)]
    image_emb = normalize(shown + 0.7 * normalize(torch.randn(300, 96, generator=g), dim=1), dim=1)
    spread = (image_emb @ label_emb.T).std(0, correction=0)
    assert spread[16:].max() < spread[:16].min()
    worth = memberships.discount(spread)
    assert (worth[:16] == 1).all()
    torch.testing.assert_close(worth[16:], (spread[16:] / spread.quantile(0.75)).sqrt())
    acts = torch.relu(torch.randn(300, 300, generator=g))
    score = assign.score(["contrast_evidence"], assign.Evidence.mined(acts, image_emb, label_emb))["contrast_evidence"]
    in_full = torch.where(score > 0, score / worth, score)
    shown_before, shown_now = in_full.argmax(1) < 16, score.argmax(1) < 16
    assert not bool((shown_before & ~shown_now).any())
    assert (shown_now & ~shown_before).float().mean() > 0.05
    against = memberships.discounted(torch.tensor([[2.0, -2.0]]), torch.tensor([0.5, 0.5]))
    assert against.tolist() == [[1.0, -2.0]]  # evidence against a label isn't lessened


@pytest.mark.parametrize("name", ["contrast_evidence", "summed_evidence"])
def test_null_by_ranks_is_the_scorer_on_permuted_evidence(name):
    """Also for a unit that fires on three images, a dead one, one that fires everywhere and a negative one."""
    acts, image_emb, label_emb, _, _ = world(images=200, units=8, parents=3)
    acts[:, 0], acts[:, 1] = 0.0, 0.0
    acts[[3, 7, 9], 0] = 1.0
    acts[:, 2] += 1
    acts[:, 3] -= 2
    for given, known in ((acts, label_emb), (acts.to_sparse_csr(), label_emb), (acts.to_sparse_csr(), label_emb[:1])):
        frame = Frame(assign.Evidence.mined(given, image_emb, known))
        scorer = assign.SCORERS[name]
        fast, exact = scorer.under(frame), whole(scorer, frame)
        draw = Draw(frame, torch.randperm(200, generator=torch.Generator().manual_seed(4)))
        for block in frame.blocks:
            torch.testing.assert_close(fast(draw, block), exact(draw, block), rtol=0, atol=1e-5, equal_nan=True)


@pytest.mark.parametrize("name", ["contrast_evidence", "summed_evidence"])
@pytest.mark.parametrize("layout", [lambda a: a, lambda a: a.to_sparse_csr()])
def test_some_labels_at_a_time_give_the_same_numbers(monkeypatch, layout, name):
    """Scores, and best scores under permutation, with 2 labels at a time, some of which no image tells apart."""
    acts, image_emb, label_emb, _, _ = world(images=200, units=8, parents=3)
    label_emb = torch.cat([label_emb, torch.zeros(2, label_emb.shape[1])])
    evidence = assign.Evidence.mined(layout(acts), image_emb, label_emb)
    scorer = assign.SCORERS[name]

    def numbers():
        frame = Frame(evidence, block=3)
        draw, best = Draw(frame, torch.arange(199, -1, -1)), scorer.under(frame)
        return scorer.start(evidence)(slice(1, 7)), torch.cat([best(draw, block) for block in frame.blocks])

    whole_scores, whole_best = numbers()
    init = memberships.Memberships.__init__
    monkeypatch.setattr(memberships.Memberships, "__init__", lambda self, sims: init(self, sims, 200 * 2))
    assert len(memberships.Memberships(evidence.sims).parts(200)) > 5
    scores, best = numbers()
    torch.testing.assert_close(scores, whole_scores, rtol=1e-5, atol=1e-4, equal_nan=True)
    torch.testing.assert_close(best, whole_best, rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize("layout", [lambda a: a, lambda a: a.to_sparse_csr()])
def test_summed_evidence_adds_the_correlation_in_standard_deviations(small, layout):
    acts, image_emb, label_emb, positives, contrasts = small
    label_emb = torch.cat([label_emb, torch.zeros(1, label_emb.shape[1])])  # one that no image tells apart
    acts = acts.clone()
    acts[:, 1] = 0.5  # a constant unit
    given = (layout(acts), image_emb, label_emb)
    found = summed_evidence(*given, positives, contrasts)
    r = torch.stack([torch.stack([_r(unit, sim) for sim in (image_emb @ label_emb.T).T]) for unit in acts.T])
    expected = contrast_evidence(*given, positives, contrasts) + len(acts) ** 0.5 * r
    assert bool(found[1].isnan().all()) and bool(found[:, -1].isnan().all()) and bool(found[0, :-1].isfinite().all())
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4, equal_nan=True)
    evidence = assign.Evidence.mined(*given)
    two, one = (assign.score([name], evidence)[name] for name in ("summed_evidence", "contrast_evidence"))
    torch.testing.assert_close(two - one, len(acts) ** 0.5 * r, rtol=1e-3, atol=1e-3, equal_nan=True)


def test_a_broad_label_among_many_that_no_image_shows_is_found_more_often_by_the_sum():
    """Units that fire on one of a few broad classes, whose look-alikes are of it too; most labels are shown nowhere."""
    right = dict.fromkeys(("contrast_evidence", "summed_evidence"), 0)
    for seed in range(4):
        g = torch.Generator().manual_seed(seed)
        broad = normalize(torch.randn(6, 24, generator=g), dim=1)
        own = torch.arange(600) % 6
        image_emb = normalize(broad[own] + 0.9 * torch.randn(600, 24, generator=g) / 24**0.5 + 0.5, dim=1)
        near = normalize(broad.repeat_interleave(15, 0) + 1.2 * torch.randn(90, 24, generator=g) / 24**0.5, dim=1)
        shown = (own[:, None] == torch.arange(24) % 6).float()
        acts = (shown * (torch.rand(600, 24, generator=g) < 0.3) * (0.5 + torch.rand(600, 24, generator=g))).relu()
        evidence = assign.Evidence.mined(acts, image_emb, torch.cat([broad, near]))
        for name, scores in assign.score(list(right), evidence).items():
            right[name] += int((scores.nan_to_num(nan=-9e9).argmax(1) == torch.arange(24) % 6).sum())
    assert right["summed_evidence"] > right["contrast_evidence"] and right["summed_evidence"] > 30


def _r(unit: torch.Tensor, similarity: torch.Tensor) -> torch.Tensor:
    x, y = (column - column.mean() for column in (unit, similarity))
    return (x @ y / (x.norm() * y.norm())).masked_fill((x.norm() == 0) | (y.norm() == 0), torch.nan)


def test_competition_is_softmax_over_all_labels():
    sims = torch.randn(30, 40, generator=torch.Generator().manual_seed(0))
    seen = memberships.Memberships(sims, at_once=30 * 3)
    z = (sims - sims.mean(0)) / sims.std(0, correction=0)
    expected = z.softmax(1) - z.softmax(1).mean(0)
    found = torch.cat([list(seen.readings(seen.z(part), part))[2].values for part in seen.parts(30)], dim=1)
    assert len(seen.parts(30)) == 14
    torch.testing.assert_close(found, expected / expected.norm(dim=0), rtol=1e-4, atol=1e-5)


def test_sizes_that_do_not_fit_are_told(small):
    acts, image_emb, label_emb, positives, contrasts = small
    with pytest.raises(UserError, match="positive_ids"):
        contrast_evidence(acts, image_emb, label_emb, positives[:3], contrasts)
    with pytest.raises(UserError, match="contrast_ids"):
        contrast_evidence(acts, image_emb, label_emb, positives, contrasts[:, :4])
    with pytest.raises(UserError, match="valid"):
        contrast_evidence(acts, image_emb, label_emb, positives, contrasts, contrasts[:3] >= 0)
    with pytest.raises(UserError, match="label_emb"):
        contrast_evidence(acts, image_emb, label_emb[:, :5], positives, contrasts)


@pytest.mark.parametrize("pairs", [1, 4, 30])
def test_pairs_weigh_one_over_the_root_of_twice_their_number(pairs):
    """Written out, and of variance 1 under chance however many pairs there are."""
    g = torch.Generator().manual_seed(pairs)
    z = memberships.Memberships(torch.randn(500, 40, generator=g)).z()
    left, right = (torch.stack([torch.randperm(500, generator=g)[:30] for _ in range(300)]) for _ in range(2))
    there = torch.zeros(300, 30, dtype=torch.bool)
    there[:, 30 - pairs :] = True
    found = memberships.paired(z, left, right, there)
    expected = (z[left] - z[right])[:, 30 - pairs :].sum(1) / math.sqrt(2 * pairs)
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)
    assert float(found.square().mean()) == pytest.approx(1.0, abs=0.06)
