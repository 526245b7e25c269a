"""Label sets: they hold the label that more images would name, as often as stated, and are no larger than needed."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn.functional import normalize

from saelab.acts import columns
from saelab.errors import UserError
from saelab.label import assign
from saelab.label.scorers.registry import SCORERS
from saelab.label.sets import FEWEST, in_set, label_sets, repeat_rows, resample

UNITS = 30


def world(images, seed=0, draw=0, synonyms=4, spread=0.35, concepts=8, series=1, d=32):
    """Activations, image and label embeddings, series: units that fire for a concept with near-equal names.

    `seed` decides concepts, names and units, `draw` the images. A name differs from its concept by `spread`, and each
    unit likes something of its own besides its concept. Images of a series look alike and drive units alike.
    """
    g = torch.Generator().manual_seed(seed)
    core = normalize(torch.randn(concepts, d, generator=g), dim=1)
    off = normalize(torch.randn(concepts, synonyms, d, generator=g), dim=2)
    names = normalize(core[:, None] + spread * off, dim=2).flatten(0, 1)
    labels = torch.cat([names, normalize(torch.randn(12, d, generator=g), dim=1)])
    wanted = torch.randint(concepts, (UNITS,), generator=g)
    taste = normalize(torch.randn(UNITS, d, generator=g), dim=1)
    g = torch.Generator().manual_seed(1000 * seed + draw + 10**6)
    shown = torch.randint(concepts, (images // series,), generator=g)
    look = normalize(torch.randn(len(shown), d, generator=g), dim=1)
    drive = 1 + 0.5 * torch.randn(len(shown), UNITS, generator=g) + 1.5 * look @ taste.T
    fires = (shown[:, None] == wanted) * drive + 0.3 * torch.randn(len(shown), UNITS, generator=g)
    of = torch.arange(len(shown)).repeat_interleave(series)
    own = normalize(torch.randn(len(of), d, generator=g), dim=1)
    emb = normalize(0.8 * core[shown][of] + 0.9 * look[of] + 0.2 * own, dim=1)
    return (fires - 0.5).relu()[of], emb, labels, of


def evidence(world, k=15):
    acts, emb, labels, of = world
    return assign.Evidence.mined(acts, emb, labels, k, None, of)


def sets_of(many, images, scorer="pearson", winner=None, **spec):
    """Share of sets that hold the label best on many images, sizes of sets, share of labels that are that one."""
    hit, size, first = [], [], []
    for seed in range(many):
        best = winner(seed, spec) if winner else assign.pearson(*world(4000, seed, 99, **spec)[:3]).argmax(1)
        found = label_sets(evidence(world(images, seed, **spec)), scorer, resamples=100, seed=seed)
        assert None not in found
        hit += [int(b) in s for b, s in zip(best, found)]
        first += [int(b) == s[0] for b, s in zip(best, found)]
        size += [len(s) for s in found]
    return np.mean(hit), np.array(size), np.mean(first)


@pytest.mark.parametrize("labels", [2, 5, 12])
def test_labels_that_are_equal_are_covered_as_often_as_stated(labels):
    """The hardest case: any of them may be called the best, and no rival is behind it."""
    g = torch.Generator().manual_seed(labels)
    own = torch.randn(400, labels, generator=g)
    made = own + torch.randn(200, 400, labels, generator=g)
    covered = float(in_set(own, made)[:, 0].float().mean())
    assert 0.86 <= covered <= 0.95
    far = torch.cat([own, own.new_full((400, 4), -12.0)], dim=1)  # labels far behind change nothing
    kept = in_set(far, torch.cat([made, -12 + torch.randn(200, 400, 4, generator=g)], dim=2))
    assert abs(float(kept[:, 0].float().mean()) - covered) < 0.03 and not kept[:, labels:].any()


@pytest.mark.parametrize(
    ("images", "spec"),
    [
        (150, {}),
        (150, {"synonyms": 8, "spread": 0.05, "concepts": 4}),  # names that only luck tells apart
        (600, {"series": 4}),
    ],
)
def test_sets_hold_the_label_that_many_images_name(images, spec):
    covered, size, first = sets_of(4, images, **spec)
    assert covered >= 0.85 and first <= 0.75  # a label alone is right far less often
    assert size.mean() < 4 + spec.get("synonyms", 4)


def test_images_of_a_series_count_once():
    """Taken as independent, four shots of each scene make sets that are too small."""
    acts, emb, labels, of = world(480, series=4)
    whole, apart = (
        label_sets(assign.Evidence.mined(acts, emb, labels, 15, None, groups), "pearson", resamples=100)
        for groups in (of, None)
    )
    assert sum(map(len, whole)) > 1.3 * sum(map(len, apart))


def test_more_images_make_smaller_sets():
    sizes = [sets_of(2, n)[1].mean() for n in (100, 400, 1600)]
    assert sizes[0] > 1.15 * sizes[1] and sizes[1] > 1.15 * sizes[2]


@pytest.mark.parametrize("scorer", ["pearson", "cos_cubed", "contrast_evidence", "csp", "semanticlens"])
def test_a_clear_label_stands_alone_whoever_scores(scorer):
    """One name a concept, names far apart: nothing else may be meant."""
    found = label_sets(evidence(world(400, synonyms=1, spread=0.0)), scorer, resamples=40)
    assert np.mean([len(s) == 1 for s in found]) >= 0.9


def test_saelabs_own_scorer_is_covered_on_draws_of_as_many_images():
    """It weighs the whole set more the more images there are, so the label meant is the best of the mean score."""

    def winner(seed, spec):
        draws = [evidence(world(200, seed, 10 + i, **spec)) for i in range(12)]
        return sum(assign.score(["contrast_evidence"], e)["contrast_evidence"] for e in draws).argmax(1)

    covered, _, first = sets_of(2, 200, "contrast_evidence", winner)
    assert covered >= 0.85 > first


@pytest.mark.parametrize("name", [name for name, scorer in SCORERS.items() if scorer.null is not None])
def test_the_label_itself_is_in_the_set_of_every_scorer(name):
    acts, emb, labels, of = world(60)
    g = torch.Generator().manual_seed(5)
    more = {"concepts": torch.rand(60, len(labels), generator=g) < 0.3, "filled_emb": labels, "template_emb": labels[0]}
    acts[:, 0], acts[:, 1], acts[FEWEST - 1 :, 2], acts[3, 3] = 0, 2.5, 0, torch.nan
    seen = assign.Evidence.mined(acts, emb, labels, 8, None, of, **more)
    best = assign.ranking(assign.score([name], seen)[name]).label.tolist()
    found = label_sets(seen, name, resamples=5)
    assert found == label_sets(seen, name, resamples=5)
    assert found[0] is found[1] is found[2] is found[3] is None
    assert all(s is None or s[0] == b for s, b in zip(found, best))
    assert sum(s is not None for s in found) > UNITS / 2


@pytest.mark.parametrize("kind", ["few series", "rare units", "dead units", "one label"])
@pytest.mark.parametrize("name", [name for name, scorer in SCORERS.items() if scorer.null is not None])
def test_worlds_in_which_no_unit_has_a_set_or_a_rival(name, kind):
    acts, emb, labels, of = world(60)
    acts, labels = acts[:, :6], labels[:1] if kind == "one label" else labels[:6]
    acts = {"rare units": acts * (torch.arange(60) < FEWEST - 1)[:, None], "dead units": 0 * acts}.get(kind, acts)
    g = torch.Generator().manual_seed(5)
    more = {"concepts": torch.rand(60, len(labels), generator=g) < 0.3, "filled_emb": labels, "template_emb": labels[0]}
    seen = assign.Evidence.mined(acts, emb, labels, 8, None, of, **more)
    seen = seen.but(series=torch.arange(60) // 15) if kind == "few series" else seen
    found = label_sets(seen, name, resamples=5)
    assert all(s in (None, [0]) for s in found)
    assert kind == "one label" or found == [None] * 6


@settings(max_examples=6)
@given(st.integers(0, 2**16))
def test_a_label_without_a_score_takes_no_part(seed):
    """Rank reorder gives -inf where a label is unlike a unit's images: in no set, and no rival is ruled out less."""
    acts, emb, labels, of = world(120, seed)
    g = torch.Generator().manual_seed(seed)
    common = normalize(torch.randn(emb.shape[1], generator=g), dim=0)
    emb, labels = normalize(emb + common, dim=1), normalize(labels[:5] + 2 * common, dim=1)
    low = normalize(0.1 * torch.randn(3, emb.shape[1], generator=g) - common, dim=1)
    both = torch.cat([low[:1], labels, low[1:]])
    with_, without = (evidence((acts[:, :8], emb, some, of)) for some in (both, labels))
    scores = assign.score(["rank_reorder"], with_)["rank_reorder"]
    assert not bool((scores[:, [0, 6, 7]] > -torch.inf).any()) and bool(scores[:, 1:6].isfinite().any())
    found = (label_sets(e, "rank_reorder", resamples=30, seed=seed) for e in (with_, without))
    for wider, alone in zip(*found, strict=True):
        assert (wider is None) == (alone is None)
        assert wider is None or {i + 1 for i in alone} <= set(wider) <= {1, 2, 3, 4, 5}


