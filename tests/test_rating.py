"""Blind rating: what is drawn, what sheets carry and refuse, what the analysis says where the truth is known."""

import csv
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from report_fixture import write_run
from test_report_accessible import check_alone

from saelab.errors import UserError
from saelab.report import reading
from saelab.report.live import analysis, rating, sheets
from saelab.report.live.rating import Answer, Item, Study, StudySettings

ASKED = StudySettings(per_basis=4, checks=3, shown=5, seed=1)


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> reading.Run:
    """The fixture's run with scorers' best labels only: of its eight words, six are somebody's runner-up."""
    run = reading.read(write_run(tmp_path_factory.mktemp("rating")))
    for basis in run.bases:
        for row in basis.labels:
            for entry in row["scores"].values():
                entry["runners_up"] = []
    return run


def planted(means: dict[str, float], units: int, raters: int, seed: int, spread: float = 0.7) -> tuple[Study, list]:
    """A study whose units have quality `mean` + normal, and raters who see it with noise."""
    rng = np.random.default_rng(seed)
    items = [Item(f"{basis}{u}", basis, u, "a", "a", (), False, False) for basis in means for u in range(units)]
    quality = {item.code: means[item.basis] + spread * rng.standard_normal() for item in items}
    answers = [
        Answer(f"r{r}", code, int(np.clip(np.rint(q + 0.4 * rng.standard_normal()), 1, 5)))
        for r in range(raters)
        for code, q in quality.items()
    ]
    return Study("planted", StudySettings(), tuple(items)), answers


# ---- drawing ----


def test_as_many_of_each_basis_all_of_which_can_be_shown(run):
    study = rating.draw(run, ASKED)
    real = [item for item in study.items if not item.check]
    for basis in run.bases:
        drawn = [item for item in real if item.basis == basis.name]
        assert len(drawn) == len({item.unit for item in drawn}) == ASKED.per_basis
        for item in drawn:
            assert item.label == item.own == basis.labels[item.unit]["label"]
            fires = basis.acts[list(item.images)][:, [item.unit]].toarray().ravel()
            assert len(set(item.images)) == ASKED.shown and (fires > 0).all()
    assert len({item.code for item in study.items}) == len(study.items)


def test_the_seed_decides_and_nothing_else(run):
    assert rating.draw(run, ASKED) == rating.draw(run, ASKED)
    other = rating.draw(run, replace(ASKED, seed=2))
    assert other.name != rating.draw(run, ASKED).name
    assert {(i.basis, i.unit) for i in other.items} != {(i.basis, i.unit) for i in rating.draw(run, ASKED).items}


def test_attention_checks_carry_a_label_that_nothing_speaks_for(run):
    study = rating.draw(run, ASKED)
    checks = [item for item in study.items if item.check]
    assert len(checks) == ASKED.checks
    by_name = {basis.name: basis for basis in run.bases}
    for item in checks:
        row = by_name[item.basis].labels[item.unit]
        said = {entry["label"] for entry in row["scores"].values()}
        said |= {name for i in item.images for name in run.images.classes[i]}
        assert item.own == row["label"] != item.label and item.label not in said
        assert (item.basis, item.unit) not in {(i.basis, i.unit) for i in study.items if not i.check}


def test_no_unit_to_show_is_told(run):
    with pytest.raises(UserError, match="shown=99"):
        rating.draw(run, replace(ASKED, shown=99))


# ---- sheets ----


def fill(path: Path, rate) -> None:
    rows = list(csv.reader(path.open()))
    with path.open("w", newline="") as file:
        csv.writer(file).writerows([rows[0], *([code, rate(code)] for code, _ in rows[1:])])


def test_sheets_come_back_as_they_were_filled_in(run, tmp_path):
    study = rating.draw(run, ASKED)
    sheets.write(study, run.images, 2, tmp_path)
    by_code = {item.code: item for item in study.items}
    fill(tmp_path / "sheet-01.csv", lambda code: "x" if by_code[code].basis == "neuron" else "2")
    fill(tmp_path / "sheet-02.csv", lambda code: "" if by_code[code].check else "5")
    sheets.write(study, run.images, 2, tmp_path)  # again: what is filled in stays
    asked = sheets.read_key(tmp_path / "key.json")
    assert asked == study
    answers = sheets.read([tmp_path / "sheet-01.csv", tmp_path / "sheet-02.csv"], asked)
    assert len(answers) == 2 * len(study.items) - ASKED.checks
    for answer in answers:
        expected = 5 if answer.rater == "sheet-02" else None if by_code[answer.code].basis == "neuron" else 2
        assert answer.rating == expected
    found = {row["basis"]: row for row in analysis.analyse(asked, answers)["bases"]}
    assert found["neuron"]["mean"] == 5 and found["sae seed 0"]["mean"] == 3.5
    assert found["neuron"]["cant_say"] == ASKED.per_basis


def test_a_page_shows_every_item_and_names_no_basis(run, tmp_path):
    study = rating.draw(run, ASKED)
    text = sheets.write(study, run.images, 1, tmp_path)[0].read_text()
    for item in study.items:
        assert text.count(f'name="{item.code}"') == 6
    assert text.count("<img") == len(study.items) * ASKED.shown
    for word in ("neuron", "sae", "rotation", "http", "check"):
        assert word not in text.lower().replace("http-equiv", "").split("</form>")[0].split("data:image")[0]
    assert not any(basis.name in text for basis in run.bases)
    assert {"basis", "check"} <= set(json.loads((tmp_path / "key.json").read_text())["items"][0])


