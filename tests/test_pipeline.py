"""The labelling pipeline on planted worlds: right labels, right image ids, and no look at the held-out images."""

from dataclasses import replace as with_

import numpy as np
import pytest
import torch

from saelab import planted
from saelab.artifacts import digest
from saelab.errors import UserError
from saelab.images import ImageSet
from saelab.label import exemplars, pipeline
from saelab.label.scorers.frame import Draw, Frame
from saelab.label.scorers.registry import SCORERS
from saelab.label.settings import FEW, final_scorer
from saelab.label.vocabulary import pool
from saelab.units import UnitActivations

MINING = exemplars.MiningSettings()
SETTINGS = pipeline.LabelSettings(("csp", "semanticlens", "cos_cubed"), "csp", nulls=0, meanings=False)


def image_set(count: int, seed: int = 0) -> ImageSet:
    """Images that are never opened, in seeded splits."""
    splits = np.random.default_rng(seed).choice(["mine", "show", "test"], count, p=[0.8, 0.05, 0.15])
    files = tuple(f"{i}.png" for i in range(count))
    nothing = tuple(() for _ in files)
    return ImageSet("planted", None, files, (None,) * count, nothing, splits, np.arange(count), f"planted {seed}")


def labelled(world, images, acts=None, settings=SETTINGS, mining=MINING):
    words = pool([(f"label {i}", ("planted",)) for i in range(len(world.label_emb))])
    units = UnitActivations(world.acts if acts is None else acts, "planted", {})
    found = exemplars.find(units, images, world.image_emb, mining)
    evidence = pipeline.evidence(units, found, images, world.image_emb, world.label_emb, mining)
    return pipeline.assign_all(evidence, found, words, settings, "planted"), found


@pytest.fixture(scope="module")
def world():
    return planted.make(planted.WorldSpec(images=4000, units=200, dim=512, seed=3))


@pytest.fixture(scope="module")
def plain(world):
    images = image_set(4000)
    return images, *labelled(world, images)


def share_right(world, rows, scorer):
    names = [int(row["scores"][scorer]["label"].split()[1]) for row in rows]
    return np.mean([n in (a, b) for n, a, b in zip(names, world.label.tolist(), world.second.tolist())])


def test_csp_recovers_the_planted_labels_and_semanticlens_clearly_fewer(world, plain):
    _, rows, _ = plain
    assert share_right(world, rows, "csp") >= 0.95
    assert share_right(world, rows, "semanticlens") < share_right(world, rows, "csp") - 0.3
    assert [row["label"] for row in rows] == [row["scores"]["csp"]["label"] for row in rows]


def test_exemplars_are_image_ids_of_the_mine_split_and_fire_as_stated(world, plain):
    images, rows, found = plain
    mine = set(images.ids("mine").tolist())
    mean = world.acts[images.ids("mine")].double().mean(0)
    for unit, row in enumerate(rows):
        assert set(row["positives"]) <= mine and set(row["contrasts"]) - {-1} <= mine
        column = world.acts[:, unit]
        assert column[row["positives"]].tolist() == found.activations[unit].tolist()
        outside = column[sorted(mine - set(row["positives"]))]
        assert outside.max() <= column[row["positives"]].min()
        real = [i for i in row["contrasts"] if i >= 0]
        assert (column[real].double() < mean[unit]).all()
        assert row["fires_on"] == int((column[sorted(mine)] > 1e-6).sum())


def test_what_stands_in_held_out_images_changes_nothing(world, plain):
    images, rows, _ = plain
    held_out = torch.as_tensor(np.setdiff1d(np.arange(4000), images.ids("mine")))
    acts = world.acts.clone()
    acts[held_out] = 100 * torch.rand(len(held_out), acts.shape[1], generator=torch.Generator().manual_seed(0))
    assert labelled(world, images, acts)[0] == rows


