"""The comparison of bases: refusals, selection, countings, verdicts, words, tables, and the planted worlds."""

import csv
import dataclasses
import json
import math
import sys
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch

sys.path.insert(0, str(Path(__file__).parent))

from comparison_example import PATH, example

from saelab.compare import ComparedBasis, Settings, Setup, compare, finish, whole_way, write
from saelab.compare.describe import label_use
from saelab.compare.evidence import Ground
from saelab.compare.inputs import above_chance, check, selected
from saelab.compare.shared import against_zero, combine
from saelab.compare.verdicts import decide
from saelab.compare.whole_way import FEW, SETTINGS, bases, check_whole_way, ground, planted, shuffled_calls, verdict
from saelab.compare.whole_way import test_images as images_of
from saelab.errors import UserError
from saelab.evaluate.faithfulness import CHANCE
from saelab.report import methods

SETUP = Setup("resnet", "layer4", "abc", "s1", "max", "positive", 30, "conse", "conse", "v1")
METRICS = ("caption_r", "auprc", "f1", "iou", "truth_r", "scs")


def entry(value: float | None, label: str | None) -> dict:
    """A label's numbers: all equal to `value` and a little apart; without a value, without truth."""
    chance = dict.fromkeys(CHANCE.values(), None if value is None else 0.0)
    return {"label": label, "truth_images": None if value is None else 5} | dict.fromkeys(METRICS, value) | chance


def rows(n: int, level: float, seed: int = 0, status: str = "ok", rate: float = 0.2) -> list[dict]:
    rng = np.random.default_rng(seed)
    made = []
    for u in range(n):
        final = entry(float(rng.normal(level, 0.1)), f"label {rng.integers(60)}")
        shuffled = entry(float(rng.normal(0, 0.1)), final["label"])
        row = {"unit": u, "status": status, "label": final["label"], "abstained": False}
        row |= {"final": final, "named": dict(final)}
        row |= {"firing_rate": rate * float(rng.uniform(0.5, 1.5)), "strength": float(rng.uniform(1, 2))}
        row |= {name: float(rng.normal(level, 0.1)) for name in ("clarity", "caption_clarity", "monosemanticity")}
        other = entry(float(rng.normal(level - 0.2, 0.1)), "x") | {"null_percentile": 0.5}
        by_scorer = {"good": final | {"null_percentile": 0.99}, "poor": other}
        made.append(
            row | {"polysemanticity": 1 - level, "redundancy": 0.9, "shuffled": shuffled, "by_scorer": by_scorer}
        )
    return made


def basis(name: str, level: float = 0.2, n: int = 60, **facts) -> ComparedBasis:
    given = {"group": name, "kind": "neuron", "seed": None, "weights": "w", "control": False, "setup": SETUP}
    return ComparedBasis(name=name, rows=rows(n, level, len(name) + abs(int(100 * level))), **(given | facts))


def sae(seed: int, level: float = 0.4, **facts) -> ComparedBasis:
    given = {"group": "features", "kind": "sae", "seed": seed}
    return dataclasses.replace(basis(f"sae {seed}", level + 0.001 * seed, **given), **facts)


def pair_of(result: dict, a: str, b: str, matching: str = "all") -> dict:
    return next(p for p in result["pairs"] if (p["a"], p["b"], p["matching"]) == (a, b, matching))


def answer_of(result: dict, a: str, b: str, family: str = "faithfulness", matching: str = "all") -> dict:
    wanted = (a, b, family, matching)
    return next(x for x in result["answers"] if (x["a"], x["b"], x["family"], x["matching"]) == wanted)


@pytest.mark.parametrize(
    ("fact", "value", "message"),
    [
        ("layer", "layer3", "sae 0 has layer layer3, neurons has layer4; use the same layer for all"),
        ("images", "def", "sae 0 has images def, neurons has abc"),
        ("encoder", "clip", "sae 0 has encoder clip, neurons has conse"),
        ("k", 9, "sae 0 has k 9, neurons has 30"),
        ("labels", "v2", "sae 0 has labels v2, neurons has v1"),
        ("pooling", "mean", "sae 0 has pooling mean, neurons has max"),
    ],
)
def test_bases_on_different_ground_are_refused_with_the_difference_named(fact, value, message):
    other = sae(0, setup=dataclasses.replace(SETUP, **{fact: value}))
    with pytest.raises(UserError, match=message) as caught:
        compare([basis("neurons"), other])
    assert "\n" not in str(caught.value)