@pytest.mark.browser
def test_a_sheet_can_be_read_anywhere(run, tmp_path, browser):
    check_alone(browser, sheets.write(rating.draw(run, ASKED), run.images, 1, tmp_path)[0])


def test_what_spreadsheets_write_is_read(run, tmp_path):
    study = rating.draw(run, ASKED)
    path = tmp_path / "ada.csv"
    path.write_text(f"\ufeffitem;rating\r\n{study.items[0].code}; 4 \r\n{study.items[1].code};X\r\n", encoding="utf-8")
    codes = [item.code for item in study.items]
    assert sheets.read([path], study) == [Answer("ada", codes[0], 4), Answer("ada", codes[1], None)]


@pytest.mark.parametrize(
    "text",
    [
        "",
        "a,b\n1,2\n",
        "item,rating\n{0},6\n",
        "item,rating\n{0},good\n",
        "item,rating\nffff,3\n",
        "item,rating\n{0},3\n{0},4\n",
    ],
)
def test_sheets_that_are_none_are_named_with_the_line(run, tmp_path, text):
    study = rating.draw(run, ASKED)
    path = tmp_path / "bad.csv"
    path.write_text(text.format(study.items[0].code))
    with pytest.raises(UserError, match=r"bad\.csv"):
        sheets.read([path], study)


def test_a_folder_with_another_studys_key_is_left_alone(run, tmp_path):
    sheets.write(rating.draw(run, ASKED), run.images, 1, tmp_path)
    with pytest.raises(UserError, match="another study"):
        sheets.write(rating.draw(run, replace(ASKED, seed=5)), run.images, 1, tmp_path)


# ---- analysis ----


def test_intervals_cover_the_true_mean_and_differences_of_nothing_hold_zero():
    covers, zero = 0, 0
    for seed in range(100):
        study, answers = planted({"a": 3.0, "b": 3.0}, units=40, raters=2, seed=seed)
        found = analysis.analyse(study, answers)
        covers += found["bases"][0]["low"] <= 3.0 <= found["bases"][0]["high"]
        zero += found["pairs"][0]["low"] <= 0 <= found["pairs"][0]["high"]
    assert covers >= 88 and zero >= 88  # 95 expected; a binomial's 0.3 % quantile is 88


def test_a_basis_that_is_better_is_called_better():
    study, answers = planted({"good": 4.2, "bad": 2.2}, units=20, raters=3, seed=0)
    pair = analysis.analyse(study, answers)["pairs"][0]
    assert (pair["a"], pair["b"]) == ("good", "bad") and pair["low"] > 1 and pair["high"] < 3


def test_alpha_is_krippendorffs():
    """Data and ordinal value (0.815) of Krippendorff, Computing Krippendorff's Alpha-Reliability (2011), example E."""
    table = [
        [1, 2, 3, 3, 2, 1, 4, 1, 2, None, None, None],
        [1, 2, 3, 3, 2, 2, 4, 1, 2, 5, None, 3],
        [None, 3, 3, 3, 2, 3, 4, 2, 2, 5, 1, None],
        [1, 2, 3, 3, 2, 4, 4, 1, 2, 5, 1, None],
    ]
    items = tuple(Item(str(u), "a", u, "a", "a", (), False, False) for u in range(12))
    answers = [Answer(f"r{r}", str(u), v) for r, row in enumerate(table) for u, v in enumerate(row) if v is not None]
    alpha = analysis.analyse(Study("golden", StudySettings(), items), answers)["alpha"]
    assert alpha == pytest.approx(0.815, abs=5e-4)


def test_who_calls_swapped_labels_fitting_is_left_out():
    study, answers = planted({"a": 4.0}, units=26, raters=3, seed=3)
    items = tuple(replace(item, check=item.unit < 6) for item in study.items)
    study = replace(study, items=items)
    checks = {item.code for item in items if item.check}
    answers = [
        replace(a, rating=5 if a.rater == "r2" else 1) if a.code in checks else a
        for a in [replace(a, rating=5) if a.rater == "r2" else a for a in answers]
    ]
    found = analysis.analyse(study, answers)
    assert [(r["failed"], r["kept"]) for r in found["raters"]] == [(0, True), (0, True), (6, False)]
    attentive = analysis.analyse(study, [a for a in answers if a.rater != "r2"])
    assert found["bases"] == attentive["bases"] and found["bases"][0]["units"] == 20
    assert found["alpha"] == attentive["alpha"]


def test_numbers_that_cannot_be_had_are_none():
    study, answers = planted({"a": 3.0, "b": 3.0}, units=2, raters=1, seed=0)
    found = analysis.analyse(study, [a for a in answers if a.code == "a0"])
    assert found["bases"][0]["mean"] is not None and found["bases"][0]["low"] is None
    assert found["bases"][1]["mean"] is None and found["pairs"][0]["difference"] is None
    assert found["alpha"] is None
    assert "0 of 0 checks failed" in analysis.table(found)