def test_the_hosts_own_space_can_choose_contrasts(world):
    """Rule `host`: pairs are near in the host's vectors, and their nulls are mined in that space too."""
    images = image_set(4000)
    host = torch.randn(4000, 12, generator=torch.Generator().manual_seed(8)).abs()
    mining = exemplars.MiningSettings(k=5, rule="host")
    units = UnitActivations(world.acts[:, :6], "planted", {})
    found = exemplars.find(units, images, world.image_emb, mining, host)
    unit = torch.nn.functional.normalize(host, dim=1)
    pairs = [(p, n) for row in zip(found.positives, found.contrasts) for p, n in zip(*row) if n >= 0]
    assert pairs
    mine = torch.as_tensor(images.ids("mine"))
    for p, n in pairs:
        own = float(unit[p] @ unit[n])
        assert own >= 0.3 and own > float((unit[mine] @ unit[p]).quantile(0.9))
    words = pool([(f"label {i}", ("planted",)) for i in range(len(world.label_emb))])
    settings = pipeline.LabelSettings(("csp",), "csp", nulls=2, meanings=False)
    evidence = pipeline.evidence(units, found, images, world.image_emb, world.label_emb, mining, host)
    rows = pipeline.assign_all(evidence, found, words, settings, "planted")
    assert all(row["scores"]["csp"]["null_percentile"] is not None for row in rows)


def test_sparse_and_dense_activations_get_the_same_labels(world, plain):
    images, rows, _ = plain
    sparse, _ = labelled(world, images, world.acts.to_sparse_csr())
    assert [row["positives"] for row in sparse] == [row["positives"] for row in rows]
    assert [row["contrasts"] for row in sparse] == [row["contrasts"] for row in rows]
    for scorer in SETTINGS.scorers:
        assert [r["scores"][scorer]["label"] for r in sparse] == [r["scores"][scorer]["label"] for r in rows]


@pytest.mark.parametrize("name", list(SCORERS))
def test_every_scorer_can_be_final_and_those_without_a_null_do_not_abstain(name):
    """`decoder_direction` and `netdissect` do not look at pooled activations: no percentile, none to abstain by."""
    small = planted.make(planted.WorldSpec(200, 6, parents=3, live=2, children=2, dim=16, seed=1))
    images = image_set(200)
    words = pool([(f"label {i}", ("planted",)) for i in range(len(small.label_emb))])
    units = UnitActivations(small.acts, "planted", {})
    found = exemplars.find(units, images, small.image_emb, MINING)
    evidence = pipeline.evidence(units, found, images, small.image_emb, small.label_emb, MINING)
    g = torch.Generator().manual_seed(0)
    size = (evidence.n_images, len(small.label_emb))
    evidence = evidence.but(
        concepts=torch.rand(size, generator=g) > 0.7,
        decoder=torch.randn(6, 16, generator=g),
        filled_emb=small.label_emb,
        template_emb=small.label_emb.mean(dim=0),
        maps=torch.rand(size[0], 6, 4, 4, generator=g),
        masks=torch.rand(*size, 8, 8, generator=g) > 0.7,
    )
    settings = pipeline.LabelSettings((name,), name, nulls=5, meanings=False)
    rows = pipeline.assign_all(evidence, found, words, settings, "planted")
    labelled = [row for row in rows if row["label"] is not None]
    assert labelled
    for row in labelled:
        percentile = row["scores"][name]["null_percentile"]
        assert (percentile is None) == (SCORERS[name].null is None)
        assert percentile is not None or not row["abstained"]


def test_units_without_a_meaning_get_a_status_and_no_label(world):
    acts = world.acts[:, :5].clone()
    acts[:, 0] = 0
    acts[:, 1] = 2.5
    acts[7, 2] = torch.nan
    acts[:, 3] = 0
    images = image_set(4000)
    acts[images.ids("mine")[:4], 3] = torch.tensor([3.0, 2.0, 1.0, 0.5])
    acts[7, 2] = torch.nan if images.splits[7] == "mine" else acts[7, 2]
    acts[images.ids("mine")[9], 2] = torch.nan
    rows, _ = labelled(world, images, acts)
    assert [row["status"] for row in rows][:4] == ["dead", "constant", "invalid", "rare"]
    assert [row["label"] is None for row in rows] == [True, True, True, False, False]
    assert all(row["abstained"] for row in rows[:3])