def test_other_host_weights_are_for_controls_only():
    with pytest.raises(UserError, match="host weights random, neurons has w"):
        check([basis("neurons"), sae(0, weights="random")])
    check([basis("neurons"), sae(0, weights="random", control=True)])


def test_what_is_no_set_of_bases_is_refused():
    with pytest.raises(UserError, match="at least two are needed"):
        check([basis("neurons")])
    with pytest.raises(UserError, match="bases=neurons: is there twice"):
        check([basis("neurons"), basis("neurons")])
    with pytest.raises(UserError, match="are all controls"):
        check([basis("a", control=True), basis("b", control=True)])
    with pytest.raises(UserError, match=r"group=features: has seeds \[1, 1\]"):
        check([sae(1), dataclasses.replace(sae(2), seed=1)])


def test_settings_and_rows_that_do_not_fit_are_refused():
    given = [basis("neurons"), sae(0)]
    with pytest.raises(
        UserError, match="scorer=clap: labelled none of these bases; known: final, shuffled, good, poor"
    ):
        compare(given, Settings(scorer="clap"))
    with pytest.raises(UserError, match="expected statuses; known: ok, dead"):
        compare(given, Settings(keep=("okay",)))
    old = dataclasses.replace(given[1], rows=[{"unit": 0, "status": "ok", "by_scorer": {}}])
    with pytest.raises(UserError, match=r"its evaluation lacks abstained, final.*evaluate it again"):
        compare([given[0], old])
    for part in ("final", "shuffled"):
        other = [row | {part: {k: v for k, v in row[part].items() if k != "scs_chance"}} for row in given[1].rows[5:]]
        with pytest.raises(UserError, match="its evaluation lacks scs_chance: made by another version"):
            compare([given[0], dataclasses.replace(given[1], rows=[*given[1].rows[:5], *other])])
    with pytest.raises(UserError, match="its evaluation lacks units"):
        compare([given[0], dataclasses.replace(given[1], rows=[])])


def test_selection_counts_before_and_after_and_by_status():
    mixed = rows(30, 0.2) + rows(20, 0.2, status="rare") + rows(10, 0.2, status="dead") + rows(40, 0.2, status="dense")
    one = dataclasses.replace(basis("neurons"), rows=mixed)
    assert len(selected(one, Settings())) == 70
    found = compare([one, sae(0)])["bases"][0]
    assert (found["before"], found["after"], found["coverage"]) == (100, 70, 0.7)
    assert found["statuses"] == {"dead": 10, "dense": 40, "ok": 30, "rare": 20}
    assert found["dropped"] == {"dead": 10, "rare": 20}
    strongest = selected(one, Settings(strongest=5))
    strength = one.column("strength")
    kept = selected(one, Settings())
    assert set(strongest) == set(kept[np.argsort(-strength[kept])[:5]])


def test_units_without_a_label_count_zero_in_all_and_are_left_out_of_labelled():
    some = rows(60, 0.5)
    for row in some[:30]:
        row["abstained"], row["final"] = True, entry(None, None)
    for row in some[30:40]:
        row["final"] |= dict.fromkeys(("auprc", "f1", "iou", "truth_r", "truth_images"))  # label without truth
    half = dataclasses.replace(basis("neurons"), rows=some)
    result = compare([sae(0), half])
    results = {(r["metric"], r["counting"]): r for r in pair_of(result, "features", "neurons")["results"]}
    labelled = np.mean([row["final"]["auprc"] for row in some[40:]])
    assert results["auprc", "labelled"]["mean_b"] == pytest.approx(labelled)
    assert results["auprc", "all"]["mean_b"] == pytest.approx(labelled * 20 / 50)  # 30 zeros, 10 without truth left out
    assert results["caption_r", "all"]["n_b"] == 60 and results["auprc", "all"]["n_b"] == 50
    described = next(b for b in result["bases"] if b["name"] == "neurons")
    assert (described["labelled"], described["abstained"], described["with_truth"]) == (30, 30, 20)
    assert any("Only some labels have boolean truth" in line for line in result["cautions"])


