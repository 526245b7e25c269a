"""Synthesised pictures on unit pages: below the photos, with their numbers in words; never in place of photos."""

import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from report_fixture import write_run
from test_report_browser import Reader

from saelab import artifacts
from saelab.report import build, reading, synthesised

ROW = {"number": 0, "method": "fourier", "photo": None, "reached": True, "ratio": 1.874, "activation": 3.0}
ROW |= {"path_share": 0.5, "independent": True, "label_agrees": 0.91}
ROW |= {"retrieval": {"rank": 3, "of": 600, "percentile": 0.9967}}


@pytest.fixture(scope="module")
def run_json(tmp_path_factory) -> Path:
    """The fixture's run with pictures of units 2 and 3 by one method, and of unit 2 by another that did not get there;
    the labels of unit 3's row are not the run's."""
    path = write_run(tmp_path_factory.mktemp("synthesised"))
    run, root = artifacts.read_json(path), path.parent
    neuron = next(basis for basis in run["bases"] if basis["name"] == "neuron")
    recipes = {stage: artifacts.read_json(root / neuron[stage] / "recipe.json") for stage in ("units", "labels")}
    units, labels = map(artifacts.digest, recipes.values())
    for name, method, rows in (
        ("neuron-0000000001", "fourier", [{"unit": 2, "labels": labels}, {"unit": 3, "labels": "another"}]),
        ("neuron-0000000002", "pixel", [{"unit": 2, "labels": labels, "reached": False}]),
        ("neuron-0000000003", "maco", [{"unit": 2, "labels": labels}]),
    ):
        folder = root / "synthesised" / name
        folder.mkdir(parents=True)
        own = "another basis" if method == "maco" else units
        artifacts.write_json(folder / "recipe.json", {"units": own})
        for row in rows:
            stem = f"unit-{row['unit']:05d}-0"
            row |= {"file": f"{stem}.png", "where": f"{stem}-where.png", "method": method}
            Image.fromarray(np.full((32, 32, 3), 90, np.uint8)).save(folder / row["file"])
            Image.fromarray(np.tile(np.linspace(0, 255, 32, dtype=np.uint8), (32, 1))).save(folder / row["where"])
        artifacts.write_jsonl(folder / "synthesised.jsonl", [ROW | row for row in rows])
    return path


def test_numbers_are_told_in_words():
    reach, way, place, label = synthesised.tell(ROW, current=True)
    assert "1.87 times as strongly as the strongest photo" in reach and "50 % of what they have in common" in way
    assert "rank 3 of 600; chance 50 %" in place and place.startswith("An encoder that has no part")
    assert "better than 91 %" in label and len(synthesised.tell(ROW, current=False)) == 3
    bare = ROW | {"path_share": None, "retrieval": None, "label_agrees": None}
    assert len(synthesised.tell(bare, current=True)) == 1
    assert synthesised.tell(bare | {"reached": False}, True)[0].startswith("Not reached")
    assert "which no photo does" in synthesised.tell(bare | {"ratio": None}, True)[0]
    assert "at 60 % of the strongest photo" in synthesised.tell(bare | {"ratio": 0.6}, True)[0]
    for share, words in ((0.9, "as its photos go"), (0.1, "by another way than its photos"), (-0.2, ": 0 %")):
        assert words in synthesised.tell(ROW | {"path_share": share}, True)[1]
    assert "own encoder" in synthesised.tell(ROW | {"independent": False}, True)[2]


def test_pictures_are_found_by_the_units_that_they_are_of(run_json):
    run = reading.read(run_json)
    found = {basis.name: {unit: len(rows) for unit, rows in basis.synthesised.items()} for basis in run.bases}
    assert found.pop("neuron") == {2: 2, 3: 1} and not any(found.values())


def test_a_report_is_built_anew_when_pictures_come(run_json):
    def source():
        return sys.modules["saelab.report.build"]._source(reading.read(run_json), 30, None)

    before = source()
    rows = run_json.parent / "synthesised" / "neuron-0000000002" / "synthesised.jsonl"
    kept = rows.read_bytes()
    artifacts.write_jsonl(rows, [row | {"ratio": 0.1} for row in artifacts.read_jsonl(rows)])
    changed = source()
    rows.write_bytes(kept)
    assert changed != before == source()


@pytest.mark.browser
def test_pages_show_them_below_the_photos(run_json, browser, tmp_path_factory):
    out = build(run_json, tmp_path_factory.mktemp("out") / "report").parent
    faded = np.asarray(Image.open(next((out / "synthesised").rglob("*00002-0-faded.webp"))))
    assert faded.shape[2] == 4 and faded[0, 0, 3] < 60 < 200 < faded[0, -1, 3]
    reader = Reader(browser, out)
    page = reader.open("unit.html#neuron/2")
    titles = page.locator("main h2").all_inner_texts()
    assert titles.index("What excites it, and what does not") < titles.index("Pictures made to raise it")
    made = page.locator("section:has(h2:text('Pictures made to raise it'))")
    assert made.locator(".made >> nth=0").locator("figure").count() == 1 and "1.87 times" in made.inner_text()
    assert made.locator("details .made figure").count() == 1
    assert page.evaluate("[...document.querySelectorAll('.made img')].every(i => i.alt)")
    page = reader.open("unit.html#neuron/4")
    page.reload()
    page.wait_for_selector(".crumbs")
    assert page.locator("h2:text('Pictures made to raise it')").count() == 0
    assert reader.faults == []