def test_units_without_a_contrast_are_told_and_get_the_labels_that_need_none(world):
    """Rule `zero` and a unit that is never zero: no pair, so no CSP; whole-set scorers go on."""
    images = image_set(4000)
    signed = world.acts[:, 1] - world.acts[:, 1].quantile(0.7) - 1e-4
    acts = torch.stack([world.acts[:, 0], signed], dim=1)
    settings = pipeline.LabelSettings(("pearson", "csp"), "pearson", nulls=0)
    rows, found = labelled(world, images, acts, settings, exemplars.MiningSettings(k=5, rule="zero"))
    assert [row["status"] for row in rows] == ["ok", "no_contrast"]
    assert bool((found.contrasts[1] == -1).all()) and bool((found.contrasts[0] >= 0).all())
    assert set(rows[0]["scores"]) == {"pearson", "csp"} and set(rows[1]["scores"]) == {"pearson"}
    assert rows[1]["label"] is not None


def test_a_random_unit_abstains_and_a_planted_one_does_not(world):
    images = image_set(4000)
    noise = torch.rand(4000, 40, generator=torch.Generator().manual_seed(5))
    acts = torch.cat([world.acts[:, :40], noise], dim=1)
    rows, _ = labelled(
        world, images, acts, pipeline.LabelSettings(("cos_cubed",), "cos_cubed", nulls=100, meanings=False)
    )
    abstained = np.array([row["abstained"] for row in rows])
    assert abstained[:40].mean() <= 0.05
    assert abstained[40:].mean() >= 0.8  # 95 % expected; 0.8 is four standard errors below


def test_rivals_percentiles_stand_on_the_first_permutations_of_those_that_decide(world):
    few = planted.make(planted.WorldSpec(images=300, units=12, parents=12, live=4, children=3, dim=32, seed=3))
    noise = torch.rand(300, 12, generator=torch.Generator().manual_seed(5))
    acts = torch.cat([few.acts, noise], dim=1)
    settings = pipeline.LabelSettings(("pearson", "csp"), "pearson", nulls=20, rival_nulls=7, meanings=False)
    rows, _ = labelled(few, image_set(300), acts, settings)
    rival_first, _ = labelled(few, image_set(300), acts, with_(settings, final="csp", nulls=7))
    both, _ = labelled(few, image_set(300), acts, with_(settings, rival_nulls=99))  # no more than the final's
    of = lambda some, name: np.array([row["scores"][name]["null_percentile"] for row in some])  # noqa: E731
    assert (of(rows, "csp") == of(rival_first, "csp")).all() and len(np.unique(of(rows, "csp"))) > 2
    assert (of(rows, "pearson") == of(both, "pearson")).all() and (of(rows, "csp") != of(both, "csp")).any()
    for some, name, n in ((rows, "pearson", 20), (rows, "csp", 7), (both, "csp", 20)):
        assert np.allclose(of(some, name) * n, (of(some, name) * n).round(), atol=1e-6)
    assert all(
        row["scores"]["csp"]["null_percentile"] is None
        for row in labelled(few, image_set(300), acts, with_(settings, rival_nulls=0))[0]
    )


def test_rows_have_label_sets_where_a_setting_asks_and_else_not_even_the_field(world):
    few = planted.make(planted.WorldSpec(images=300, units=12, parents=12, live=4, children=3, dim=32, seed=3))
    few.acts[:, 0] = 0
    plain = pipeline.LabelSettings(("pearson", "csp"), "pearson", nulls=0, meanings=False)
    rows, _ = labelled(few, image_set(300), settings=plain)
    asked, _ = labelled(few, image_set(300), settings=with_(plain, sets=0.9))
    sets = [row.pop("label_set") for row in asked]
    assert asked == rows and not any("label_set" in row for row in rows)
    assert sets[0] is None and all(found is None or found[0] == row["label"] for found, row in zip(sets, rows))
    assert any(found and len(found) > 1 for found in sets)
    assert digest(with_(plain, sets=0.9)) != digest(plain)