def test_the_better_side_is_named_in_each_metric_s_own_direction():
    result = compare([basis("neurons"), *(sae(s) for s in range(3))])
    assert answer_of(result, "features", "neurons")["verdict"] == "a"
    rows_ = {r["metric"]: r for r in pair_of(result, "features", "neurons")["results"] if r["counting"] == "named"}
    assert rows_["polysemanticity"]["difference"] < 0 and rows_["polysemanticity"]["verdict"] == "a"
    worse = compare([basis("neurons", 0.6), *(sae(s) for s in range(3))])
    assert answer_of(worse, "features", "neurons")["verdict"] == "b"
    assert "better for neurons than for features" in worse["conclusion"]


def test_scs_has_no_say_where_the_judge_chose_the_labels():
    result = compare([basis("neurons"), *(sae(s) for s in range(3))])
    answer = answer_of(result, "features", "neurons")
    assert "scs" not in answer["better_a"] + answer["better_b"] + answer["none"]
    other = dataclasses.replace(SETUP, judge="clip")
    free = compare([dataclasses.replace(b, setup=other) for b in (basis("neurons"), *(sae(s) for s in range(3)))])
    assert "scs" in answer_of(free, "features", "neurons")["better_a"]


@pytest.mark.parametrize("seeds", [1, 3])
def test_one_seed_speaks_for_itself_alone_and_says_so(seeds):
    result = compare([basis("neurons"), *(sae(s) for s in range(seeds))])
    assert pair_of(result, "features", "neurons")["interval"] == "t over labels and seeds"
    assert any("Features: one seed only" in line for line in result["cautions"]) == (seeds == 1)
    assert any("test images are taken as they are" in line for line in result["cautions"])


def test_fewer_than_twenty_labels_a_side_are_refused_and_said():
    few = rows(60, 0.2)
    for row in few:
        text = f"label {int(row['label'].split()[1]) % 12}"
        row |= {"label": text, "named": row["named"] | {"label": text}, "final": row["final"] | {"label": text}}
    result = compare([dataclasses.replace(basis("neurons"), rows=few), sae(0)])
    row = pair_of(result, "features", "neurons")["results"][0]
    assert (
        row["refused"] == "only 12 different labels on side b; an interval needs 20" and row["p"] is row["low"] is None
    )
    assert row["difference"] is not None and answer_of(result, "features", "neurons")["verdict"] == "refused"
    assert "can't be compared: only 12 different labels on neurons; an interval needs 20" in result["conclusion"]


def test_every_unit_named_counts_and_abstaining_is_reported_beside_it():
    """Units that abstain keep their label's number in the primary counting; a counting that says else is named."""
    shy = [sae(s, 0.4) for s in range(3)]
    for one in shy:
        for row in one.rows[:45]:
            row["abstained"], row["final"] = True, entry(None, None)
    result = compare([basis("neurons", 0.2), *shy])
    assert answer_of(result, "features", "neurons")["verdict"] == "a"
    assert {x["way"]: x["verdict"] for x in result["disagreements"]} == {"counting units that abstain as 0": "b"}
    assert "That depends on the choice: neurons are ahead counting units that abstain as 0" in result["headline"]
    assert "180 of 180 units selected, 45 of 180 labels given with confidence" in result["conclusion"]


def test_layers_and_poolings_that_say_something_else_are_named():
    def result_of(level: float, **facts) -> dict:
        setup = dataclasses.replace(SETUP, **facts)
        given = [basis("neurons", 0.3), *(sae(s, level) for s in range(3))]
        return compare([dataclasses.replace(one, setup=setup) for one in given])

    both = finish([result_of(0.4), result_of(0.2, pooling="mean")])
    assert [[(x["way"], x["verdict"]) for x in r["disagreements"]] for r in both] == [
        [("pooled by mean", "b")],
        [("pooled by max", "a")],
    ]
    assert "neurons are ahead pooled by mean" in both[0]["headline"]
    assert "On layer layer4 of resnet, pooled by max, one set." in both[0]["headline"]
    assert not finish([result_of(0.4), result_of(0.5, layer="layer3")])[0]["disagreements"]


def test_fewer_than_twenty_units_a_side_is_refused_and_said():
    result = compare([basis("neurons", n=19), *(sae(s) for s in range(3))])
    pair = pair_of(result, "features", "neurons")
    assert pair["refused"] == "only 19 units on one side; at least 20 are needed" and pair["results"] == []
    assert answer_of(result, "features", "neurons")["verdict"] == "refused"
    assert "can't be compared: only 19 units" in result["conclusion"] and "Too few units" in result["conclusion"]


