"""Evaluation of one basis: the numbers, the splits they come from, and what counts as what when there is none."""

import itertools
import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from scipy.stats import pearsonr
from sklearn.metrics import average_precision_score, f1_score, jaccard_score, roc_auc_score
from torch.nn.functional import normalize

from saelab import evaluate as ev
from saelab.errors import UserError
from saelab.evaluate.faithfulness import FAITHFULNESS, OF_TRUTH, Judges, Splits, faithfulness
from saelab.truth import Similarity, Truth, from_descriptions
from saelab.units import UnitActivations

IMAGES, LABELS = 60, 4
TEXTS = ["cat", "dog", "owl", "unseen"]
MINE, TEST = np.arange(0, 30), np.arange(30, 60)


def world(seed: int = 0) -> tuple[torch.Tensor, Judges]:
    """Seven units and the evidence: the label `unseen` has no truth, a tenth of the images no caption."""
    g = torch.Generator().manual_seed(seed)
    vectors = normalize(torch.randn(LABELS, 8, generator=g), dim=1)
    member = torch.rand(IMAGES, 3, generator=g) < 0.3
    images = normalize(member.float() @ vectors[:3] + 0.5 * torch.randn(IMAGES, 8, generator=g), dim=1)
    written = normalize(member.float() @ vectors[:3] + 0.5 * torch.randn(IMAGES, 8, generator=g), dim=1)
    captioned = torch.arange(IMAGES) % 10 != 0
    acts = torch.relu(member.float()[:, [0, 1, 2, 0, 1, 2, 0]] + 0.6 * torch.randn(IMAGES, 7, generator=g))
    acts[:, 5] = 0  # dead
    acts[TEST, 4] = 0  # silent on test
    truth = Truth(member, {"cat": 0, "dog": 1, "owl": 2}, ("cat", "dog", "owl"), captioned, "planted")
    judge = Similarity.of("judge", images, TEXTS, vectors)
    return acts, Judges(judge, Similarity.of("captions", written, TEXTS, vectors, captioned), truth)


def label_rows(texts: list[str | None], abstained: set[int] = frozenset()) -> list[dict]:
    return [
        {"unit": u, "status": "ok" if text else "dead", "label": text, "abstained": text is None or u in abstained}
        | {"scores": {"csp": {"label": text, "null_percentile": 0.9}} if text else {}}
        for u, text in enumerate(texts)
    ]


GIVEN = ["cat", "dog", "owl", "unseen", "dog", None, "owl"]


@pytest.fixture(scope="module")
def evaluated() -> tuple[list[dict], dict]:
    acts, evidence = world()
    return ev.evaluate(UnitActivations(acts, "neuron", {}), label_rows(GIVEN, {6}), evidence, Splits(MINE, TEST))


def test_numbers_are_those_of_scipy_and_scikit_learn_on_described_test_images(evaluated):
    acts, evidence = world()
    rows, _ = evaluated
    described = TEST[evidence.truth.known[TEST].numpy()]
    fitted_on = MINE[evidence.truth.known[MINE].numpy()]
    for u, text in enumerate(["cat", "dog", "owl"]):
        entry = rows[u]["by_scorer"]["csp"]
        row = evidence.judge.row[text]
        similarity = (evidence.judge.images @ evidence.judge.labels[row]).numpy()
        captions = (evidence.captions.images @ evidence.captions.labels[row]).numpy()
        true = evidence.truth.member[:, u].numpy()
        a = acts[:, u].numpy()
        assert entry["scs"] == pytest.approx(pearsonr(a[TEST], similarity[TEST])[0], abs=1e-6)
        assert entry["caption_r"] == pytest.approx(pearsonr(a[described], captions[described])[0], abs=1e-6)
        assert entry["truth_r"] == pytest.approx(pearsonr(a[described], true[described])[0], abs=1e-6)
        assert entry["auprc"] == pytest.approx(average_precision_score(true[described], a[described]), abs=1e-6)
        assert entry["auroc"] == pytest.approx(roc_auc_score(true[described], a[described]), abs=1e-6)
        scores = {t: f1_score(true[fitted_on], a[fitted_on] >= t) for t in a[fitted_on]}
        threshold = max(t for t, score in scores.items() if score == max(scores.values()))
        assert entry["f1"] == pytest.approx(f1_score(true[described], a[described] >= threshold), abs=1e-6)
        assert entry["iou"] == pytest.approx(jaccard_score(true[described], a[described] >= threshold), abs=1e-6)
        assert entry["truth_images"] == true[described].sum()


