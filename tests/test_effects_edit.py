"""Concept editing: which units are named so, random sets of equal effect, accuracy by group; a planted shortcut."""

import csv
import shutil
import tempfile
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from test_effects_attribution import draw
from test_effects_stage import made  # noqa: F401  (a fixture)
from test_report_accessible import check_alone

import saelab
from saelab.effects.ablate import Active
from saelab.effects.edit import Groups, find_named, judge, matched_sets, size_of, without_all
from saelab.images.demo.composites import make_composites
from saelab.report.edits import sentence, with_minus
from saelab.run.stages.edit import EditSettings, read_photos
from saelab.units.bases import Projection

CONCEPTS = ["bridge", "body of water"]


def test_units_are_named_by_words_or_by_a_sentence_encoder():
    labels = ["arch bridges", "bridgehead", None, "Body of Water", "lake", "tench", "bridge"]
    plain = find_named(labels, CONCEPTS)
    assert [(n.unit, n.concept) for n in plain] == [(0, "bridge"), (3, "body of water"), (6, "bridge")]
    assert [n.unit for n in find_named(labels, CONCEPTS, exact=True)] == [3, 6]
    places = {"lake": [0.8, 0.6], "body of water": [1.0, 0.0], "bridge": [0.0, 1.0]}

    def embed(texts):
        return torch.tensor([places.get(text, [-1.0, 0.0]) for text in texts])

    found = find_named(labels, CONCEPTS, embed)
    assert [(n.unit, n.how) for n in found] == [(0, "words"), (3, "words"), (4, "text"), (6, "words")]
    assert find_named([None, "x"], ["y"], None) == []


def test_parts_leave_together():
    tokens = draw(0, 3, 4, 6)
    active = Active.of(Projection(), tokens)
    edited = without_all(active, torch.eye(6), [1, 4])
    expected = tokens.clone()
    expected[..., [1, 4]] = expected[..., [1, 4]].clamp(max=0)
    torch.testing.assert_close(edited, expected)
    assert torch.equal(without_all(active, torch.eye(6), []), tokens)


@given(st.integers(0, 1000), st.floats(0.2, 30))
@settings(max_examples=20, deadline=None)
def test_random_sets_have_the_wanted_effect(seed, target):
    """Effects that grow with every unit: the set is the nearest there is, by brute force over all sizes."""
    sizes = np.random.default_rng(seed).random(30)

    def effect(sets):
        return np.array([sizes[list(own)].sum() for own in sets])

    for own in matched_sets(effect, target, range(30), draws=5, seed=seed):
        order = np.cumsum(sizes[own])
        gap = abs(order[-1] - target)
        rest = [u for u in range(30) if u not in own]
        assert len(set(own)) == len(own) and (len(own) == 30 or order[-1] + sizes[rest].max() > target)
        assert len(own) == 1 or gap <= abs(order[-2] - target) + 1e-12


def test_size_ignores_a_common_shift():
    before = draw(1, 4, 3)
    assert size_of(before, torch.stack([before + 5, before * 0])) == pytest.approx(
        [0, float((before - before.mean(1, keepdim=True)).norm(dim=1).mean())], abs=1e-5
    )


def test_accuracy_is_by_group_and_intervals_know_their_size():
    classes, groups = np.array([0, 0, 0, 1, 1, 1]), np.array([0, 0, 1, 2, 2, 1])
    own = Groups(classes, groups)
    assert own.accuracy(np.array([0, 1, 0, 1, 1, 0])).tolist() == [0.5, 0.5, 1.0]
    rng = np.random.default_rng(0)
    many = Groups(np.zeros(400, int), np.repeat([0, 1], 200))
    before = (rng.random(400) < np.repeat([0.9, 0.5], 200)).astype(int) ^ 1
    after = (rng.random(400) < 0.8).astype(int) ^ 1
    random = (rng.random((20, 400)) < np.repeat([0.9, 0.5], 200)).astype(int) ^ 1
    found = judge(many, before, after, random)
    change, low, high, p, p_harm = found.worst
    assert low < change < high and change == pytest.approx(0.3, abs=0.1) and high - low < 0.25
    assert p == pytest.approx(1 / 21) and p_harm == 1 and found.random.shape == (20, 2)
    back = judge(many, after, before, np.stack([after] * 19))
    assert back.worst.change == -change and back.worst.high < 0 and back.worst.p_harm == 1 / 20 and back.worst.p == 1
    same = judge(many, before, before, np.stack([before] * 4))
    assert same.worst == same.average == (0, None, None, 1, 1)