def test_bases_of_other_firing_rates_are_refused_only_when_matched():
    apart = dataclasses.replace(basis("neurons"), rows=rows(60, 0.2, rate=0.6))
    result = compare([apart, sae(0)])
    assert pair_of(result, "features", "neurons")["refused"] is None
    matched = pair_of(result, "features", "neurons", "rate")
    assert "after matching on firing rate" in matched["refused"] and matched["balance"]["after"] == [None, None]


def test_a_difference_that_is_one_of_firing_rate_goes_when_matched():
    rng = np.random.default_rng(0)

    def driven(name: str, low: float, high: float, **facts) -> ComparedBasis:
        made = rows(400, 0.0, seed=len(name))
        for row in made:
            row["firing_rate"] = float(rng.uniform(low, high))
            row["named"] = row["final"] = entry(row["firing_rate"] + float(rng.normal(0, 0.05)), row["label"])
        return dataclasses.replace(basis(name, **facts), rows=made)

    result = compare([driven("sae", 0.2, 0.6, kind="sae", seed=0), driven("neurons", 0.0, 0.4)])
    assert answer_of(result, "sae", "neurons")["verdict"] == "a"
    assert answer_of(result, "sae", "neurons", matching="rate")["verdict"] == "none"
    assert "so firing rate may explain the difference" in result["conclusion"]


@pytest.mark.parametrize(
    ("neurons", "features", "above"), [(-0.15, -0.08, False), (-0.3, 0.0, False), (-0.2, 0.2, True), (0.1, 0.3, True)]
)
def test_of_two_sides_that_are_not_above_chance_neither_is_said_to_hold(neurons, features, above):
    result = compare([basis("neurons", neurons), *(sae(s, features) for s in range(3))])
    assert answer_of(result, "features", "neurons") == answer_of(result, "features", "neurons") | {
        "verdict": "a",
        "above": above,
    }
    told = "Labels of features and of neurons differ, features ahead, but neither is shown to hold above chance"
    assert ("hold better than" in result["headline"]) == above and (told in result["headline"]) != above


def test_a_level_is_that_of_the_side_alone():
    """p_a and p_b are those of each side's mean against 0, of the same variance."""
    made = [basis("neurons", 0.02), *(sae(s, 0.1) for s in range(3))]
    ground_of = Ground(None, {b.name: np.arange(len(b.rows)) for b in made}, 50, 0)
    one, other, _ = ground_of.sides(made[1:], made[:1], "caption_r")
    found = combine(one, other, None)
    assert (found.p_a, found.p_b) == pytest.approx((against_zero(one, None), against_zero(other, None)))


def test_an_interval_says_what_it_takes_into_account_metric_by_metric():
    """Coherence is read from rows, so its interval knows nothing of images, whatever other metrics do."""
    result = example()
    kinds = {"images" in row["clusters"] for pair in result["pairs"] for row in pair["results"]}
    assert kinds == {True, False}
    for family, images in (("Label faithfulness", True), ("Unit coherence", False)):
        text = result["conclusion"].split(f"{family}, every unit named: ")[1]
        assert ("groups of images" in text.split("corrected p")[0]) == images
    said = methods._compared(result)
    assert "(other metrics)" in said and "Caption correlation above chance" in said and "Caption clarity" not in said


def test_no_difference_shown_is_said_and_is_not_equality():
    one, other = basis("neurons", 0.3), dataclasses.replace(sae(0, 0.3), rows=rows(60, 0.3, seed=99))
    result = compare([one, other])
    assert answer_of(result, "features", "neurons")["verdict"] == "none"
    assert "no difference shown between features and neurons" in result["conclusion"]
    assert "not proof that they are equal" in result["conclusion"]


def test_an_interval_off_zero_that_does_not_survive_correction_is_explained():
    def layer(name: str) -> dict:
        setup = dataclasses.replace(SETUP, layer=name)
        return compare([basis("neurons", 0.3, setup=setup), sae(0, 0.3, setup=setup)])

    results = [layer(f"layer{i}") for i in range(3)]
    mine, *others = [
        next(r for r in pair_of(result, "features", "neurons")["results"] if r["metric"] == "caption_r")
        for result in results
    ]
    mine |= {"low": 0.01, "difference": 0.04, "high": 0.07, "p": 0.02}  # of one test; three layers were compared
    for other in others:
        other["p"] = 0.5
    result = finish(results)[0]
    assert mine["p_holm"] == pytest.approx(0.06) and mine["verdict"] == "none"
    assert "off 0, but corrected for all that was compared p is 0.060" in result["conclusion"]