def test_chance_is_what_dealt_out_labels_reach_on_average():
    """Against brute force: the mean correlation of a unit over the labels of all labelled units, its own included."""
    acts, evidence = world()
    splits = Splits(MINE, TEST)
    given = [text if text != "unseen" else "owl" for text in GIVEN]
    found = faithfulness(acts[MINE], acts[TEST], given, evidence, splits)
    described = TEST[evidence.truth.known[TEST].numpy()]
    labels = [text for text in given if text is not None]
    spaces = {"scs": (evidence.judge, TEST), "caption_r": (evidence.captions, described)}
    for u, text in enumerate(given):
        a = acts[:, u].numpy()
        for name, (space, ids) in spaces.items():
            chance = found[f"{name}_chance"][u]
            if text is None or not np.ptp(a[ids]):
                assert np.isnan(chance)
                continue
            every = [pearsonr(a[ids], (space.images[ids] @ space.labels[space.row[t]]).numpy())[0] for t in labels]
            assert chance == pytest.approx(np.mean(every), abs=1e-6)
        if text is not None and np.ptp(a[described]):
            true = [evidence.truth.member[described, evidence.truth.column[t]].numpy() for t in labels]
            every = [pearsonr(a[described], column)[0] for column in true]
            assert found["truth_r_chance"][u] == pytest.approx(np.mean(every), abs=1e-6)
    dealt = [faithfulness(acts[MINE], acts[TEST], ev.shuffled(given, s), evidence, splits) for s in range(40)]
    for name in ("scs", "caption_r"):
        assert torch.stack([d[f"{name}_chance"] for d in dealt]).allclose(found[f"{name}_chance"], equal_nan=True)
        mean = torch.stack([d[name].nanmean() for d in dealt]).mean()
        assert float(mean) == pytest.approx(float(found[f"{name}_chance"].nanmean()), abs=0.05)


def test_mine_images_move_thresholds_and_firing_rates_only():
    acts, evidence = world()
    other = acts.clone()
    other[MINE] = other[MINE].flip(0) * 3
    splits = Splits(MINE, TEST)
    before, after = (
        ev.evaluate(UnitActivations(a, "neuron", {}), label_rows(GIVEN), evidence, splits)[0] for a in (acts, other)
    )
    fitted = ("f1", "iou", "strength", "firing_rate")
    for x, y in zip(before, after):
        for name in set(x["final"]) - set(fitted):
            assert x["final"][name] == y["final"][name], name
        for name in ev.COHERENCE:
            assert x[name] == y[name], name
    assert any(x["final"]["f1"] != y["final"]["f1"] for x, y in zip(before, after))


def test_test_images_never_move_firing_rates(evaluated):
    acts, evidence = world()
    other = acts.clone()
    other[TEST] = torch.rand(len(TEST), acts.shape[1])
    rows, _ = ev.evaluate(UnitActivations(other, "neuron", {}), label_rows(GIVEN), evidence, Splits(MINE, TEST))
    for x, y in zip(evaluated[0], rows):
        assert x["firing_rate"] == y["firing_rate"] and x["strength"] == y["strength"]


def test_csr_and_dense_give_the_same(evaluated):
    acts, evidence = world()
    units = UnitActivations(acts.to_sparse_csr(), "sae", {})
    rows, _ = ev.evaluate(units, label_rows(GIVEN, {6}), evidence, Splits(MINE, TEST))
    for dense, sparse in zip(evaluated[0], rows):
        for name in (*ev.COHERENCE, "firing_rate", "strength", "test_firing_rate"):
            assert sparse[name] == (None if dense[name] is None else pytest.approx(dense[name], abs=1e-5)), name
        for name in FAITHFULNESS:
            expected = dense["final"][name]
            assert sparse["final"][name] == (None if expected is None else pytest.approx(expected, abs=1e-6)), name


