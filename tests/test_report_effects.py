"""What units do, on the pages: their own outputs marked, detects x uses, in a browser; nothing without effects."""

import shutil
from pathlib import Path

import numpy as np
import pytest
from report_fixture import write_run
from test_report_browser import Reader

from saelab import artifacts, compare
from saelab.compare import causal
from saelab.effects import add_corrected
from saelab.errors import UserError
from saelab.report import build, reading, what_it_does

OUTPUTS = [f"output {i}" for i in range(12)]
MEASURED = ("neuron", "random rotation")


def effects_of(basis: dict, labels: list[dict], root: Path) -> list[dict]:
    """Planted effects: unit 0 is too rarely on, no output means the label of unit 1, one means those of all others."""
    rng = np.random.default_rng(len(labels))
    folder, rows = root / "effects" / basis["basis"], []
    folder.mkdir(parents=True)
    for row in labels:
        values = rng.normal(0, 1, len(OUTPUTS))
        order = np.argsort(values)
        own = {"unit": row["unit"], "label": row["label"], "pictures": [3, 9], "why": None}
        own |= {"raised": [[OUTPUTS[i], float(values[i])] for i in order[:-6:-1]]}
        own |= {"lowered": [[OUTPUTS[i], float(values[i])] for i in order[:5]]}
        why = {0: "too_few", 1: "no_target"}.get(row["unit"]) or (None if row["label"] else "unlabelled")
        numbers = {"causal_pct": 0.8, "causal_control": 0.5, "causal_net": float(values[0] / 10), "causal_p": 0.01}
        numbers |= {"drop": float(values[0]), "causal": 0.3, "moved": 7.0, "push": 1.5, "necessity": None}
        numbers = dict.fromkeys(numbers) if why else numbers
        without = {name: [numbers[name]] * 2 for name in causal.METRICS}
        rows.append(own | {"why": why, "without": without} | numbers)
    artifacts.write_jsonl(folder / "effects.jsonl", rows)
    means = {label: [[OUTPUTS[0], 1.0]] for label in {row["label"] for row in labels if row["label"]}}
    artifacts.write_json(folder / "targets.json", {"outputs": len(OUTPUTS), "labels": means})
    return rows


def write_run_with_effects(folder: Path) -> Path:
    """The fixture's run, with planted effects of two bases and the comparison that knows them."""
    path = write_run(folder)
    run, root = artifacts.read_json(path), path.parent
    found = {}
    for basis in run["bases"]:
        if basis["name"] in MEASURED:
            labels = artifacts.read_jsonl(root / basis["labels"] / "labels.jsonl")
            found[basis["layer"], basis["name"]] = add_corrected(effects_of(basis, labels, root))
            basis["effects"] = f"effects/{basis['basis']}"
    result = artifacts.read_json(root / run["comparison"] / "comparison.json")
    facts = {basis["name"]: basis for basis in result["bases"]}
    setup, own = compare.Setup(**result["setup"]), ("name", "group", "kind", "seed", "weights", "control")
    sides = []
    for basis in run["bases"]:
        rows = artifacts.read_jsonl(root / basis["evaluation"] / "evaluation.jsonl")
        sides.append(compare.ComparedBasis(*(facts[basis["name"]][name] for name in own), setup, rows))
    settings = compare.Settings(resamples=200, fewest=3)
    causal.join([result], [sides], found, settings, None, {})
    made = artifacts.ensure(root, "comparison", "fire", {"of": "effects"}, lambda at: compare.write(at, result))
    run["comparison"] = run["comparisons"]["fire"] = str(made.path.relative_to(root))
    artifacts.write_json(path, run)
    return path


@pytest.fixture(scope="module")
def run_json(tmp_path_factory) -> Path:
    return write_run_with_effects(tmp_path_factory.mktemp("effects"))


def test_a_record_shows_what_was_measured_and_marks_its_own(run_json):
    run = reading.read(run_json)
    basis = run.bases[0]
    shown = what_it_does.of_units(basis.effects, basis.labels)
    assert shown[0] is None and shown[1]["cell"] is None
    assert all(x is None for x in what_it_does.of_units(None, basis.labels))
    for label, found in zip(basis.labels, shown):
        row = basis.effects.rows[label["unit"]]
        if found is None or found["cell"] is None:
            continue
        assert found["cell"] == ("uses" if label["abstained"] else "both") and found["own"] == ["output 0"]
        assert found["causal_q"] == pytest.approx(0.01), "all planted units have p 0.01: correction changes nothing"
        for side in ("raised", "lowered"):
            assert [[name, value] for name, value, _ in found[side]] == row[side]
            assert all(own == (name == "output 0") for name, _, own in found[side])


def test_effects_that_are_gone_are_one_line(run_json, tmp_path):
    shutil.copytree(run_json.parent, tmp_path / "runs")
    (tmp_path / "runs" / "effects" / "neuron" / "targets.json").unlink()
    with pytest.raises(UserError, match="saelab effects"):
        reading.read(tmp_path / "runs" / run_json.name)


@pytest.mark.browser
def test_pages_show_what_units_do(run_json, browser, tmp_path_factory):
    out = build(run_json, tmp_path_factory.mktemp("out") / "report").parent
    reader = Reader(browser, out)
    page = reader.open("unit.html#neuron/2")
    text = page.inner_text("section:has(h2:text('What it does'))")
    assert "It raises" in text and "It lowers" in text and "all 12 outputs" in text
    assert page.locator("section:has(h2:text('What it does')) tbody tr").count() == 10
    basis = reading.read(run_json).bases[0]
    shown = what_it_does.of_units(basis.effects, basis.labels)[2]
    named = {"both": "in when and what:", "uses": "in only what it does:"}
    assert shown["cell"] in named and named[shown["cell"]] in text
    marked = sum(own for side in ("raised", "lowered") for *_, own in shown[side])
    assert page.locator("section:has(h2:text('What it does')) th.chosen .tag").count() == marked
    page = reader.open("unit.html#neuron/0")
    page.reload()
    page.wait_for_selector(".crumbs")
    assert page.locator("h2:text('What it does')").count() == 0
    page = reader.open("compare.html")
    text = page.inner_text("section:has(h2:text('What units do'))")
    assert "when and what" in text and "Own class, net of other units" in text
    assert page.locator("section:has(h2:text('What units do')) table >> nth=0 >> tbody tr").count() == len(MEASURED)
    assert "Does the network use it so?" in page.inner_text("table.glance")
    assert "Does the network use it so?" in page.inner_text("div.verdict")
    page = reader.open("index.html")
    assert "Does the network use it so?" in page.inner_text("div.verdict >> nth=0"), "the overview says so too"
    assert reader.faults == []
