"""A scorer is one row: everything that saelab says and does with it comes from there."""

import re

import pytest
import torch
from test_pipeline import image_set, labelled

from saelab import planted
from saelab.errors import UserError
from saelab.label import assign, exemplars, nulls, pipeline, search
from saelab.report import glossary, methods, references


def strongest(evidence: assign.Evidence):
    """Scores by the strongest image alone."""
    first = evidence.positive_ids[:, :1]
    return lambda units: evidence.sims[first[units, 0].clamp(min=0)].masked_fill(first[units] < 0, torch.nan)


TOY = assign.Scorer(
    "toy",
    "positives",
    "Toy scorer",
    "The similarity of the strongest image alone with the label.",
    strongest,
    citation=assign.Citation("Doe, 2026", "@misc{doe2026toy,\n  title = {Strongest},\n  author = {Doe, Jane}\n}"),
    alone=True,
    explain=lambda scores, e, labels: [{"strongest": i} for i in e.positive_ids[:, 0].tolist()],
)


@pytest.fixture
def toy(monkeypatch):
    monkeypatch.setitem(assign.SCORERS, "toy", TOY)


def test_a_new_scorer_is_one_object(toy):
    """Scores, ranks, margins, nulls, what its authors add, words on pages, its citation, search: from the row alone."""
    world = planted.make(planted.WorldSpec(images=300, units=12, parents=10, live=5, children=3, dim=64, seed=1))
    images = image_set(300)
    settings = pipeline.LabelSettings(("toy", "pearson"), "toy", nulls=20, meanings=False)
    rows, found = labelled(world, images, settings=settings, mining=exemplars.MiningSettings(k=3, rare_below=1))
    words = [f"label {i}" for i in range(len(world.label_emb))]
    for unit, row in enumerate(rows):
        own = row["scores"]["toy"]
        scores = world.image_emb[found.positives[unit, 0]] @ world.label_emb.T
        assert row["label"] == own["label"] == words[int(scores.argmax())] and row["final"] == "toy"
        assert own["score"] == pytest.approx(float(scores.max()), abs=1e-6)
        assert own["rank"] == 1 and own["margin"] >= 0 and 0 <= own["null_percentile"] <= 1 and "strongest" in own
    term = glossary.terms(["toy", "csp_0.5", "gone"])["scorer:toy"]
    assert term == {"title": "Toy scorer", "text": TOY.explanation, "source": "Doe, 2026"}
    assert references.of_scorer("toy") == "doe2026toy" and "Jane" in references.entries()["doe2026toy"]
    evidence = assign.Evidence.mined(world.acts, world.image_emb, world.label_emb, 3)
    hits = search.text_to_units(world.image_emb[evidence.positive_ids[4, 0]], evidence, "toy", top=12)
    assert 4 in hits.units[:3].tolist()


def test_the_null_of_a_new_scorer_is_the_scorer_on_permuted_activations(toy):
    """The best label of one random image is no better than another's: percentiles of noise are even."""
    g = torch.Generator().manual_seed(0)
    emb, txt = (torch.nn.functional.normalize(torch.randn(n, 8, generator=g), dim=1) for n in (60, 9))
    evidence = assign.Evidence.mined(torch.rand(60, 300, generator=g), emb, txt, 2)
    share = nulls.null_percentile("toy", evidence, n=100, seed=1)
    assert float(share.mean()) == pytest.approx(0.5, abs=0.06)


def test_the_methods_paragraph_cites_a_new_scorer(toy, run_of_toy):
    assert "toy [@doe2026toy]" in methods.paragraph(run_of_toy)
    assert "@misc{doe2026toy," in methods.bibtex(run_of_toy)


@pytest.fixture
def run_of_toy(monkeypatch):
    """A run of which only the sentence about labels is asked for."""
    from types import SimpleNamespace

    for part in ("_mined", "_measured"):
        monkeypatch.setattr(methods, part, lambda run: "")
    images = type("Images", (), {"counts": {"mine": 3}, "name": "x", "fingerprint": "0" * 64, "__len__": lambda _: 3})()
    basis = SimpleNamespace(labels=[{"scores": {"toy": {}}, "final": "toy"}], recipes={}, name="neuron")
    monkeypatch.setattr(methods, "_grouped", lambda bases: [])
    facts = {"host": "h", "encoder": "e", "version": "0", "created": "2026", "config": {}}
    return SimpleNamespace(images=images, facts=facts, bases=[basis], comparisons=[])


@pytest.mark.parametrize("scorer", assign.SCORERS.values(), ids=list(assign.SCORERS))
def test_every_row_says_what_it_is_and_where_it_comes_from(scorer):
    assert scorer.title and len(scorer.explanation) > 30 and scorer.explanation.endswith(".") and scorer.reference
    if scorer.citation is not None:
        entry = scorer.citation.bibtex
        assert entry.count("{") == entry.count("}") and re.match(r"@(article|inproceedings)\{\w+,\n", entry)
        assert all(f"  {name} = {{" in entry for name in ("title", "author", "year"))
        assert references.entries()[scorer.citation.key] == entry
        assert scorer.citation.key.removeprefix("doe")[:3] in entry.lower()
    else:  # ours, a textbook's, or an ablation of somebody else's
        assert scorer.source.startswith(("docs/", "ablation of"))


def test_keys_of_citations_are_distinct_and_equal_keys_are_one_entry():
    cited = [s.citation for s in assign.SCORERS.values() if s.citation is not None]
    assert len({c.key for c in cited}) == len({c.bibtex for c in cited})
    assert {"ahn2024www", "oikarinen2024linear", "rao2024discover", "oikarinen2023clipdissect"} <= {
        c.key for c in cited
    }


def test_scorers_that_judge_alone_do_not_hear_the_other_labels():
    """Dropping half of the vocabulary changes no score of the other half; of those that compete it does."""
    world = planted.make(planted.WorldSpec(images=300, units=8, parents=10, live=5, children=3, dim=32, seed=2))
    whole = assign.Evidence.mined(world.acts, world.image_emb, world.label_emb, 5)
    half = whole.but(label_emb=world.label_emb[::2])
    for name in ("pearson", "cos_cubed", "csp", "csp_0.5", "semanticlens", "set_projection", "centred_mean"):
        assert assign.SCORERS[name].alone
        (a,), (b,) = (assign.score([name], e).values() for e in (whole, half))
        assert torch.allclose(a[:, ::2], b, atol=1e-6, equal_nan=True), name
    for name in ("contrast_evidence", "soft_wpmi", "wpmi", "falcon", "clip_dissect_neurolens"):
        assert not assign.SCORERS[name].alone
        (a,), (b,) = (assign.score([name], e).values() for e in (whole, half))
        assert not torch.allclose(a[:, ::2], b, atol=1e-4, equal_nan=True), name


def test_an_unknown_need_is_named():
    with pytest.raises(UserError, match="needs=pictures: expected one of positives, pairs"):
        assign.Scorer("new", "pictures", "New", "Nothing.", lambda e: lambda units: e.sims)


def test_an_unknown_scorer_is_told_with_the_nearest():
    with pytest.raises(UserError, match="did you mean semanticlens"):
        assign.score(["semanticlense"], assign.Evidence.mined(torch.rand(4, 1), torch.eye(4), torch.eye(4), 1))
