"""Pictures of labels on unit pages: measured by the stage, kept small, shown with their numbers."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from report_fixture import Filters, write_run
from report_reader import Reader

from saelab import artifacts, units
from saelab.evaluate import cosy
from saelab.hosts import Host
from saelab.hosts.transform import Transform
from saelab.report import build, label_pictures, reading
from saelab.run.basis import Basis
from saelab.run.stages.cosy import CosySettings, Shown, labels_of, measure_labels, open_like

playwright = pytest.importorskip("playwright.sync_api", reason="needs playwright (the dev extra)")


@pytest.fixture(scope="module")
def made(tmp_path_factory) -> tuple[Path, Path, str]:
    """The run and its report after `saelab cosy` with a folder: one label has photos, another only black pictures."""
    run_json = write_run(tmp_path_factory.mktemp("painted"))
    run = reading.read(run_json)
    entry = next(b for b in run.facts["bases"] if b["name"] == "neuron")
    of = {stage: artifacts.open_artifact(run_json.parent / entry[stage]) for stage in ("units", "labels")}
    basis = Basis("neuron", "neurons", "neuron", None, "fire", of["units"], "", labels=of["labels"])
    labels = labels_of(basis, "final")
    named = sorted({label for label in labels if label is not None})
    folder = run_json.parent.parent / "pictures"
    for label, dark in ((named[0], False), (named[1], True)):
        (folder / label).mkdir(parents=True)
        for i in range(12):
            noise = np.random.default_rng(i).integers(0, 3 if dark else 256, (100, 100, 3), dtype=np.uint8)
            Image.fromarray(noise).save(folder / label / f"{i:03}.png")
    pictures = open_like(run.images, folder)
    host = Host(Filters(), Transform(100, (92, 92), mean=(0.5,) * 3, std=(0.25,) * 3), "filters")
    project = units.Projection.load(basis.units.path)
    pool = units.UnitActivations.load(basis.units.path).info["pool"]
    (acts,) = cosy.activations(host, pictures, [("fire", project)], "all", pool, workers=0)
    settings = CosySettings(source="folder", folder=str(folder))
    shown = Shown(pictures, acts)
    measure_labels(basis, labels, run.images, settings, "mention", run_json.parent, shown)
    return run_json, build(run_json, run_json.parent / "report"), named[0]


def test_rows_say_what_was_shown_and_what_was_black(made):
    run_json, _, label = made
    (folder,) = (path.parent for path in run_json.parent.glob("cosy/*/cosy.jsonl"))
    rows = artifacts.read_jsonl(folder / "cosy.jsonl")
    own = [row for row in rows if row["label"] == label]
    assert own and all(row["images"] == 12 and row["black"] == 0 and len(row["strip"]) == cosy.STRIP for row in own)
    dark = [row for row in rows if row["black"]]
    assert dark and all(
        (row["black"], row["images"], row["strip"], row["auc_half"]) == (12, 0, [], None) for row in dark
    )
    summary = artifacts.read_json(folder / "cosy.json")
    assert summary["black"] == 12 and summary["preferred_holm"] <= summary["preferred"]
    assert len(list((folder / "pictures").glob("*.jpg"))) == cosy.STRIP  # each once, whoever shows it


def test_records_have_them_and_a_new_measurement_makes_a_new_report(made):
    run_json, index, _ = made
    run = reading.read(run_json)
    neurons = next(b for b in run.bases if b.name == "neuron")
    folder = label_pictures.find_measured(run_json.parent, neurons.recipes["labels"])
    assert folder is not None
    assert len(list((index.parent / "label_pictures").rglob("*.jpg"))) == cosy.STRIP
    others = [b for b in run.bases if b.name != "neuron"]
    assert all(label_pictures.find_measured(run_json.parent, b.recipes["labels"]) is None for b in others)


@pytest.mark.browser
def test_a_unit_page_shows_them_with_their_numbers(browser, made):
    run_json, index, label = made
    run = reading.read(run_json)
    unit = next(row["unit"] for row in next(b for b in run.bases if b.name == "neuron").labels if row["label"] == label)
    reader = Reader(browser, index.parent)
    page = reader.open(f"unit.html#neuron/{unit}")
    page.wait_for_selector("text=Pictures of its label")
    section = page.locator("section", has_text="Pictures of its label")
    assert section.locator("img.photo").count() == cosy.STRIP
    said = section.inner_text()
    assert "From a folder, not chosen by what the unit does." in said and "12 pictures against" in said
    for place in range(cosy.STRIP):
        photo = section.locator("img.photo").nth(place)
        photo.scroll_into_view_if_needed()
        playwright.expect(photo).to_have_js_property("naturalWidth", 100)
    assert reader.faults == []
    reader.context.close()