@pytest.mark.parametrize(
    ("low", "high", "p", "verdict"),
    [(0.1, 0.3, 0.01, "a"), (-0.3, -0.1, 0.01, "b"), (-0.1, 0.3, 0.01, "none"), (0.1, 0.3, 0.06, "none")],
)
def test_a_side_is_better_only_by_corrected_p_and_interval(low, high, p, verdict):
    row = {"metric": "caption_r", "difference": (low + high) / 2, "low": low, "high": high, "p_holm": p}
    decide(row, 0.05)
    assert row["verdict"] == verdict


def test_a_difference_of_means_that_ranks_do_not_bear_out_is_cautioned():
    """Of the features most labels are wrong and some hold very well; all neurons hold a little."""
    features = [sae(s, 1.1) for s in range(3)]
    for one in features:
        for row in one.rows[:36]:
            row["named"] = entry(0.0, row["label"])
    result = compare([basis("neurons", 0.2), *features])
    row = next(r for r in pair_of(result, "features", "neurons")["results"] if r["metric"] == "caption_r")
    assert row["verdict"] == "a" and row["cliffs_delta"] < 0
    assert any("Cliff's delta the other" in line for line in result["cautions"])
    plain = compare([basis("neurons", 0.2), sae(0, 1.1)])["cautions"]
    assert not any("Cliff's delta" in line for line in plain)


def test_controls_are_compared_with_real_bases_only_and_missing_ones_are_named():
    rotation = basis("rotation", 0.0, kind="random_rotation", seed=0, control=True)
    pca = basis("pca", 0.0, kind="pca", control=True)
    result = compare([basis("neurons", 0.05), sae(0), rotation, pca])
    pairs = {(p["a"], p["b"]): p["role"] for p in result["pairs"]}
    assert pairs == {
        ("features", "neurons"): "main",
        ("features", "rotation"): "control",
        ("features", "pca"): "control",
        ("neurons", "rotation"): "control",
        ("neurons", "pca"): "control",
    }
    assert "Controls that were not run: an SAE on a randomly initialised host." in result["cautions"]
    assert "labels of features are more faithful than those of rotation and pca" in result["conclusion"]
    among = {found["name"]: found["random_percentile"] for found in result["bases"]}
    assert among["rotation"] is None and among["sae 0"]["mean"] > among["neurons"]["mean"] > 0.5
    assert among["sae 0"]["share_above_95"] > 0.9
    assert "Better than 95 % of random directions of this layer by" in result["conclusion"]
    alone = compare([basis("neurons", 0.05), sae(0)])
    assert all(found["random_percentile"] is None for found in alone["bases"])
    assert "random directions of this layer" not in alone["conclusion"]


def test_methods_are_compared_on_the_same_units_and_against_shuffled_labels():
    result = compare([basis("neurons"), *(sae(s) for s in range(3))])
    found = {(m["group"], m["a"], m["b"], m["metric"]): m for m in result["methods"]}
    good = found["features", "good", "poor", "auprc"]
    assert good["verdict"] == "a" and good["n"] == 180 and len(good["by_seed"]) == 3
    assert good["difference"] == pytest.approx(0.2, abs=0.05) and good["low"] < good["difference"] < good["high"]
    assert found["neurons", "final", "shuffled", "caption_r"]["verdict"] == "a"
    assert found["neurons", "good", "poor", "f1"]["mean_b"] == pytest.approx(0, abs=0.05)


def test_scorers_are_compared_on_the_same_units_every_one_counting():
    """A scorer that names half of the units, those well, isn't compared on these alone."""
    some = basis("neurons", 0.4)
    for row in some.rows[:30]:
        row["by_scorer"] = row["by_scorer"] | {"poor": entry(None, None)}
    for row in some.rows[30:]:
        row["by_scorer"] = row["by_scorer"] | {"poor": row["final"]}
    found = {(m["a"], m["b"], m["metric"]): m for m in compare([some, sae(0)])["methods"] if m["group"] == "neurons"}
    row = found["good", "poor", "auprc"]
    assert row["n"] == 60 and (row["confirmed_a"], row["confirmed_b"]) == (60, 30)
    assert row["mean_b"] == pytest.approx(np.sum([r["final"]["auprc"] for r in some.rows[30:]]) / 60)
    assert row["verdict"] == "a"