def test_a_unit_of_two_concepts_has_two_meanings(world):
    images = image_set(4000)
    settings = pipeline.LabelSettings(("csp",), "csp", nulls=0)
    rows, _ = labelled(world, images, settings=settings)
    two = [row for row, kind in zip(rows, world.kind.tolist()) if planted.KINDS[kind] == "two"]
    one = [row for row, kind in zip(rows, world.kind.tolist()) if planted.KINDS[kind] != "two"]
    split = lambda some: np.mean([len(row["meanings"]) == 2 for row in some])  # noqa: E731
    assert split(two) > 0.5 and split(one) < 0.05  # a parent with its children is one meaning too
    for row in rows:
        assert {i for m in row["meanings"] for i in m["positives"]} <= set(row["positives"])
        assert sum(m["share"] for m in row["meanings"]) == pytest.approx(1)


@pytest.mark.parametrize(
    ("change", "word"),
    [
        (lambda w: labelled(w, image_set(30)), "k=30"),
        (lambda w: pipeline.check(pipeline.LabelSettings(("csp", "nope"))), "nope"),
        (lambda w: pipeline.check(pipeline.LabelSettings(("csp",), "pearson")), "label.final=pearson: is not among"),
        (lambda w: pipeline.check(pipeline.LabelSettings((), "pearson")), "at least one scorer"),
        (
            lambda w: pipeline.check(pipeline.LabelSettings(("pearson",), "pearson", sets=1.0)),
            "label.sets=1.0: expected",
        ),
        (lambda w: pipeline.check(pipeline.LabelSettings(("netdissect",), "netdissect", sets=0.9)), "label.sets=0.9"),
        (lambda w: pipeline.check(with_(SETTINGS, final=7)), "label.final=7: expected a word"),
        (
            lambda w: pipeline.check(with_(SETTINGS, nulls="abc")),
            "label.nulls=abc: expected a whole number of at least 0",
        ),
        (lambda w: pipeline.check(with_(SETTINGS, nulls=-1)), "label.nulls=-1"),
        (lambda w: pipeline.check(with_(SETTINGS, runners_up=True)), "label.runners_up=True"),
        (lambda w: pipeline.check(with_(SETTINGS, seed=-1)), "label.seed=-1"),
        (lambda w: pipeline.check(with_(SETTINGS, abstain_below=2)), "label.abstain_below=2: .* from 0 to 1"),
        (lambda w: pipeline.check(with_(SETTINGS, renormalize="maybe")), "label.renormalize=maybe: expected true or"),
        (lambda w: exemplars.check(image_set(100), with_(MINING, k=2.5)), "label.mining.k=2.5: expected a whole"),
        (lambda w: exemplars.check(image_set(100), with_(MINING, k=0)), "label.mining.k=0"),
        (lambda w: exemplars.check(image_set(100), with_(MINING, rule="foo")), "rule=foo: expected one of below_mean"),
        (lambda w: exemplars.check(image_set(100), with_(MINING, rule="hots")), "did you mean host"),
        (
            lambda w: exemplars.check(image_set(100), with_(MINING, quantile=1.5)),
            "mining.quantile=1.5: .* 0 to 1",
        ),
        (
            lambda w: exemplars.check(image_set(100), with_(MINING, host_limit=0)),
            "mining.host_limit=0: .* least 1",
        ),
        (lambda w: exemplars.check(image_set(100), with_(MINING, dense_from="most")), "dense_from=most: .* a number"),
    ],
)
def test_mistakes_are_told(world, change, word):
    with pytest.raises(UserError, match=word):
        change(world)


