"""Scorers and nulls that look at some labels at a time, and hold no similarities, give what they give at once."""

import pytest
import torch

from saelab import planted
from saelab.label import assign
from saelab.label.nulls import null_percentiles
from saelab.label.scorers import evidence as bundle
from saelab.label.scorers import products, registry

SCORERS = ("contrast_evidence", "pearson", "cos_cubed")
EVERY = (*SCORERS, "summed_evidence")
IMAGES, UNITS, LABELS = 400, 37, 60


def evidence(layout: str, series: bool = False) -> assign.Evidence:
    """Sparse units, of which one is dense, one below 0 in part and one silent; a label that is like every image."""
    world = planted.make(planted.WorldSpec(IMAGES, UNITS, parents=6, live=4, children=9, dim=32, sparse=0.5))
    acts, labels = world.acts.clone(), world.label_emb.clone()
    acts[:, 2] = torch.rand(IMAGES, generator=torch.Generator().manual_seed(1)) + 0.3
    acts[:, 3] -= 0.1 * (acts[:, 4] > 0)
    acts[:, 5] = 0
    image_emb = torch.cat([world.image_emb, torch.ones(IMAGES, 1)], dim=1)
    labels = torch.cat([labels, torch.zeros(LABELS, 1)], dim=1)
    labels[7] = 0
    labels[7, -1] = 1
    groups = torch.arange(IMAGES) // 4 if series else None
    return assign.Evidence.mined(
        acts.to_sparse_csr() if layout == "csr" else acts, image_emb, labels, 12, series=groups
    )


@pytest.mark.parametrize("layout", ["dense", "csr"])
@pytest.mark.parametrize("at_once", [IMAGES * 7, IMAGES * 25])
def test_scores_in_parts_are_those_at_once(layout, at_once, monkeypatch):
    whole = assign.score(EVERY, evidence(layout))
    monkeypatch.setattr(products, "AT_ONCE", at_once)
    for runs in ("BLOCK", "AT_ONCE"):
        monkeypatch.setattr(registry, runs, LABELS * 17)
    for held in (0, IMAGES * LABELS):  # similarities computed when looked at, or held
        monkeypatch.setattr(bundle, "HELD", held)
        some = evidence(layout)
        assert isinstance(some.looked_at, products.Products) == (not held)
        for name, scores in assign.score(EVERY, some).items():
            torch.testing.assert_close(scores, whole[name], rtol=1e-4, atol=2e-5, equal_nan=True, msg=name)
        assert ("sims" in some.__dict__) == bool(held)  # nobody wrote them out


@pytest.mark.parametrize("name", SCORERS)
def test_similarities_are_not_computed_anew_for_every_few_units(name, monkeypatch):
    """What is kept of a unit's positives may allow few units at once; where labels come in parts, all go together."""
    looks = []
    look = products.Products.__getitem__
    monkeypatch.setattr(products.Products, "__getitem__", lambda self, at: (looks.append(at), look(self, at))[1])
    monkeypatch.setattr(products, "AT_ONCE", IMAGES * 25)
    monkeypatch.setattr(bundle, "HELD", 0)
    monkeypatch.setattr(registry, "BLOCK", LABELS * 2)  # two units, of 37
    some = evidence("csr")
    assign.score([name], some)
    once = len(looks)
    monkeypatch.setattr(registry, "AT_ONCE", LABELS * 13)  # three runs
    assign.score([name], some)
    parts = len(products.label_parts(IMAGES, LABELS))
    assert len(looks) - once == once + 2 * parts, "each run looks once at every part"
    monkeypatch.setattr(registry, "AT_ONCE", LABELS * 1000)
    (scorer,) = registry.chosen([name])
    monkeypatch.setattr(registry, "ENTRIES", int(some.acts.counts.sum()) // 3)
    assert registry.units_at_once(scorer, some) in (UNITS // 3, UNITS // 3 + 1), "what is kept of entries is bounded"


@pytest.mark.parametrize("layout", ["dense", "csr"])
@pytest.mark.parametrize("series", [False, True])
@pytest.mark.parametrize("at_once", [IMAGES * 25])
def test_nulls_in_parts_are_those_at_once(layout, series, at_once, monkeypatch):
    names = (*SCORERS, "csp")
    whole = null_percentiles(names, evidence(layout, series), 20)
    monkeypatch.setattr(products, "AT_ONCE", at_once)
    monkeypatch.setattr(bundle, "HELD", 0)
    some = evidence(layout, series)
    found = null_percentiles(names, some, 20)
    assert "sims" not in some.__dict__
    for name in names:
        torch.testing.assert_close(found[name], whole[name], rtol=0, atol=1e-9, equal_nan=True, msg=name)
        assert float(whole[name].nanmean()) > 0.5  # planted units beat chance


def test_products_are_the_similarities_some_at_a_time():
    some = evidence("csr")
    lazy = products.Products(some.image_emb, some.label_emb)
    assert lazy.shape == tuple(some.sims.shape) and len(lazy) == IMAGES and lazy.dtype == some.sims.dtype
    ids = torch.tensor([5, 5, 399, 0])
    torch.testing.assert_close(lazy[ids, slice(3, 9)], some.sims[ids, 3:9])
    torch.testing.assert_close(lazy[:, slice(None)], some.sims)
    parts = products.label_parts(IMAGES, LABELS, IMAGES * 7)
    assert parts[0] == slice(0, 7)
    assert torch.cat([torch.arange(LABELS)[part] for part in parts]).equal(torch.arange(LABELS))


def test_each_scorer_without_parts_still_finds_its_similarities(monkeypatch):
    whole = assign.score(["rank_reorder", "soft_wpmi"], evidence("csr"))
    monkeypatch.setattr(bundle, "HELD", 0)
    for name, scores in assign.score(whole, evidence("csr")).items():
        torch.testing.assert_close(scores, whole[name], equal_nan=True)