@given(st.integers(1, 30), st.booleans(), st.integers(0, 1000))
@settings(max_examples=20, deadline=None)
def test_a_group_that_changes_as_one_gives_no_interval(pictures, better, seed):
    """Resampling always finds the same there, however few pictures it has."""
    rng = np.random.default_rng(seed)
    groups = Groups(np.zeros(100 + pictures, int), np.repeat([0, 1], [100, pictures]))
    rest = (rng.random((2, 100)) < 0.1).astype(int)
    said = [np.append(own, [wrong] * pictures) for own, wrong in zip(rest, (1, 0) if better else (0, 1))]
    found = judge(groups, said[0], said[1], np.stack([said[0]] * 20))
    worst = found.worst._asdict() | {"before": found.before.min(), "after": found.after.min()}
    worst |= {"random": found.random.min(-1).tolist()}
    assert worst["low"] is worst["high"] is None is found.average.low
    text = sentence({"worst": worst, "named": [1], "concepts": ["sea"]})
    assert "no interval: all pictures of a group change" in text and "These pictures can't show" in text
    assert "needs" not in text and "leaned" not in text


@pytest.mark.parametrize("extra", [0.0, 0.2])
def test_harm_counts_beyond_that_of_random_units(extra):
    """Worlds in which the named units hurt as random ones do, or more."""
    rng, needed = np.random.default_rng(0), 0
    groups = Groups(np.zeros(400, int), np.repeat([0, 1], 200))

    def hurt(by):
        return (rng.random(400) < 0.15 + by).astype(int)

    for _ in range(30):
        found = judge(groups, hurt(0), hurt(0.3 + extra), np.stack([hurt(0.3) for _ in range(20)]))
        worst = found.worst._asdict() | {"before": found.before.min(), "after": found.after.min()}
        worst |= {"random": found.random.min(-1).tolist()}
        text = sentence({"worst": worst, "named": [1], "concepts": ["sea"]})
        needed += "needs them there" in text
        old = {key: value for key, value in worst.items() if key != "p_harm"}
        assert sentence({"worst": old, "named": [1], "concepts": ["sea"]}) == text, "a record of earlier"
    assert needed > 27 if extra else needed < 6


def shortcut(folder, seed=0):
    """Red or blue squares, the class; green corners, the group, which stands beside red in training and also beside
    blue in the test."""
    rng = np.random.default_rng(seed)
    rows = []
    for split, each in (("train", 40), ("test", 12)):
        for klass in ("red", "blue"):
            for green in (True, False):
                agrees = green == (klass == "red")
                for n in range(each if agrees or split == "test" else 2):
                    pixels = np.full((32, 32, 3), 20, np.uint8)
                    pixels[:16, :16, 0 if klass == "red" else 2] = rng.integers(140, 200)
                    if green:
                        pixels[16:, :, 1] = 250
                    name = f"{split}-{klass}-{green}-{n}.png"
                    Image.fromarray(pixels + rng.integers(0, 5, pixels.shape, dtype=np.uint8)).save(folder / name)
                    rows.append((name, klass, "green" if green else "plain", split))
    with (folder / "photos.csv").open("w", newline="") as file:
        csv.writer(file).writerows([("file", "class", "group", "split"), *rows])
    return folder


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    return shortcut(tmp_path_factory.mktemp("shortcut"))


def test_a_planted_shortcut_is_taken_out_by_its_name(made, photos):  # noqa: F811
    found = made.edit(photos, ["green"], "neuron", match="exact", abstained=True, draws=6)
    facts = found.facts
    assert [unit["unit"] for unit in facts["named"]] == [
        u for u, row in enumerate(made.labels["neuron"].rows()) if row["label"] == "green"
    ]
    table = found.table().set_index(["class", "group"])
    assert table.loc[("red", "plain"), "test"] == 12 and table.loc[("blue", "green"), "train"] == 2
    worst = facts["worst"]
    assert facts["accuracy"] == pytest.approx(np.mean([group["before"] for group in facts["groups"]]))
    assert worst["before"] == min(group["before"] for group in facts["groups"])
    assert worst["after"] > worst["before"] > max(worst["random"]) and worst["p"] == pytest.approx(1 / 7)
    assert len(worst["random"]) == 6 == len(facts["random_units"])
    page = found.page.read_text(encoding="utf-8")
    assert "Without green" in page and with_minus(sentence(facts)) in page.replace("&#39;", "'") and "http:" not in page
    assert with_minus("from 1 to -0.5 (-1 to +2), pre-1900") == "from 1 to −0.5 (−1 to +2), pre-1900"
    assert f"Neurons of {facts['layer']}" in page and facts["words"] == "Neurons"
    moved = shutil.copytree(photos, photos.with_name("elsewhere") / photos.name)
    again = made.edit(str(moved), ["green"], "neuron", match="exact", abstained=True, draws=6)
    assert again.facts == facts and again.page == found.page, "the same pictures elsewhere"


