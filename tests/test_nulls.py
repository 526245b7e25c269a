"""Null percentiles: the short cuts equal the scorers on permuted evidence, and noise is uniform under them."""

import math
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn.functional import normalize

from saelab.acts import Columns
from saelab.label import assign, mine, nulls
from saelab.label.mine import cells
from saelab.label.mine.contrast import choose_contrasts
from saelab.label.nulls import null_percentile, null_percentiles
from saelab.label.scorers import evidence as bundle
from saelab.label.scorers.dissect import others_logsumexp
from saelab.label.scorers.frame import Draw, Frame
from saelab.label.scorers.moved import FEWEST, Moving, Series, series_of
from saelab.label.scorers.permuted import best_of, whole
from saelab.label.scorers.registry import SCORERS

CLOSED = [n for n, s in SCORERS.items() if s.needs not in ("decoder", "maps")]


def world(images=150, units=24, labels=30, d=16, seed=0):
    """Units of all kinds: sparse, dense, signed, rare, constant, with groups of near-duplicates."""
    g = torch.Generator().manual_seed(seed)
    emb = normalize(torch.randn(images, d, generator=g), dim=1)
    emb[1::2] = normalize(emb[::2] + 0.02 * torch.randn(images // 2, d, generator=g), dim=1)  # near-duplicates
    acts = torch.rand(images, units, generator=g) * (torch.rand(images, units, generator=g) < 0.15)
    acts[:, 1] = torch.randn(images, generator=g)
    acts[:, 2] = torch.rand(images, generator=g) + 1
    acts[:, 3] = 0
    acts[:, 4] = 2.5
    acts[:, 5] = 0
    acts[7, 5] = 1.0
    acts[3, 6] = torch.nan
    acts[:, 7] = torch.randn(images, generator=g) - 2  # fires on few images; its mean is below 0
    acts[:, 8] = 1 + 99 * (torch.rand(images, generator=g) < 0.03)  # fires everywhere; positives below its mean, tied
    acts[:, 9] = (torch.rand(images, generator=g) < 0.03).float()  # fires on fewer images than k, all alike
    acts[:, 10] = torch.where(torch.rand(images, generator=g) < 0.02, 1e3, 1 + torch.rand(images, generator=g))
    acts[:, 11] = -1 - torch.rand(images, generator=g)  # varies, and never fires
    if units > 21:
        acts[:, 19] = (4 * torch.rand(images, generator=g)).clamp(max=3)  # at its most on more images than k
        acts[:, 20] = (torch.rand(images, generator=g) < 0.5).float()
        acts[:, 21] = (6 * torch.rand(images, generator=g) - 2).round().clamp(min=0)
    more = {"concepts": torch.rand(images, labels, generator=g) < 0.3}
    more |= {"filled_emb": torch.randn(labels, d, generator=g), "template_emb": torch.randn(d, generator=g)}
    groups = torch.arange(images) // 2
    return acts, emb, normalize(torch.randn(labels, d, generator=g), dim=1), groups, more


@pytest.mark.parametrize("rule", ["below_mean", "zero", "below_quantile"])
@pytest.mark.parametrize("name", [n for n in CLOSED if "wpmi" not in n])
def test_short_cuts_equal_the_scorer_on_permuted_evidence(name, rule):
    acts, emb, txt, groups, more = world()
    evidence = assign.Evidence.mined(acts, emb, txt, 8, mine.ContrastRule(rule), groups, **more)
    frame = Frame(evidence, block=5)
    short, plain = SCORERS[name].under(frame), whole(SCORERS[name], frame)
    g = torch.Generator().manual_seed(1)
    for _ in range(3):
        draw = Draw(frame, torch.randperm(frame.images, generator=g))
        for block in frame.blocks:
            a, b = short(draw, block), plain(draw, block)
            assert torch.equal(a.isnan(), b.isnan())
            assert torch.allclose(a, b, atol=2e-6, equal_nan=True)


@pytest.mark.parametrize("rule", ["below_mean", "zero", "below_quantile"])
@pytest.mark.parametrize("grouped", [True, False])
def test_the_null_looks_for_contrasts_where_mining_did(rule, grouped, monkeypatch, caplog):
    monkeypatch.setattr(cells, "SIZE", 8)
    monkeypatch.setattr(cells, "REACH", 24)
    acts, emb, txt, groups, _ = world()
    acts[:, 12:] = 1 + 99 * (torch.rand(150, 12, generator=torch.Generator().manual_seed(3)) < 0.03)  # as unit 8
    evidence = assign.Evidence.mined(
        acts, emb, txt, 8, mine.ContrastRule(rule, exact_below=100), groups if grouped else None
    )
    exact = evidence.but(rule=mine.ContrastRule(rule))
    frame = Frame(evidence)
    caplog.clear()
    for seed in range(3):
        draw = Draw(frame, torch.randperm(frame.images, generator=torch.Generator().manual_seed(seed)))
        images, place = draw.evidence.positive_ids.unique(return_inverse=True)
        found = draw.contrasts(images)[place, frame.ranges[1][:, None]]
        assert torch.equal(found, draw.evidence.contrast_ids)
        best = Draw(Frame(exact), draw.order).contrasts(images)[place, frame.ranges[1][:, None]]
        assert not (grouped and torch.equal(found, best))  # cells do miss some, though few twins
    assert "found in cells" not in caplog.text  # what they miss is told once, by mining


def test_the_frame_permutes_one_unit_as_permuting_its_column_would():
    """The sorted frame against the plain thing: permute a unit's activations over images, mine, score."""
    acts, emb, txt, _, _ = world()
    acts = acts[:, [0, 2, 8]]
    evidence = assign.Evidence.mined(acts, emb, txt, 8)
    frame = Frame(evidence)
    order = torch.randperm(len(emb), generator=torch.Generator().manual_seed(4))
    for name in ("csp", "pearson", "cos_cubed", "semanticlens"):
        best = SCORERS[name].under(frame)
        for block in frame.blocks:
            for unit, found in zip(block.units.tolist(), best(Draw(frame, order), block), strict=True):
                moved = torch.empty_like(acts[:, [unit]])
                moved[order, 0] = acts[:, unit].sort(descending=True, stable=True).values
                (scores,) = assign.score([name], assign.Evidence.mined(moved, emb, txt, 8)).values()
                assert float(scores.max()) == pytest.approx(float(found), abs=2e-6)


@pytest.mark.parametrize("name", ["soft_wpmi", "wpmi"])
def test_wpmi_keeps_the_other_units_as_they_are(name):
    acts, emb, txt, _, _ = world(images=120, units=15)
    acts = acts[:, [0, 1, 2, 12, 13, 14, 5, 7, 10]]
    evidence = assign.Evidence.mined(acts, emb, txt, 8)
    frame = Frame(evidence)
    order = torch.randperm(len(emb), generator=torch.Generator().manual_seed(4))
    best = SCORERS[name].under(frame)
    for block in frame.blocks:
        for unit, found in zip(block.units.tolist(), best(Draw(frame, order), block), strict=True):
            moved = acts.clone()
            moved[order, unit] = acts[:, unit].sort(descending=True, stable=True).values
            (scores,) = assign.score([name], assign.Evidence.mined(moved, emb, txt, 8)).values()
            assert float(scores[unit].max()) == pytest.approx(float(found), abs=1e-4)


@pytest.mark.parametrize("series", [False, True])
def test_units_whose_labels_all_have_no_score_have_no_percentile(series):
    """Rank reorder gives -inf to labels that a unit's pictures are unlike: no score, on any path."""
    acts, emb, txt, groups, _ = world(labels=4)
    acts = acts[:, 12:19]
    emb = normalize(emb + 0.3 * txt[0], dim=1)
    given_ = groups if series else None
    gone = assign.Evidence.mined(acts, emb, normalize(-emb.mean(dim=0) + 0.01 * txt[:2], dim=1), 8, groups=given_)
    assert bool((assign.score(["rank_reorder"], gone)["rank_reorder"] == -torch.inf).all())
    assert bool(null_percentile("rank_reorder", gone, 4).isnan().all())
    some = gone.but(label_emb=normalize(txt[:2] - emb.mean(dim=0), dim=1))  # for some units, under some permutations
    short = null_percentile("rank_reorder", some, 8)
    own = assign.rankings(["rank_reorder"], some)["rank_reorder"]
    assert torch.equal(short.isnan(), own.label < 0)
    frame = Frame(some, block=5)
    quick, plain = SCORERS["rank_reorder"].under(frame), whole(SCORERS["rank_reorder"], frame)
    for seed in range(4):
        draw = Draw(frame, torch.randperm(frame.images, generator=torch.Generator().manual_seed(seed)))
        for block in frame.blocks:
            best = plain(draw, block)
            best[best == torch.finfo(best.dtype).min] = torch.nan
            assert torch.allclose(quick(draw, block), best, atol=2e-6, equal_nan=True)


@pytest.mark.parametrize("usable", [0, 3])
def test_nets_without_some_or_any_usable_concept(usable):
    """Refused concepts have the coefficient 0, which counts where all others' are negative."""
    acts, emb, txt, groups, _ = world(labels=6)
    txt[usable:] = 0  # similar to nothing: nowhere likely
    evidence = assign.Evidence.mined(acts, emb, txt, 8, groups=groups)
    (scores,) = assign.score(["linear_explanations"], evidence).values()
    assert bool((scores[:, usable:].nan_to_num() == 0).all())
    frame = Frame(evidence, block=5)
    short, plain = SCORERS["linear_explanations"].under(frame), whole(SCORERS["linear_explanations"], frame)
    found = []
    for seed in range(4):
        draw = Draw(frame, torch.randperm(frame.images, generator=torch.Generator().manual_seed(seed)))
        for block in frame.blocks:
            found.append(short(draw, block))
            assert torch.allclose(found[-1], plain(draw, block), atol=2e-6, equal_nan=True)
    assert bool((torch.cat(found) == 0).any()) and bool((torch.cat(found) > 0).any()) == bool(usable)


def test_others_logsumexp_where_one_unit_is_nearly_everything():
    ll = torch.tensor([[0.0, -50.0], [-40.0, -3.0], [-41.0, -2.0], [float("nan")] * 2])
    expected = [
        [math.log(math.exp(-40) + math.exp(-41)), math.log(math.exp(-3) + math.exp(-2))],
        [0.0, -2.0],
        [0.0, -3.0],
    ]
    assert torch.allclose(others_logsumexp(ll)[:3], torch.tensor(expected), atol=1e-5)


def test_dense_and_csr_agree():
    acts, emb, txt, groups, more = world()
    names = ["csp", "pearson", "cos_cubed", "soft_wpmi", "invert"]
    dense = null_percentiles(names, assign.Evidence.mined(acts, emb, txt, 8, groups=groups, **more), n=20)
    csr = null_percentiles(names, assign.Evidence.mined(acts.to_sparse_csr(), emb, txt, 8, groups=groups, **more), n=20)
    for name in names:
        assert torch.equal(dense[name].isnan(), csr[name].isnan())
        assert (dense[name] - csr[name]).abs().nan_to_num().max() <= 0.05  # one draw may lie within rounding
        assert bool(dense[name][6].isnan())  # not finite


@pytest.mark.parametrize("of", ["single images", "series"])
def test_evidence_that_is_put_together_from_sparse_activations_is_scored_as_if_dense(of):
    """As the labels stage makes it: not mined anew, from exemplars that lie on disk."""
    acts, emb, txt, groups, more = world()
    mined = assign.Evidence.mined(acts, emb, txt, 8, groups=groups if of == "series" else None, **more)
    sparse = replace(mined, acts=acts.to_sparse_csr())
    assert isinstance(sparse.acts, Columns)
    for name in CLOSED:
        (one,), (two,) = (assign.score([name], e).values() for e in (mined, sparse))
        assert torch.allclose(one, two, rtol=0, atol=2e-4, equal_nan=True), name  # as in tests/test_combined.py
    one, two = (null_percentiles(CLOSED, e, n=5) for e in (mined, sparse))
    for name in CLOSED:
        assert torch.equal(one[name].isnan(), two[name].isnan())
        assert (one[name] - two[name]).abs().nan_to_num().max() <= 0.2 + 1e-6, name  # one draw may lie within rounding


@pytest.mark.parametrize(
    "name",
    [
        "contrast_evidence",
        "summed_evidence",
        "csp",
        "semanticlens",
        "pearson",
        "cos_cubed",
        "wpmi",
        "clip_dissect_neurolens",
        pytest.param("linear_explanations", marks=pytest.mark.slow),
    ],
)
def test_noise_is_uniform(name):
    """5 % of units of pure noise exceed 0.95, and their percentiles are even, whatever their sparsity."""
    found = []
    for seed in range(6):
        g = torch.Generator().manual_seed(seed)
        emb = normalize(torch.randn(120, 12, generator=g) + 1.0, dim=1)
        txt = normalize(torch.randn(40, 12, generator=g), dim=1)
        rate = torch.linspace(0.1, 1.0, 250)
        acts = torch.rand(120, 250, generator=g) * (torch.rand(120, 250, generator=g) < rate)
        found.append(null_percentile(name, assign.Evidence.mined(acts, emb, txt, 10), n=200, seed=seed + 50))
    share = torch.cat(found)
    assert not bool(share.isnan().any())
    # The 200 draws are common to all units: the share above 0.95 has a standard deviation near 0.009 over 6 seeds.
    assert float((share > 0.95).float().mean()) == pytest.approx(0.05, abs=0.027)
    assert float((share > 0.5).float().mean()) == pytest.approx(0.5, abs=0.06)


def test_a_permutation_as_good_as_the_unit_is_not_lower():
    """Written out for a unit that fires on one image of five, two of which are equally like the only label."""
    emb, txt = normalize(torch.tensor([[1.0, 9], [3, 4], [3, 4], [9, 4], [9, 1]]), dim=1), torch.tensor([[1.0, 0.0]])
    acts = torch.zeros(5, 1)
    acts[1, 0] = 1.0
    evidence = assign.Evidence.mined(acts, emb, txt, 1)
    g = torch.Generator().manual_seed(7)
    first = [int(torch.randperm(5, generator=g)[0]) for _ in range(60)]  # the image that each permutation fires
    assert {0, 1, 2} <= set(first)
    assert float(null_percentile("semanticlens", evidence, n=60, seed=7)) == pytest.approx(first.count(0) / 60)
    # Of one label only, all images are equally good by WPMI: no permutation is lower.
    assert float(null_percentile("soft_wpmi", evidence, n=60, seed=7)) == 0


def test_near_duplicates_are_no_contrasts_under_permutation_either():
    acts, emb, txt, groups, _ = world()
    evidence = assign.Evidence.mined(acts, emb, txt, 8, groups=groups)
    frame = Frame(evidence)
    draw = Draw(frame, torch.randperm(150, generator=torch.Generator().manual_seed(2)))
    ids = torch.arange(150)
    found = draw.contrasts(ids)
    assert bool((found >= 0).any())
    assert not bool(((groups[ids, None] == groups[found.clamp(min=0)]) & (found >= 0)).any())
    mined = draw.evidence
    pairs = mined.valid
    assert bool(pairs.any()) and not bool((groups[mined.positive_ids] == groups[mined.contrast_ids])[pairs].any())
    alone = Draw(Frame(assign.Evidence.mined(acts, emb, txt, 8)), draw.order).contrasts(ids)
    twin = ids ^ 1
    assert float((alone == twin[:, None]).float().mean()) > 0.2  # without groups the twin is the nearest of all


def test_planted_units_stand_out_and_seeds_repeat():
    g = torch.Generator().manual_seed(0)
    txt = normalize(torch.randn(40, 24, generator=g), dim=1)
    truth = torch.arange(200) % 20
    emb = normalize(txt[truth] + 0.3 * torch.randn(200, 24, generator=g) / 24**0.5, dim=1)
    acts = torch.stack([(truth == l).float() * (1 + torch.rand(200, generator=g)) for l in range(10)], dim=1)
    evidence = assign.Evidence.mined(acts, emb, txt, 5)
    for name in ("csp", "pearson", "semanticlens", "cos_cubed"):
        first = null_percentile(name, evidence, n=100, seed=3)
        assert float(first.min()) > 0.97
        assert torch.equal(first, null_percentile(name, evidence, n=100, seed=3))


def test_scorers_without_pooled_activations_have_no_null():
    acts, emb, txt, _, _ = world()
    evidence = assign.Evidence.mined(acts, emb, txt, 8, decoder=torch.randn(24, 16))
    assert bool(null_percentile("decoder_direction", evidence, n=2).isnan().all())


def in_series(sizes: list[int], units: int, seed: int, labels: int = 20, d: int = 8):
    """Unrelated units of six kinds on photos in series (four fifths of the variance are common to a series).

    Dense, sparse, heavy-tailed, tied, independent within a series, and alike all through it.
    """
    g = torch.Generator().manual_seed(seed)
    of = torch.repeat_interleave(torch.arange(len(sizes)), torch.tensor(sizes))

    def draw(columns: int) -> torch.Tensor:
        common, own = (torch.randn(n, columns, generator=g) for n in (len(sizes), len(of)))
        return 0.8**0.5 * common[of] + 0.2**0.5 * own

    emb = normalize(draw(d) + 1.0, dim=1)
    txt = normalize(torch.randn(labels, d, generator=g), dim=1)
    heavy, sparse, tied = (draw(units) for _ in range(3))
    kinds = [draw(units), (sparse - 1.0).clamp(min=0), heavy.abs() ** 3 * heavy.sign(), (1.5 * tied).round()]
    kinds += [torch.randn(len(of), units, generator=g), torch.randn(len(sizes), units, generator=g)[of]]
    return torch.cat(kinds, dim=1), emb, txt, of


@pytest.mark.parametrize("grouped", [False, True], ids=["single photos", "series"])
@pytest.mark.parametrize("share", [0.3, 0.5, 0.8])
def test_saturated_units_unrelated_to_photos_in_folders_pass_as_often_as_they_should(share, grouped):
    """Photos lie in the order of their classes, and units are at their most on more of them than are mined.

    By the first ids, positives were the first classes' photos: at .5 csp named 45 % of such units, semanticlens 68 %.
    A world's 60 units share its 99 orders, whose fifth-best score errs as a share of 99 draws does.
    """
    passed: dict[str, list[torch.Tensor]] = {"semanticlens": [], "csp": [], "contrast_evidence": [], "pearson": []}
    for seed in range(6):
        g = torch.Generator().manual_seed(seed)
        txt = normalize(torch.randn(40, 16, generator=g), dim=1)
        emb = normalize(txt.repeat_interleave(10, 0) + 0.12 * torch.randn(400, 16, generator=g), dim=1)
        acts = 6 * torch.rand(400, 60, generator=g)
        acts[torch.rand(400, 60, generator=g) < share] = 6
        of = torch.arange(400) // 2 if grouped else None
        evidence = assign.Evidence.mined(acts, emb, txt, 30, groups=of)
        for name, found in null_percentiles(passed, evidence, 99, seed + 50).items():
            passed[name].append((found >= 95 / 99).float())  # 5 of 100
    error = (0.05 * 0.95 * (1 / 60 + 1 / 99) / 6) ** 0.5
    for name, found in passed.items():
        assert float(torch.cat(found).mean()) <= 0.05 + 3 * error, name


MIXED = [1 + i % 8 for i in range(32)]


@pytest.mark.parametrize("name", ["pearson", "csp"])
@pytest.mark.parametrize("sizes", [[5] * 24, MIXED], ids=["series of 5", "series of 1 to 8"])
def test_units_unrelated_to_photos_in_series_pass_as_often_as_they_should(name, sizes):
    passed = []
    for seed in range(8):
        acts, emb, txt, of = in_series(sizes, 40, seed)
        found = null_percentile(name, assign.Evidence.mined(acts, emb, txt, 10, groups=of), n=100, seed=seed + 50)
        passed.append((found > 0.95).float().view(6, 40).mean(dim=1))
    share = torch.stack(passed).mean(dim=0)  # of each kind's 320 units
    assert 0.03 <= float(share.mean()) <= 0.07, share
    assert bool(((share - 0.05).abs() <= 3 * (0.05 * 0.95 / 320) ** 0.5).all()), share


def test_single_photos_of_a_series_are_no_draws():
    """What whole series are moved for: photos permuted one by one, units that are alike through a series all pass."""
    acts, emb, txt, _ = in_series([5] * 24, 30, 3)
    alike = acts[:, -30:]
    single = null_percentile("pearson", assign.Evidence.mined(alike, emb, txt, 10), n=100, seed=1)
    assert float((single > 0.95).float().mean()) > 0.3


@given(sizes=st.lists(st.integers(1, 9), min_size=1, max_size=40), seed=st.integers(0, 99))
def test_series_change_places_whole(sizes, seed):
    g = torch.Generator().manual_seed(seed)
    of = torch.repeat_interleave(torch.arange(len(sizes)), torch.tensor(sizes))[torch.randperm(sum(sizes), generator=g)]
    series = Series.of_groups(3 * of + 1)  # any numbers name groups
    source = series.deal(g)
    place: dict[int, int] = {}
    for image, picture in enumerate(source.tolist()):  # a series' images get the pictures of one series
        assert place.setdefault(int(of[image]), int(of[picture])) == int(of[picture])
    assert sorted(place.values()) == list(range(len(sizes)))
    assert all(series.pool[a] == series.pool[b] for a, b in place.items())
    for group, other in place.items():  # of a longer series some pictures, of a shorter one all, about equally often
        shown = source[of == group].bincount(minlength=len(of))[of == other]
        assert int(shown.max() - shown.min()) <= 1 and int(shown.sum()) == sizes[group]
    counts = series.pool.bincount()
    assert len(sizes) < FEWEST or int(counts.min()) >= FEWEST
    for pool in range(len(counts)):  # a size that enough series have is not mixed with smaller ones
        some = series.sizes[series.pool == pool]
        largest = some == some.max()
        assert int(largest.sum()) < FEWEST or bool(largest.all()) or pool == len(counts) - 1


def test_singles_and_series_change_places_among_themselves():
    of = torch.cat([torch.arange(40), 40 + torch.arange(30) // 5])
    source = Series.of_groups(of).deal(torch.Generator().manual_seed(0))
    assert torch.equal(source[:40].sort().values, torch.arange(40))
    assert torch.equal(source.sort().values, torch.arange(70)) and not torch.equal(source, torch.arange(70))
    assert (
        series_of(assign.Evidence.mined(torch.rand(70, 2), normalize(torch.rand(70, 4), dim=1), torch.eye(4))) is None
    )


@pytest.mark.parametrize("rule", ["below_mean", "zero"])
@pytest.mark.parametrize("name", [n for n in CLOSED if "wpmi" not in n and n != "linear_explanations"])
def test_moved_pictures_are_scored_as_units_mined_anew_on_them(name, rule):
    """Moving what is seen on the images is permuting the activations over them."""
    acts, emb, txt, groups, more = world()
    acts = acts[:, [0, 1, 2, 7, 12, 13, 14, 15]]  # units without ties among their positives
    mined = assign.Evidence.mined(acts, emb, txt, 8, mine.ContrastRule(rule), groups, **more)
    source = Series.of_groups(groups).deal(torch.Generator().manual_seed(5))
    permuted = torch.empty_like(acts)
    permuted[source] = acts
    anew = assign.Evidence.mined(permuted, emb, txt, 8, mine.ContrastRule(rule), groups, **more)
    (moved,), (plain,) = (assign.score([name], e).values() for e in (Moving(mined).move(source), anew))
    assert torch.allclose(moved, plain, atol=2e-5, equal_nan=True)


@pytest.mark.parametrize("rule", ["host", "below_mean"])
def test_moved_pictures_bring_their_vectors_in_the_host_along(rule):
    """Contrasts that are near in the host's own space, mined again for pictures that have moved, or for units that
    have."""
    acts, emb, txt, groups, _ = world()
    acts = acts[:, [0, 1, 2, 7, 12, 13, 14, 15]]  # units without ties among their positives
    host = normalize(torch.randn(len(acts), 6, generator=torch.Generator().manual_seed(8)), dim=1)
    given = (8, mine.ContrastRule(rule, host_similarity=0.0, host_limit=8), groups)
    mined = assign.Evidence.mined(acts, emb, txt, *given, host_emb=host)
    source = Series.of_groups(groups).deal(torch.Generator().manual_seed(5))
    permuted = torch.empty_like(acts)
    permuted[source] = acts
    anew = assign.Evidence.mined(permuted, emb, txt, *given, host_emb=host)
    (moved,), (plain,) = (assign.score(["csp"], e).values() for e in (Moving(mined).move(source), anew))
    assert torch.allclose(moved, plain, atol=2e-5, equal_nan=True) and not bool(plain.isnan().all())


@pytest.mark.parametrize("square", [0, 2048], ids=["pair by pair", "one product"])
@pytest.mark.parametrize("sparse", [False, True], ids=["dense", "sparse"])
@pytest.mark.parametrize(
    "name", ["csp", "csp_0.5", "semanticlens", "pearson", "cos_cubed", "contrast_evidence", "summed_evidence"]
)
def test_short_cuts_of_moved_pictures_equal_the_scorer_on_them(name, sparse, square, monkeypatch):
    monkeypatch.setattr(bundle, "SQUARE", square)
    acts, emb, txt, groups, _ = world()
    acts = torch.cat([acts, torch.zeros(len(acts), 1)], dim=1)  # and a silent unit
    evidence = assign.Evidence.mined(acts.to_sparse_csr() if sparse else acts, emb, 1.5 * txt, 8, groups=groups)
    series, g = Series.of_groups(groups), torch.Generator().manual_seed(3)
    quick, moving = SCORERS[name].moved(evidence), Moving(evidence)
    for _ in range(3):
        seen = moving.move(series.deal(g))
        (whole,) = assign.score([name], seen).values()
        expected = torch.where(whole.isnan().all(dim=1), torch.nan, whole.nan_to_num(nan=-9.0).amax(dim=1))
        assert torch.allclose(quick(seen), expected, atol=2e-6, equal_nan=True) and bool(expected[-1].isnan())


@given(seed=st.integers(0, 10_000), rule=st.sampled_from(["below_mean", "zero", "below_quantile"]))
@settings(max_examples=25)
def test_contrasts_of_moved_pictures_are_those_of_an_exact_search(seed, rule):
    """Series of any sizes, so that pictures are shown twice or not at all; units with few candidates and with many."""
    g = torch.Generator().manual_seed(seed)
    images = int(torch.randint(20, 150, (1,), generator=g))
    of = torch.randint(images // 2, (images,), generator=g)
    emb = normalize(torch.randn(images, 6, generator=g), dim=1)
    acts = (torch.randn(images, 12, generator=g) - torch.linspace(-3, 2, 12)).clamp(min=0)
    evidence = assign.Evidence.mined(acts, emb, torch.eye(6), 5, mine.ContrastRule(rule), of)
    moving, source = Moving(evidence), Series.of_groups(of).deal(g)
    moved = moving.move(source)
    searched = (evidence.acts, emb[source], evidence.positive_ids, evidence.rule, of[source])
    ids, similarity = choose_contrasts(*searched, apart=True)
    assert torch.equal(ids < 0, moved.contrast_ids < 0)
    found = (moved.images_of(moved.positive_ids) * moved.images_of(moved.contrast_ids)).sum(dim=2)
    assert torch.allclose(found[ids >= 0], similarity[ids >= 0], atol=1e-6)
    shown_once = source.bincount(minlength=images)[source[ids.clamp(min=0)]] == 1
    assert torch.equal(ids[shown_once], moved.contrast_ids[shown_once])


@pytest.mark.parametrize("name", ["soft_wpmi", "wpmi"])
def test_wpmi_keeps_the_other_units_as_they_are_where_series_move(name):
    acts, emb, txt, groups, _ = world(images=120, units=15)
    acts = acts[:, [0, 1, 2, 12, 13, 14]]
    evidence = assign.Evidence.mined(acts, emb, txt, 8, groups=groups)
    source = Series.of_groups(groups).deal(torch.Generator().manual_seed(4))
    best = SCORERS[name].moved(evidence)(Moving(evidence).move(source))
    for unit in range(acts.shape[1]):
        moved = acts.clone()
        moved[source, unit] = acts[:, unit]
        (scores,) = assign.score([name], assign.Evidence.mined(moved, emb, txt, 8)).values()
        assert float(scores[unit].max()) == pytest.approx(float(best[unit]), abs=1e-4)


def test_one_series_has_no_other_place():
    acts, emb, txt, _, _ = world()
    evidence = assign.Evidence.mined(acts[:, 12:], emb, txt, 8, series=torch.zeros(150, dtype=torch.long))
    assert bool((null_percentile("pearson", evidence, n=5) == 0).all())


@pytest.mark.parametrize("share, lower", [(5e-7, 0.0), (5e-6, 1.0), (0.0, 0.0), (-5e-6, 0.0)])
def test_a_null_score_that_differs_by_rounding_is_a_tie(monkeypatch, share, lower):
    """Sums in another order differ in the last digits; only a score that is lower by more counts as lower."""
    acts, emb, txt, groups, _ = world()
    own = torch.linspace(-3, 3, acts.shape[1])
    close = own - share * own.abs()
    near = SimpleNamespace(name="near", needs="images", null=True, moved=lambda evidence: lambda seen: close)
    near.under = lambda frame: lambda draw, block: close[block.units]
    monkeypatch.setattr(nulls, "chosen", lambda names: [near])
    for of in (None, groups):  # single images are permuted; whole series are moved
        evidence = assign.Evidence.mined(acts, emb, txt, 8, groups=of)
        found = nulls.null_percentiles(["near"], evidence, n=4, best={"near": own})["near"]
        known = found.isfinite() & (own != 0)
        assert int(known.sum()) > 5 and (found[known] == lower).all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_best_of_each_row_knows_holes_and_infinities(dtype):
    """Rows with NaN take a way of their own; each is what filling all holes first would give."""
    g = torch.Generator().manual_seed(0)
    scores = torch.randn(400, 7, generator=g).to(dtype)
    kinds = torch.tensor([torch.nan, torch.inf, -torch.inf, 0.0], dtype=dtype)
    scores = torch.where(torch.rand(400, 7, generator=g) < 0.5, kinds[torch.randint(4, (400, 7), generator=g)], scores)
    scores[:4] = kinds[:, None]
    filled = scores.nan_to_num(nan=-torch.inf).amax(dim=1)
    expected = filled.masked_fill(filled == -torch.inf, torch.nan)
    before = scores.clone()
    assert torch.equal(best_of(scores).nan_to_num(nan=7), expected.nan_to_num(nan=7)) and expected.isnan().any()
    assert torch.equal(scores.nan_to_num(nan=7), before.nan_to_num(nan=7))  # its argument is left alone
    assert torch.equal(best_of(scores.nan_to_num(nan=1)), scores.nan_to_num(nan=1).amax(dim=1))  # no holes