def test_activations_of_other_images_are_refused():
    made = [dataclasses.replace(b, acts=lambda: torch.zeros(7, 40)) for b in bases(0, 0.2, False)]
    with pytest.raises(UserError, match=r"acts=\(7, \d+\) of .*: its units on the test images"):
        compare(made, SETTINGS, images_of(planted(0)))


def test_null_percentiles_and_the_null_s_share_of_a_difference_are_reported():
    biased = rows(60, 0.5)
    for row in biased:
        row["shuffled"] = entry(0.45, "x")
    result = compare([dataclasses.replace(sae(0), rows=biased), basis("neurons", 0.0)])
    pair = pair_of(result, "features", "neurons")
    row = next(r for r in pair["results"] if (r["metric"], r["counting"]) == ("auprc", "all"))
    assert row["null_difference"] == pytest.approx(0.45, abs=0.05)
    assert any("shuffled labels show half or more" in line for line in result["cautions"])
    null = result["bases"][0]["null_percentile"]
    assert null["good"] == {"mean": pytest.approx(0.99), "share_above_95": 1.0, "n": 60}
    assert null["poor"]["share_above_95"] == 0.0


def test_holm_spans_metrics_and_layers():
    def layer(name: str) -> list[ComparedBasis]:
        setup = dataclasses.replace(SETUP, layer=name)
        given = [basis("neurons", 0.38), *(sae(s, 0.4) for s in range(3))]
        return [dataclasses.replace(b, setup=setup) for b in given]

    alone, both = compare(layer("a")), [compare(layer("a")), compare(layer("b"))]
    together = finish(both)

    def row(result: dict, metric: str, counting: str = "named", matching: str = "all") -> dict:
        found = pair_of(result, "features", "neurons", matching)["results"]
        return next(r for r in found if (r["metric"], r["counting"]) == (metric, counting))

    assert row(alone, "caption_r")["p_holm"] == row(alone, "caption_r")["p"]  # one primary metric, one pair, one layer
    ps = sorted(row(result, "caption_r")["p"] for result in together)
    assert sorted(row(result, "caption_r")["p_holm"] for result in together)[0] == pytest.approx(min(1, 2 * ps[0]))
    assert row(alone, "auprc")["p_holm"] is None and row(alone, "auprc")["verdict"] == "none"
    assert row(alone, "caption_r")["role"] == "primary" and row(alone, "scs")["role"] == "secondary"


def test_further_bases_are_corrected_with_the_rest():
    given = [basis("neurons", 0.3), *(sae(s, 0.3) for s in range(3))]
    also = dataclasses.replace(sae(5, 0.32), name="wide", group="wide")
    result = compare([*given, also])
    tested = [p["results"] for p in result["pairs"] if p["matching"] == "all" and p["role"] == "main"]
    rows_ = [next(r for r in found if (r["metric"], r["counting"]) == ("caption_r", "named")) for found in tested]
    least = min(rows_, key=lambda r: r["p"])
    assert len(rows_) == 3 and least["p_holm"] == pytest.approx(min(1, 3 * least["p"]))


def test_secondary_metrics_say_nothing_where_the_primary_does_not():
    """SCS by another judge differs by far, captions don't: no side is called."""
    given = [dataclasses.replace(one, rows=rows(60, 0.3, 7)) for one in (basis("neurons"), sae(0))]
    for row in given[1].rows:
        row["named"] = row["named"] | {"scs": row["named"]["scs"] + 0.5}
    setup = dataclasses.replace(SETUP, judge="clip")
    result = compare([dataclasses.replace(one, setup=setup) for one in given])
    found = {r["metric"]: r for r in pair_of(result, "features", "neurons")["results"] if r["counting"] == "named"}
    assert found["scs"]["p_holm"] < 1e-6 and found["scs"]["verdict"] == "none" == found["caption_r"]["verdict"]
    assert answer_of(result, "features", "neurons")["better_a"] == []


def test_label_reuse_and_entropy():
    use = label_use(Counter({"a": 4, "b": 4, "c": 8}))
    assert use["distinct"] == 3 and use["reuse"] == pytest.approx(16 / 3) and use["entropy"] == pytest.approx(1.5)
    assert use["evenness"] == pytest.approx(1.5 / math.log2(3)) and use["most_used"][0] == ["c", 8]
    assert label_use(Counter())["entropy"] is None and label_use(Counter({"a": 3}))["entropy"] == 0