@pytest.mark.browser
def test_the_page_can_be_read_anywhere(made, photos, browser):  # noqa: F811
    check_alone(browser, made.edit(photos, ["green"], "neuron", match="exact", abstained=True, draws=6).page)


def test_predictions_are_those_of_the_edited_model(made, photos):  # noqa: F811
    """By hand: the whole model with the unit's positive side removed, through the probe's own weights."""
    from saelab.effects import fit_probe

    facts = made.edit(photos, ["green"], "neuron", match="exact", abstained=True, draws=1).facts
    units = [unit["unit"] for unit in facts["named"]]
    table = read_photos(photos)
    batch = made.host.load_images([Image.open(p.path).convert("RGB") for p in table])

    def edit(tokens):
        kept = tokens.clone()
        kept[..., units] = kept[..., units].clamp(max=0)
        return kept

    plain, edited = made.host.logits(batch), made.host.logits_with(batch, "second", edit)
    train = [i for i, p in enumerate(table) if p.split == "train"]
    test = [i for i, p in enumerate(table) if p.split == "test"]
    own = (plain[train], [[table[i].klass] for i in train])
    probe = fit_probe(*own, *own)
    for name, answers in (("before", plain), ("after", edited)):
        said = [probe.outputs.names[int(i)] for i in probe(answers[test]).argmax(1)]
        for group in facts["groups"]:
            own = [
                place
                for place, i in enumerate(test)
                if (table[i].klass, table[i].group) == (group["class"], group["group"])
            ]
            assert group[name] == pytest.approx(np.mean([said[i] == group["class"] for i in own]))


def test_a_layer_inside_a_branch_gives_the_same(made, photos):  # noqa: F811
    """Where no pass goes on from tokens, each starts from its picture."""
    asked = {"match": "exact", "abstained": True, "draws": 2}
    first = made.edit(photos, ["green"], "neuron", **asked)
    quick = first.facts
    first.page.unlink()  # what is whole is not measured again
    how, made.host._cuts["second"] = made.host._cuts["second"], None
    try:
        slow = made.edit(photos, ["green"], "neuron", **asked).facts
    finally:
        made.host._cuts["second"] = how
    assert slow["groups"] == quick["groups"] and slow["effect"] == pytest.approx(quick["effect"], rel=1e-4)


WRONG = {
    "no table": (lambda rows: None, "holds no photos.csv"),
    "column": (lambda rows: [[*r[:2], r[3]] for r in rows], "has no column group"),
    "split": (lambda rows: [rows[0], *([*r[:3], "valid"] for r in rows[1:])], "is no split"),
    "file": (lambda rows: [*rows, ["nowhere.png", "red", "plain", "test"]], "not on disk"),
    "class": (lambda rows: [rows[0], *(r for r in rows[1:] if r[1] == "red")], "has 1 class"),
    "group": (lambda rows: [rows[0], *([r[0], r[1], "g", r[3]] for r in rows[1:])], "has 1 group"),
    "few": (
        lambda rows: [rows[0], *(r for n, r in enumerate(rows[1:]) if r[3] == "train" or n % 5 == 0)],
        "has . test pictures",
    ),
    "untrained": (lambda rows: [rows[0], *(r for r in rows[1:] if r[1] == "red" or r[3] == "test")], "training"),
}


@pytest.mark.parametrize("case", WRONG)
def test_pictures_that_no_edit_can_be_judged_on_are_one_line(case, tmp_path):
    change, message = WRONG[case]
    folder = shortcut(tmp_path)
    with (folder / "photos.csv").open(newline="") as file:
        rows = change(list(csv.reader(file)))
    (folder / "photos.csv").unlink()
    if rows is not None:
        with (folder / "photos.csv").open("w", newline="") as file:
            csv.writer(file).writerows(rows)
    with pytest.raises(saelab.UserError, match=message):
        read_photos(folder)
    with pytest.raises(saelab.UserError, match="is not there"):
        read_photos(folder / "no such folder")


BROKEN = {
    "cut": (b"class,group,split,file\nred,plain,train\n", r"photos\.csv, line 2: has no file"),
    "blank, then cut": (b"class,group,split,file\n\n\nred\n", r"photos\.csv, line 4: has no file, group, split"),
    "cp1252": ("file,class,group,split\nMöwe.jpg,red,plain,train\n".encode("cp1252"), r"photos\.csv: is not UTF-8"),
    "utf-16": ("file,class,group,split\n".encode("utf-16"), r"photos\.csv: is not UTF-8"),
    "nul": (b"file,class,group,split\na\0.jpg,red,plain,train\n", r"photos\.csv, line 2: .* is not on disk"),
    "long": (b"file,class,group,split\n" + b"a" * 5000 + b",red,plain,train\n", "line 2: .* is not on disk"),
    "longest": (b"file,class,group,split\n" + b"a" * 200_000 + b",red,plain,train\n", r"photos\.csv: can't be read"),
    "empty": (b"", r"photos\.csv: has no column file"),
    "no file": (b"file,class,group,split\n,red,plain,train\n", r"photos\.csv, line 2: '' is not on disk"),
    "semicolons": (b"file;class;group;split\na.jpg;red;plain;valid\n", r"photos\.csv, line 2: 'valid' is no split"),
}