def test_recipes_name_what_they_named_before_there_were_more_settings():
    """The digests before contrasts had settings of their own, and nothing of a default that came later."""
    known = "d5159219dc423e66965ab2cd85278ac1263f6a270094fb7e0e38dffac1107f4a"
    other = "6589276cbf54b83281b758a76d30294f1dbd24b8aec3a734ed65f049791ac711"
    labels = "ee8d084db234e65988c78325fd356527d89b183ab0afe158befe42d3b8ef7ed3"
    assert digest(MINING.recipe()) == known
    assert digest(exemplars.MiningSettings(k=5, rule="host", reuse=False).recipe()) == other
    assert digest(pipeline.LabelSettings()) == labels
    for change in ({"quantile": 0.25}, {"host_similarity": 0.5}, {"host_limit": 3}, {"seed": 1}):
        settings = exemplars.MiningSettings(**change)
        assert settings.recipe() == MINING.recipe() | change
        assert exemplars.MiningSettings(**settings.recipe()) == settings


@pytest.mark.parametrize(
    ("rule", "change", "holds"),
    [
        ("below_quantile", {"quantile": 0.1}, lambda acts, limit, pairs: all(acts[n] <= limit for _, n in pairs)),
        ("host", {"host_similarity": -1.0, "host_limit": 2}, lambda acts, limit, pairs: len(pairs) == 2),
    ],
)
def test_the_settings_of_a_contrast_rule_reach_mining_and_its_nulls(world, rule, change, holds):
    images, acts = image_set(4000), world.acts[:, :3] + 1
    units = UnitActivations(acts, "planted", {})
    mining = exemplars.MiningSettings(k=6, rule=rule, **change)
    exemplars.check(images, mining)
    found = exemplars.find(units, images, world.image_emb, mining, world.image_emb)
    mine = torch.as_tensor(images.ids("mine"))
    for unit in range(3):
        pairs = [(p, n) for p, n in zip(found.positives[unit].tolist(), found.contrasts[unit].tolist()) if n >= 0]
        assert pairs and holds(acts[:, unit], acts[mine, unit].quantile(0.1) + 1e-6, pairs)
    evidence = pipeline.evidence(units, found, images, world.image_emb, world.label_emb, mining, world.image_emb)
    assert evidence.rule == mining.contrast and type(evidence.rule) is not type(mining)
    drawn = Draw(Frame(evidence), torch.arange(evidence.n_images)).evidence
    assert drawn.rule == mining.contrast


def test_the_final_scorer_follows_the_number_of_images_unless_somebody_says():
    every = ("csp", "pearson", "contrast_evidence")
    assert final_scorer("auto", every, FEW) == "contrast_evidence"
    assert final_scorer("auto", every, FEW - 1) == "pearson"
    assert final_scorer("csp", every, FEW) == "csp"
    assert final_scorer("nope", every, FEW) == "nope"  # `check` says that it isn't among the scorers
    assert final_scorer("auto", ("csp", "contrast_evidence"), 10) == "contrast_evidence"
    assert final_scorer("auto", ("csp", "pearson"), 5000) == "pearson"
    assert final_scorer("auto", ("semanticlens", "csp"), 10) == "semanticlens"
    with pytest.raises(UserError, match="at least one scorer"):
        pipeline.check(pipeline.LabelSettings((), final_scorer("auto", (), 10)))


def test_noise_passes_in_five_cases_of_a_hundred_however_few_the_permutations():
    """A percentile of noise is one of 0, 1/n ... 1, all equally likely."""
    for nulls in (19, 20, 40, 200, 999):
        settings = with_(SETTINGS, nulls=nulls)
        passed = [not pipeline.by_luck(lower / nulls, settings) for lower in range(nulls + 1)]
        assert passed == sorted(passed)
        assert 0.05 - 1 / (nulls + 1) < sum(passed) / (nulls + 1) <= 0.05 + 1e-9
        assert not pipeline.by_luck(0.0, with_(settings, abstain_below=0.0))