def test_what_cannot_be_had_is_null_and_counts_as_stated(evaluated):
    rows, summary = evaluated
    final = [row["final"] for row in rows]
    assert final[3]["truth_images"] is None and final[3]["auprc"] is None and final[3]["scs"] is not None  # no truth
    assert final[4]["scs"] is None and final[4]["truth_r"] is None and final[4]["auprc"] is not None  # silent on test
    assert final[5]["label"] is None and final[6]["label"] is None  # dead; abstained
    assert rows[6]["by_scorer"]["csp"]["auprc"] is not None  # a scorer's own label is measured all the same
    over = ev.over_all(final, "truth_r")
    assert over[3] is None and over[4:7] == [0.0, 0.0, 0.0]
    assert ev.over_all(final, "scs")[4:7] == [0.0, 0.0, 0.0]
    mean = summary["by_scorer"]["final"]["metrics"]["truth_r"]
    assert mean["units"] == 3 and mean["units_all"] == 6
    assert mean["mean_all"] == pytest.approx(mean["mean"] * 3 / 6)
    assert summary["labelled"] == 5 and summary["abstained"] == 1 and summary["statuses"] == {"dead": 1, "ok": 6}
    assert summary["by_scorer"]["final"]["without_truth"] == 1


def test_evidence_that_is_not_given_is_null_everywhere_and_never_zero():
    acts, evidence = world()
    bare = Judges(evidence.judge, None, None)
    rows, summary = ev.evaluate(UnitActivations(acts, "neuron", {}), label_rows(GIVEN), bare, Splits(MINE, TEST))
    for metric in (*OF_TRUTH, "caption_r"):
        assert ev.over_all([row["final"] for row in rows], metric) == [None] * 7
        assert summary["by_scorer"]["final"]["metrics"][metric]["mean_all"] is None
    assert rows[0]["caption_clarity"] is None and rows[0]["clarity"] is not None


def test_a_label_without_an_image_to_fit_on_has_no_f1_but_has_auprc():
    acts, evidence = world()
    member = evidence.truth.member.clone()
    member[MINE, 0] = False
    truth = Truth(member, evidence.truth.column, evidence.truth.names, evidence.truth.known, "planted")
    rows, _ = ev.evaluate(
        UnitActivations(acts, "neuron", {}),
        label_rows(GIVEN),
        Judges(evidence.judge, None, truth),
        Splits(MINE, TEST),
    )
    entry = rows[0]["final"]
    assert entry["f1"] is None and entry["iou"] is None and entry["auprc"] is not None
    assert ev.over_all([row["final"] for row in rows], "f1")[0] is None


def test_a_label_that_complete_truth_does_not_know_is_wrong_and_counts_0():
    """Every scorer counts on the same units: an unconfirmed label is no gap where all that is true is listed."""
    acts, evidence = world()
    known = evidence.truth
    listed = Truth(known.member, known.column, known.names, torch.ones(IMAGES, dtype=torch.bool), "classes", True)
    judges = Judges(evidence.judge, None, listed)
    units = UnitActivations(acts, "neuron", {})
    rows, summary = ev.evaluate(units, label_rows(GIVEN, {6}), judges, Splits(MINE, TEST))
    assert [rows[3]["named"][name] for name in ("truth_images", "truth_r", "auprc", "f1", "iou")] == [0.0] * 5
    csp = summary["by_scorer"]["csp"]
    assert csp["confirmed"] == 5 and csp["without_truth"] == 0 and csp["metrics"]["auprc"]["units_all"] == 7
    values = [row["named"]["auprc"] for row in rows]
    assert csp["metrics"]["auprc"]["mean_all"] == pytest.approx(sum(v or 0 for v in values) / 7)
    assert summary["truth_complete"] and ev.judging_metric(judges) == "truth_r"
    assert ev.judging_metric(evidence) == "caption_r" and ev.judging_metric(Judges(evidence.judge, None, None)) is None


def test_truth_of_classes_alone_is_complete_and_of_captions_is_not():
    classes, captions = [("cat",), ("dog",)], [None, None]
    assert from_descriptions(["cat", "sofa"], captions, classes).complete
    assert not from_descriptions(["cat"], captions, [("cat",), ()]).complete
    assert not from_descriptions(["cat"], ["a cat on a sofa", None], classes).complete