@pytest.mark.parametrize("case", BROKEN)
def test_tables_that_editors_leave_are_one_line(case, tmp_path):
    data, message = BROKEN[case]
    (tmp_path / "photos.csv").write_bytes(data)
    with pytest.raises(saelab.UserError, match=message):
        read_photos(tmp_path)


@given(
    st.lists(st.lists(st.sampled_from(["a.png", "red", "", "train", "x,y", '"', "\n", "\0"]), max_size=6), max_size=5)
)
@settings(max_examples=100, deadline=None)
def test_any_table_is_read_or_refused(rows):
    with tempfile.TemporaryDirectory() as folder:
        text = "\n".join(["class,group,split,file", *map(",".join, rows)])
        (Path(folder) / "photos.csv").write_text(text, encoding="utf-8")
        with pytest.raises(saelab.UserError):
            read_photos(Path(folder))


def test_settings_and_names_that_lead_nowhere_are_one_line(made, photos):  # noqa: F811
    with pytest.raises(saelab.UserError, match="no unit of neuron is named so"):
        made.edit(photos, ["locomotive"], "neuron", match="words")
    for wrong in ({"concepts": []}, {"concepts": ["x"], "match": "txt"}, {"concepts": ["x"], "draws": 0}):
        with pytest.raises(saelab.UserError):
            EditSettings(**wrong)


def test_composites_keep_test_cut_outs_and_scenes_apart(tmp_path):
    rng = np.random.default_rng(0)
    for name in [f"{kind}{i}" for kind in ("bird", "cow") for i in range(10)]:
        pixels = rng.integers(0, 255, (20, 30, 4), dtype=np.uint8)
        Image.fromarray(pixels).save(tmp_path / f"{name}.png")
    for name in [f"{kind}{i}" for kind in ("sea", "land") for i in range(6)]:
        Image.fromarray(rng.integers(0, 255, (40, 60, 3), dtype=np.uint8)).save(tmp_path / f"{name}.png")
    subjects = {kind: [f"{kind}{i}.png" for i in range(10)] for kind in ("bird", "cow")}
    scenes = {kind: [f"{kind}{i}.png" for i in range(6)] for kind in ("sea", "land")}
    out = tmp_path / "out"
    out.mkdir()
    make_composites(tmp_path, subjects, scenes, out, np.random.default_rng(1))
    photos = read_photos(out)
    assert len(photos) == 80 and {p.split for p in photos} == {"train", "test"}
    cut = {s: {p.path.stem.split("-")[0] for p in photos if p.split == s} for s in ("train", "test")}
    assert not cut["train"] & cut["test"] and len(cut["test"]) == 8
    test = [p for p in photos if p.split == "test"]
    assert all(sum((p.klass, p.group) == pair for p in test) == 8 for pair in {(p.klass, p.group) for p in test})
    train = [p for p in photos if p.split == "train"]
    assert np.mean([(p.klass == "bird") == (p.group == "sea") for p in train]) > 0.8
    with Image.open(photos[0].path) as image:
        assert image.size == (224, 224)


def test_the_sentence_says_no_more_than_the_numbers():
    base = {"named": [1, 2], "concepts": ["sea", "lake"]}

    def said(low, high, p, p_harm=1.0):
        worst = {"before": 0.5, "after": 0.6, "change": 0.1, "low": low, "high": high, "random": [0.4, 0.6]}
        return sentence(base | {"worst": worst | {"p": p, "p_harm": p_harm}})

    assert said(0.05, 0.2, 0.04).endswith("The classifier leaned on them.")
    assert said(0.05, 0.2, 0.30).endswith("Random units may do as much.")
    assert said(-0.05, 0.2, 0.04).endswith("The change may be chance.")
    assert said(-0.3, -0.1, 0.9, 0.04).endswith("(p 0.04). The classifier needs them there.")
    assert said(-0.3, -0.1, 0.9, 0.06).endswith("(p 0.06). Random units may do as much.")
    assert said(0.1, 0.1, 0.04).endswith("These pictures can't show whether that is chance."), "a record of earlier"
    assert "2 units named sea or lake" in said(0, 1, 1) and "leave it at 0.50 on average" in said(0, 1, 1)