@settings(max_examples=40)
@given(st.integers(0, 2**16), st.integers(1, 12), st.integers(1, 6))
def test_rows_are_repeated_alike_in_both_layouts(seed, images, units):
    g = torch.Generator().manual_seed(seed)
    acts = torch.rand(images, units, generator=g) * (torch.rand(images, units, generator=g) < 0.4)
    counts = torch.randint(4, (images,), generator=g)
    counts[0] += 1
    sparse = repeat_rows(columns(acts.to_sparse_csr()), counts)
    assert torch.equal(sparse.dense(), repeat_rows(acts, counts))
    assert torch.equal(sparse.dense(), torch.cat([acts[i : i + 1].expand(int(n), -1) for i, n in enumerate(counts)]))


def test_a_resample_of_every_image_once_is_the_evidence():
    seen = evidence(world(120))
    same = resample(seen, torch.ones(120, dtype=torch.long))
    for name in ("acts", "positive_ids", "positive_values", "contrast_ids", "groups", "sims"):
        assert torch.equal(getattr(same, name), getattr(seen, name))


def test_no_image_is_a_contrast_of_its_copy():
    seen = evidence(world(80))
    counts = torch.full((80,), 3)
    again = resample(seen.but(groups=None), counts)
    of = torch.arange(80).repeat_interleave(3)
    there = again.contrast_ids >= 0
    assert there.any() and (of[again.positive_ids[there]] != of[again.contrast_ids[there]]).all()


def test_mistakes_are_one_line():
    seen = evidence(world(60))
    for share, name, expected in [(0, "pearson", "above 0 and below 1"), (0.9, "decoder_direction", "pooled")]:
        with pytest.raises(UserError, match=expected):
            label_sets(seen, name, share)
    with pytest.raises(UserError, match="resamples=1"):
        label_sets(seen, "pearson", resamples=1)