def test_files_hold_the_result(tmp_path):
    result = compare([basis("neurons"), basis("tiny", n=5)])
    write(tmp_path, result)
    assert json.loads((tmp_path / "comparison.json").read_text()) == json.loads(json.dumps(result))
    with (tmp_path / "pairs.csv").open() as file:
        lines = list(csv.DictReader(file))
    assert len(lines) == sum(max(1, len(pair["results"])) for pair in result["pairs"])
    assert lines[0]["refused"].startswith("only 5 units")
    with (tmp_path / "bases.csv").open() as file:
        assert [line["name"] for line in csv.DictReader(file)] == ["neurons", "tiny"]


def shape_of(value: object) -> object:
    """Keys and kinds of a JSON value, one element standing for a list; numbers and null alike."""
    if isinstance(value, dict):
        return {name: shape_of(x) for name, x in value.items()}
    if isinstance(value, list | tuple):
        return [shape_of(value[0])] if value else []
    return "text" if isinstance(value, str) else "number"


def test_the_example_is_what_compare_writes_today():
    stored, fresh = json.loads(PATH.read_text()), json.loads(json.dumps(example()))
    assert shape_of(stored) == shape_of(fresh)
    assert stored["conclusion"] == fresh["conclusion"]


def test_every_comparison_checks_itself():
    reports = compare(bases(0, 0.2), SETTINGS, images_of(planted(0)))["validity"]
    assert [report["check"] for report in reports] == [
        "features against itself",
        "neurons against itself",
        "shuffled labels of features against 0",
        "shuffled labels of neurons against 0",
        "shuffled labels of features against neurons",
    ]
    assert all(report["passed"] in (True, None) for report in reports), reports
    assert [report["passed"] for report in reports[2:]] == [True] * 3


def test_correlations_count_above_what_dealt_out_labels_reach():
    """A part that all units and all labels share is no matter of the labels: it must not tell two bases apart."""

    def common(row: dict, by: float) -> dict:
        moved = {name: row[name] | {m: row[name][m] + by for m in CHANCE} for name in ("final", "named", "shuffled")}
        return row | {name: e | dict.fromkeys(CHANCE.values(), by) for name, e in moved.items()}

    fair = [basis("neurons", 0.2), *(sae(s, 0.2) for s in range(3))]
    tilted = [dataclasses.replace(b, rows=[common(row, 0.3) for row in b.rows], _known={}) for b in fair[:1]]
    result, plain = compare([*tilted, *fair[1:]]), compare(fair)
    assert result["validity"] == plain["validity"]
    assert all(report["passed"] for report in result["validity"] if report["check"].endswith("against 0"))
    for found, wanted in zip(*(pair_of(r, "features", "neurons")["results"] for r in (result, plain))):
        assert found["difference"] == pytest.approx(wanted["difference"])
        assert found["verdict"] == wanted["verdict"]


@pytest.mark.parametrize("times", [[30, 30], [50, 9, 1], [1] * 60, [20, 1, 1, 1]])
def test_a_basis_of_few_labels_counts_like_one_of_many(times):
    """Every unit goes with its own label by .5 and with the others by .1: .4 above chance, however many labels."""
    texts = [f"label {i}" for i, n in enumerate(times) for _ in range(n)]

    def given(unit: int, text: str) -> dict:
        own = texts.count(texts[unit]) / len(texts)
        return entry(0.5 if text == texts[unit] else 0.1, text) | dict.fromkeys(CHANCE.values(), 0.1 + 0.4 * own)

    for metric in CHANCE:
        above = [e[metric] for e in above_chance([given(u, text) for u, text in enumerate(texts)], metric)]
        assert np.mean(above) == pytest.approx(0.4)
        dealt = [above_chance([given(u, text) for u, text in enumerate(np.roll(texts, s))], metric) for s in range(60)]
        turns = [e[metric] for each in dealt[: len(texts)] for e in each]
        assert np.mean(turns) == pytest.approx(0)


def test_above_chance_counts_the_labels_that_are_dealt_out():
    silent = entry(None, "a") | {"auprc": 0.1}
    no_truth = entry(0.5, "b") | dict.fromkeys(("truth_r", "auprc", "truth_r_chance"))
    found = [entry(0.6, "a"), silent, entry(0.6, "c"), no_truth, entry(None, None)]
    shares = {"truth_r": [2 / 3, 1 / 3], "caption_r": [2 / 4, 1 / 4, 1 / 4]}
    for metric, p in shares.items():
        values = [e[metric] for e in above_chance(found, metric)]
        assert values[0] == pytest.approx(0.6 / (1 - np.square(p).sum())) and values[1] is None
    assert [e["scs"] for e in above_chance([entry(0.3, "a"), entry(0.3, "a")], "scs")] == [0.3, 0.3]
    assert above_chance([entry(None, None)], "scs")[0]["scs"] is None