@pytest.mark.parametrize(
    ("chance", "interval", "word"),
    [
        (0.0, [0.1, 0.4], "holds"),
        (0.05, [0.1, 0.4], "weak"),
        (0.1, [0.1, 0.4], "may be luck"),
        (0.0, [-0.1, 0.9], "may be luck"),
        (-0.05, [0.06, 0.2], "holds"),
        (0.0, None, "may be luck"),
    ],
)
def test_a_badge_is_what_the_whole_interval_says_above_chance(chance, interval, word):
    entry = {"label": "cat", "caption_r": 0.3, "caption_r_chance": chance}
    bounds = {} if interval is None else {"caption_r": interval}
    assert ev.badge(entry, bounds, "caption_r") == word
    assert ev.badge(entry, bounds, None) is None and ev.badge({"label": None}, bounds, "caption_r") is None


def test_every_row_has_its_badge_and_the_numbers_of_its_label_abstained_or_not(evaluated):
    rows, summary = evaluated
    assert rows[6]["final"]["label"] is None and rows[6]["named"] == {
        name: value for name, value in rows[6]["by_scorer"]["csp"].items() if name != "null_percentile"
    }
    assert rows[5]["badge"] is None and rows[6]["badge"] in ev.BADGES
    counted = {word: sum(row["badge"] == word for row in rows) for word in ev.BADGES}
    assert summary["badges"] == counted | {"metric": "caption_r"} and sum(counted.values()) == 6


def test_shuffled_labels_are_the_same_labels_on_other_units():
    texts = ["a", None, "b", "c", "a", None, "d", "e", "f", "g"]
    dealt = ev.shuffled(texts, seed=0)
    assert sorted(filter(None, dealt)) == sorted(filter(None, texts))
    assert [t is None for t in dealt] == [t is None for t in texts]
    assert dealt != texts and dealt == ev.shuffled(texts, seed=0) and dealt != ev.shuffled(texts, seed=1)


def test_coherence_counts_only_test_images_on_which_the_unit_fires():
    acts, evidence = world()
    only_two = torch.zeros_like(acts)
    only_two[[31, 47], 0] = torch.tensor([1.0, 2.0])
    only_two[40, 1] = 1.0
    numbers = ev.coherence(only_two[TEST], evidence, TEST, 3)
    expected = float(evidence.judge.images[31] @ evidence.judge.images[47])
    assert float(numbers["clarity"][0]) == pytest.approx(expected, abs=1e-6)
    assert torch.isnan(numbers["clarity"][1:]).all() and torch.isnan(numbers["caption_clarity"][1:]).all()


def test_coherence_is_that_of_each_unit_s_own_images():
    """Loops over pairs of the images that a unit fires on most; the vectors of any other images give other numbers."""
    acts, evidence = world()
    numbers = ev.coherence(acts[TEST], evidence, TEST, 3)
    images, captions = evidence.judge.images.double(), evidence.captions.images.double()
    means = {}
    for u in (0, 1, 2, 3, 6):
        a = acts[TEST, u].double()
        top = TEST[a.topk(3).indices.numpy()]
        pairs = list(itertools.combinations(top, 2))
        assert float(numbers["clarity"][u]) == pytest.approx(
            np.mean([images[i] @ images[j] for i, j in pairs]), abs=1e-5
        )
        told = [captions[i] @ captions[j] for i, j in pairs if i % 10 and j % 10]
        if told:
            assert float(numbers["caption_clarity"][u]) == pytest.approx(np.mean(told), abs=1e-5)
        weights = torch.outer(a, a).fill_diagonal_(0)
        mono = (weights * (images[TEST] @ images[TEST].T)).sum() / weights.sum()
        assert a.min() == 0 and float(numbers["monosemanticity"][u]) == pytest.approx(float(mono), abs=1e-5)
        means[u] = normalize(images[top].mean(0), dim=0)
    for u, mean in means.items():
        nearest = max(float(mean @ other) for v, other in means.items() if v != u)
        assert float(numbers["redundancy"][u]) == pytest.approx(nearest, abs=1e-5)