def test_a_correlation_that_cannot_be_had_counts_as_chance():
    """A label that every caption is equally like has no r, but has a chance level: it must not count below 0."""
    flat = rows(60, 0.3)
    for row in flat[:30]:
        row["final"] |= {"caption_r": None, "caption_r_chance": 0.2}
    one = dataclasses.replace(basis("neurons"), rows=flat)
    assert one.faithfulness("caption_r", "all")[:30].tolist() == [0.0] * 30
    assert np.isnan(one.faithfulness("caption_r", "labelled")[:30]).all()


def test_checks_without_enough_units_are_not_said_to_hold():
    result = compare([basis("neurons", n=200), dataclasses.replace(sae(0), rows=rows(12, 0.4))])
    found = {report["check"]: report for report in result["validity"]}
    for name in ("features against itself", "shuffled labels of features against 0"):
        assert found[name] == {"check": name, "passed": None, "detail": "too few units or labels to test"}
    assert found["shuffled labels of features against neurons"]["passed"] is None
    assert found["neurons against itself"]["passed"] and found["shuffled labels of neurons against 0"]["passed"]
    assert not any("check of the comparison itself failed" in line for line in result["cautions"])


def test_neurons_about_few_concepts_are_not_called_worse():
    """A test at 5 %: three calls or more of eight would be luck in one of two hundred runs."""
    assert sum(verdict(bases(seed, 0.0, False, FEW), seed) == "a" for seed in range(200, 208)) <= 2


def test_shuffled_labels_that_are_not_shuffled_are_found_out():
    leaky = [
        dataclasses.replace(b, rows=[row | {"shuffled": row["named"]} for row in b.rows], _known={})
        for b in bases(0, 0.3)
    ]
    result = compare(leaky, SETTINGS, images_of(planted(0)))
    assert [report["passed"] for report in result["validity"][2:]] == [False, False, False]
    assert any("check of the comparison itself failed: shuffled labels" in line for line in result["cautions"])


@pytest.mark.parametrize(("seed", "gain"), [(0, 0.2), (100, 0.0)])
def test_planted_worlds_are_judged_as_a_comparison_judges_them(seed, gain):
    """The check of 100 seeds computes only what answers; here it must say what the whole comparison says."""
    made = bases(seed, gain, False)
    whole = compare(made, SETTINGS, images_of(planted(seed)))
    assert verdict(made, seed) == answer_of(whole, "features", "neurons")["verdict"]
    sides = [b for b in made if b.kind == "sae"], [b for b in made if b.kind == "neuron"]
    calls = shuffled_calls(*sides, ground(made, seed), SETTINGS)
    assert (not calls) == whole["validity"][-1]["passed"]
    assert pair_of(whole, "features", "neurons")["interval"] == "t over labels, seeds and groups of images"
    assert whole["images"] == {"test": 200, "judged": 200, "groups": 200}


@pytest.mark.slow
def test_planted_worlds_are_called_right():
    reports = list(check_whole_way(100))
    assert all(report["passed"] for report in reports), reports


def test_a_refused_world_is_no_false_alarm_and_another_takes_its_place(monkeypatch):
    """Worlds of few concepts have often fewer labels than an interval needs: these were once counted as called."""
    answers = {200: "refused", 201: "none", 202: "refused", 203: "a"}
    monkeypatch.setattr(whole_way, "bases", lambda seed, *_: seed)
    monkeypatch.setattr(whole_way, "verdict", lambda made, seed: answers.get(seed, "none"))
    assert whole_way._given(200, 10, FEW) == (["none", "a", *["none"] * 8], 2)
    monkeypatch.setattr(whole_way, "verdict", lambda made, seed: "refused")
    found, refused = whole_way._given(200, 10, FEW)
    assert (found, refused) == ([], 20)  # too few verdicts: the check does not pass


def test_a_planted_difference_is_called_and_its_absence_is_not():
    assert [verdict(bases(3, gain, False), 3) for gain in (0.3, 0.0)] == ["a", "none"]