@pytest.mark.parametrize("sparse", [False, True])
def test_images_without_a_vector_are_never_read(sparse):
    """Whatever stands in rows that are not `known`, NaN too: coherence is that of the other images."""
    acts, evidence = world()
    known = torch.arange(IMAGES) % 7 != 0
    found = []
    for filler in (torch.nan, 1e9, 0.0):
        judge, written = (
            replace(space, images=space.images.masked_fill(~known[:, None], filler), known=known & space.known)
            for space in (evidence.judge, evidence.captions)
        )
        test = acts[TEST].to_sparse_csr() if sparse else acts[TEST]
        found.append(ev.coherence(test, Judges(judge, written, None), TEST, 3))
    assert sum(bool(numbers.isfinite().any()) for numbers in found[0].values()) == 5
    for name, numbers in found[0].items():
        for other in found[1:]:
            assert torch.equal(numbers.nan_to_num(-9), other[name].nan_to_num(-9)), name
    seen = TEST[known[TEST].numpy()]
    mono = ev.coherence(acts[seen], evidence, seen, 3)["monosemanticity"]
    torch.testing.assert_close(found[0]["monosemanticity"], mono, equal_nan=True)


@pytest.mark.parametrize("sparse", [False, True])
@pytest.mark.parametrize("count", [0, 1])
def test_one_image_with_a_vector_or_none_makes_no_coherence(count, sparse):
    acts, evidence = world()
    known = torch.zeros(IMAGES, dtype=torch.bool)
    known[TEST[:count]] = True
    judges = Judges(replace(evidence.judge, known=known), None, None)
    numbers = ev.coherence(acts[TEST].to_sparse_csr() if sparse else acts[TEST], judges, TEST, 3)
    assert all(bool(values.isnan().all()) for values in numbers.values())


@pytest.mark.parametrize("sparse", [False, True])
@pytest.mark.parametrize(("mine", "test"), [(0, 30), (0, 9), (30, 9), (30, 0), (5, 30), (0, 0), (30, 10)])
def test_truth_that_describes_few_images_or_none_gives_no_number(mine, test, sparse):
    """No described mining image: no threshold. Fewer than 10 described test images: no number at all."""
    acts, evidence = world()
    known = torch.zeros(IMAGES, dtype=torch.bool)
    known[MINE[:mine]], known[TEST[:test]] = True, True
    member = evidence.truth.member & known[:, None]
    judges = Judges(evidence.judge, None, replace(evidence.truth, member=member, known=known))
    units = UnitActivations(acts.to_sparse_csr() if sparse else acts, "neuron", {})
    rows, _ = ev.evaluate(units, label_rows(GIVEN), judges, Splits(MINE, TEST), resamples=20)
    for row in rows[:3]:
        for name in OF_TRUTH:
            there = test >= 10 and (mine > 0 or name not in ("f1", "iou"))
            holds = member[TEST[:test], row["unit"]]
            there &= bool(holds.any()) and not bool(holds.all())
            there &= name not in ("f1", "iou") or bool(member[MINE[:mine], row["unit"]].any())
            assert (row["final"][name] is not None) == there, (name, row["unit"])


def test_files_hold_null_where_there_is_no_number(tmp_path, evaluated):
    ev.write(tmp_path, *evaluated)
    lines = [json.loads(line) for line in (tmp_path / "evaluation.jsonl").read_text().splitlines()]
    assert [line["unit"] for line in lines] == list(range(7))
    assert lines[3]["final"]["auprc"] is None and "NaN" not in (tmp_path / "evaluation.jsonl").read_text()
    assert json.loads((tmp_path / "evaluation.json").read_text())["images"] == {"mine": 30, "test": 30}


def test_bad_input_is_told_in_one_line():
    acts, evidence = world()
    units = UnitActivations(acts, "neuron", {})
    with pytest.raises(UserError, match="labels=6 rows: the basis has 7 units"):
        ev.evaluate(units, label_rows(GIVEN)[:6], evidence, Splits(MINE, TEST))
    with pytest.raises(UserError, match="1 images are in mine and test"):
        ev.evaluate(units, label_rows(GIVEN), evidence, Splits(np.arange(31), TEST))
    with pytest.raises(UserError, match="splits=4 test images: at least 10 needed"):
        ev.evaluate(units, label_rows(GIVEN), evidence, Splits(MINE, TEST[:4]))
    with pytest.raises(UserError, match="label='zebra': has no vector in judge"):
        ev.evaluate(units, label_rows(["zebra", *GIVEN[1:]]), evidence, Splits(MINE, TEST))
