"""The report's data against brute-force twins, its folder's promises, and runs that can't be shown."""

import base64
import gzip
import json
import math
import re
import shutil
import weakref
from itertools import chain
from pathlib import Path

import neuronpedia_database
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from report_fixture import ASKED, UNITS, write_run

from saelab import cache, integrity
from saelab.artifacts import read_json, read_jsonl, write_json, write_jsonl
from saelab.errors import UserError
from saelab.label.assign import SCORERS
from saelab.report import (
    build,
    exports,
    glossary,
    held_out,
    maps,
    neuronpedia,
    pictures,
    reading,
    records,
    shelf,
    vlm_answers,
    write,
)
from saelab.report import units as assembling
from saelab.report.build import _best, _write
from saelab.report.called import Called, in_few_words, in_words
from saelab.report.shelf import Shelf


@pytest.fixture(scope="module")
def run_json(tmp_path_factory) -> Path:
    return write_run(tmp_path_factory.mktemp("run"))


@pytest.fixture(scope="module")
def report(run_json, tmp_path_factory) -> Path:
    return build(run_json, tmp_path_factory.mktemp("out") / "report").parent


@pytest.fixture(scope="module")
def run(run_json) -> reading.Run:
    return reading.read(run_json)


def data(report: Path, key: str):
    """What a page gets for `key`: the JSON inside the script's string."""
    text = (report / "data" / f"{key}.js").read_text(encoding="utf-8")
    quoted = re.fullmatch(rf'saelab\.put\("{re.escape(key)}",(\'.*\')\)\n', text, re.DOTALL)[1]
    unescaped = re.sub(r"\\(u[0-9a-f]{4}|.)", lambda m: chr(int(m[1][1:], 16)) if len(m[1]) > 1 else m[1], quoted[1:-1])
    return json.loads(unescaped)


def summary_of(report: Path, number: int) -> dict:
    return write.read_summary(data(report, f"summary-{number}"))


def unit(report: Path, run: reading.Run, basis: str, u: int) -> dict:
    number = [b.name for b in run.bases].index(basis)
    return data(report, f"units/{number}/{u // write.CHUNK}")[u % write.CHUNK]


def test_histogram_bands_and_silence_count_every_image_once(report, run):
    for basis in run.bases:
        for u in range(len(basis.labels)):
            column = basis.acts[:, [u]].toarray().ravel()
            record = unit(report, run, basis.name, u)
            fires = column > 1e-6
            assert sum(record["histogram"]) == fires.sum()
            assert record["silent"] == (~fires).sum()
            for t, band in enumerate(record["bands"][:10]):  # strongest tenth first
                low, high = (0.9 - t / 10) * column.max(), (1 - t / 10) * column.max()
                inside = np.flatnonzero(fires & (column > low * (1 + 1e-6)) & (column <= high * (1 + 1e-6)))
                assert set(band) <= set(inside.tolist()) and len(band) == min(records.PER_BAND, len(inside))
            assert not record["bands"] or not fires[record["bands"][10]].any()


def test_exemplars_are_those_on_which_the_unit_fires_strongest_first(report, run):
    basis = run.bases[1]
    for u in range(len(basis.labels)):
        column = basis.acts[:, [u]].toarray().ravel()
        record = unit(report, run, basis.name, u)
        np.testing.assert_allclose(column[record["positives"]], record["activations"], rtol=1e-3)
        assert record["activations"] == sorted(record["activations"], reverse=True)
        assert all(a > 0 for a in record["activations"])
        for i, on in zip(record["contrasts"], record["contrast_activations"], strict=True):
            assert (i < 0 and on is None) or on == pytest.approx(column[i], rel=1e-3, abs=1e-6)
            assert i < 0 or column[i] < column[run.images.ids("mine")].mean()


def test_enrichment_is_fishers_exact_test_with_bonferroni(report, run):
    """Among the first images of each group of the `mine` split, by brute force."""
    from scipy.stats import fisher_exact

    names, holds = run.images.truth()
    one_each = {int(run.images.groups[i]): int(i) for i in run.images.ids("mine")[::-1]}
    first = np.array(sorted(one_each.values()))
    seen = 0
    for u in range(len(run.bases[1].labels)):
        record = unit(report, run, run.bases[1].name, u)
        acts = run.bases[1].acts[:, [u]].toarray().ravel()[first]
        order = first[np.argsort(-acts, kind="stable")]
        for name, among, of, everywhere, every, p in record["enriched"]:
            column = holds[:, names.index(name)]
            inside = int(column[order[:of]].sum())
            assert (among, everywhere, every) == (inside, int(column[first].sum()), len(first))
            shown = len(record["positives"])
            assert of <= shown or np.sort(acts)[-of] == np.sort(acts)[-shown], "more only of equals"
            rest = everywhere - inside
            table = [[inside, of - inside], [rest, every - of - rest]]
            exact = fisher_exact(table, alternative="greater").pvalue * len(names)
            assert p == pytest.approx(exact, rel=1e-3) and p < 0.05
            seen += 1
    assert seen > 10


def test_neighbours_are_the_highest_correlations_over_images(report, run):
    ours, other = run.bases[1], run.bases[2]  # SAE seed 1 has a dead feature
    for basis, against in ((ours, other), (other, ours)):
        a, b = basis.acts.toarray(), against.acts.toarray()
        for u in range(a.shape[1]):
            near = unit(report, run, basis.name, u)["near"]
            if not a[:, u].any():
                assert near["cofire"] == [] and near["links"] == []
                continue
            r = np.array([np.corrcoef(a[:, u], b[:, j])[0, 1] if b[:, j].any() else -1 for j in range(b.shape[1])])
            best = [j for j in np.argsort(-r, kind="stable")[:3] if r[j] > 0]
            links = [link for link in near["links"] if link[0] == against.name]
            np.testing.assert_allclose([link[2] for link in links], r[best], atol=2e-3)
            own = [np.corrcoef(a[:, u], a[:, j])[0, 1] if a[:, j].any() and j != u else -1 for j in range(a.shape[1])]
            assert near["cofire"][0][2] == pytest.approx(max(own), abs=2e-3)


def test_same_label_names_every_other_unit_with_it(report, run):
    labels = [row["label"] for b in run.bases for row in b.labels]
    for basis in run.bases:
        for u, row in enumerate(basis.labels):
            record = unit(report, run, basis.name, u)
            if row["label"] is not None:
                assert record["near"]["sharing"] == labels.count(row["label"]) - 1
                found = {run_label(run, name, v) for name, v in record["near"].get("same", [])}
                assert found <= {row["label"]}
                assert [basis.name, u] not in record["near"].get("same", [])


def run_label(run: reading.Run, name: str, u: int) -> str:
    return next(b for b in run.bases if b.name == name).labels[u]["label"]


def test_numbers_on_pages_are_those_of_the_artifacts(report, run):
    for i, basis in enumerate(run.bases):
        summary = summary_of(report, i)
        for u, (row, found) in enumerate(zip(basis.labels, basis.evaluation, strict=True)):
            label = summary["label"][u]
            assert (summary["labels"][label] if label >= 0 else None) == row["label"]
            assert summary["statuses"][summary["status"][u]] == row["status"]
            assert summary["measured"]["clarity"][u] == write.rounded(found["clarity"])
            chosen = found["by_scorer"].get("csp", {}).get("truth_r") if row["scores"] else None
            assert summary["measured"]["truth_r"][u] == write.rounded(chosen)
    assert data(report, "comparison-0")["conclusion"] == run.comparisons[0]["conclusion"]


def test_every_picture_that_a_page_names_lies_in_the_folder(report, run):
    named = set()
    for number, basis in enumerate(run.bases):
        for u in range(len(basis.labels)):
            named |= set(map(int, unit(report, run, basis.name, u)["names"]))
        named |= {i for row in summary_of(report, number)["thumbs"] for i in row}
    assert named and all((report / pictures.place(i)).is_file() for i in named)


def test_nothing_in_the_folder_points_to_a_network(report):
    pages = [
        p for p in report.rglob("*") if p.suffix in (".html", ".css") or (p.suffix == ".js" and "min" not in p.name)
    ]
    for page in pages:
        links = re.findall(r"https?://[^\s\"')]+", page.read_text(encoding="utf-8"))
        assert [link for link in links if not link.startswith("http://www.w3.org/")] == [], page


def test_texts_from_data_survive_and_stay_text(tmp_path):
    hostile = "</script><script>alert(1)</script> ' \" \\ \u2028 \n émigré"
    write.put(tmp_path, "x", {"label": hostile, "nan": float("nan"), "pi": 3.14159265})
    assert data(tmp_path, "x") == {"label": hostile, "nan": None, "pi": 3.142}


@given(st.lists(st.none() | st.floats(1e-120, 1e120) | st.floats(-1e120, -1e-120) | st.sampled_from([0.0, 9.9996])))
def test_packed_numbers_are_the_rounded_ones(values):
    packed = {"units": len(values), "labels": [], "badges": [], "statuses": [], "columns": {}, "thumbs": ""}
    found = write.read_summary(packed | {"measured": {"x": write.decimals(values)}})["measured"]["x"]
    assert found == write.rounded(values)


def test_packed_numbers_that_are_none_or_out_of_reach():
    odd = [math.nan, math.inf, 1e200, 1e-200, 3]
    packed = {
        "units": 5,
        "labels": [],
        "badges": [],
        "statuses": [],
        "columns": {"label": write.integers([-1, 2**31 - 1])},
    }
    found = write.read_summary(packed | {"thumbs": "", "measured": {"x": write.decimals(odd)}})
    assert found["measured"]["x"] == [None, None, None, 0.0, 3.0] and found["label"] == [-1, 2**31 - 1]


def test_small_pictures_shrink_as_there_are_more():
    assert pictures.side_for(100) == 256
    sides = [pictures.side_for(n) for n in (100, 20_000, 40_000, 60_000, 90_000, 10**7)]
    assert sides == sorted(sides, reverse=True) and sides[-1] == 88
    assert all(n * pictures.SIDES[pictures.side_for(n)] <= pictures.BUDGET for n in (100, 10_000, 20_000, 40_000))


def test_a_second_build_is_reused_until_something_changes(run_json, tmp_path):
    out = tmp_path / "report"
    build(run_json, out)
    first = (out / "data" / "run.js").stat().st_mtime_ns
    build(run_json, out)
    assert (out / "data" / "run.js").stat().st_mtime_ns == first
    build(run_json, out, shown=3)
    assert (out / "data" / "run.js").stat().st_mtime_ns != first
    assert not out.with_name("report.partial").exists()


def test_a_folder_that_is_no_report_is_left_alone(run_json, tmp_path):
    (tmp_path / "thesis.txt").write_text("years of work")
    with pytest.raises(UserError, match="holds no report"):
        build(run_json, tmp_path)
    assert (tmp_path / "thesis.txt").read_text() == "years of work"


def test_a_lost_picture_is_listed_and_the_rest_shown(run_json, tmp_path):
    shutil.copytree(run_json.parent, tmp_path / "runs")
    copy = tmp_path / "runs" / run_json.name
    images = tmp_path / "runs" / read_json(copy)["images"]
    shutil.copytree(read_json(images / "images.json")["root"], tmp_path / "photos")
    facts = read_json(images / "images.json") | {"root": str(tmp_path / "photos")}
    write_json(images / "images.json", facts)
    sizes = read_json(images / "complete.json") | {"images.json": integrity.entry(images / "images.json")}
    write_json(images / "complete.json", sizes)
    (tmp_path / "photos" / "00003.jpg").unlink()
    out = build(copy, tmp_path / "report").parent
    assert len(data(out, "run")["unreadable"]) == 1 and "00003.jpg" in data(out, "run")["unreadable"][0]
    assert not (out / pictures.place(3)).exists() and (out / pictures.place(4)).exists()


@pytest.mark.parametrize(
    ("spoil", "says"),
    [
        (lambda root, run: (root / run["bases"][0]["labels"] / "complete.json").unlink(), "not a finished artifact"),
        (lambda root, run: shutil.rmtree(root / run["bases"][1]["units"]), "is missing"),
        (lambda root, run: (root / run["bases"][0]["labels"] / "labels.jsonl").write_text("{}"), "damaged"),
        (lambda root, run: run.pop("encoder"), "lacks encoder"),
        (lambda root, run: run["bases"][0].pop("evaluation"), "lacks evaluation"),
        (lambda root, run: run.update(bases=[]), "lists no basis"),
        (lambda root, run: run["bases"][0].update(evaluation=run["bases"][1]["evaluation"]), "evaluation of 48"),
        (lambda root, run: run.update(version="0.0.1", bases={}), "lists no basis"),
    ],
)
def test_runs_that_can_not_be_shown_say_so_in_one_line(run_json, tmp_path, spoil, says):
    shutil.copytree(run_json.parent, tmp_path / "runs")
    run = read_json(run_json)
    spoil(tmp_path / "runs", run)
    write_json(tmp_path / "runs" / "fixture.json", run)
    with pytest.raises(UserError, match=re.escape(says)) as caught:
        build(tmp_path / "runs" / "fixture.json", tmp_path / "report")
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "report").exists()


def test_heat_maps_are_the_units_tokens_on_one_scale(report, run, run_json):
    """Twin: a neuron's map is its channel of the cached tokens, row by row, as a share of its highest shown token."""
    folder = next((run_json.parent / "activations").glob("*/tokens.h5"))
    store = cache.open(folder.parent)
    for u in range(len(run.bases[0].labels)):
        record = unit(report, run, "neuron", u)
        if not record["positives"]:
            assert record["maps"] is None
            continue
        height, width = record["maps"]["grid"]
        cells = np.frombuffer(base64.b64decode(record["maps"]["cells"]), np.uint8).reshape(-1, height * width)
        tokens = np.stack([store.image_tokens(i)[:, u] for i in record["positives"]])
        np.testing.assert_allclose(cells / 255, tokens / tokens.max(), atol=4e-3)
        assert record["maps"]["boxes"][0] == pytest.approx([0.92, 0.92])  # 92 of 100 pixels are seen
    feature = unit(report, run, "sae seed 0", 7)
    peaks = np.frombuffer(base64.b64decode(feature["maps"]["cells"]), np.uint8).reshape(8, -1).max(1) / 255
    np.testing.assert_allclose(peaks, np.array(feature["activations"]) / feature["activations"][0], atol=4e-3)


@pytest.mark.parametrize(
    ("size", "square", "transform", "seen"),
    [
        ((300, 200), False, {"resize": 256, "crop": [224, 224]}, [0.875, 0.875]),
        ((300, 200), False, {"resize": [224, 224], "crop": None}, [1.5, 1.0]),  # squeezed whole
        ((300, 200), True, {"resize": 256, "crop": [224, 224]}, [0.875, 0.875]),
        ((200, 300), False, {"resize": 256, "crop": None}, [1.0, 1.5]),
    ],
)
def test_what_the_host_saw_of_a_picture(size, square, transform, seen):
    assert maps.box(size, square, transform) == pytest.approx(seen)


def test_tables_to_take_away_hold_every_unit_with_full_precision(report, run):
    import pandas

    csv = pandas.read_csv(report / "takeaway" / "units.csv")
    lines = read_jsonl(report / "takeaway" / "units.jsonl")
    assert len(csv) == len(lines) == sum(len(b.labels) for b in run.bases)
    for line, (basis, u) in zip(lines, ((b, u) for b in run.bases for u in range(len(b.labels))), strict=True):
        row = basis.labels[u]
        assert (line["basis"], line["unit"], line["label"]) == (basis.name, row["unit"], row["label"])
        assert line["clarity"] == basis.evaluation[u]["clarity"]
        if row["scores"]:
            assert line["score_csp"] == row["scores"]["csp"]["score"] == line["score"]
        assert line["images"] == [run.images.files[i] for i in row["positives"][: len(line["images"])]]
    np.testing.assert_array_equal(csv["score"].to_numpy(), np.array([x["score"] for x in lines], float))
    if (report / "takeaway" / "units.parquet").exists():
        parquet = pandas.read_parquet(report / "takeaway" / "units.parquet")
        np.testing.assert_array_equal(parquet["score"].to_numpy(float), csv["score"].to_numpy())


@pytest.fixture(scope="module")
def database(report):
    """What Neuronpedia's importer makes of the report's files."""
    listed = [file for file, what in data(report, "run")["takeaway"] if "Neuronpedia" in what]
    return neuronpedia_database.load([(report / file).parent for file in listed])


def test_neuronpedia_takes_every_unit_label_and_picture(report, run, database):
    rows = [(b.labels[u], b, u) for b in run.bases for u in range(len(b.labels))]
    assert database.execute("SELECT count(*) FROM Neuron").fetchone()[0] == len(rows)
    named = [row["label"] for row, _, _ in rows if row["label"] is not None]
    told = database.execute("SELECT description, notes FROM Explanation ORDER BY rowid").fetchall()
    assert sorted(row["description"] for row in told) == sorted(named)
    abstaining = sum(bool(row["abstained"]) for row, _, _ in rows if row["label"] is not None)
    assert sum("abstains" in row["notes"] for row in told) == abstaining > 0
    for source in database.execute("SELECT id, setName, notes FROM Source").fetchall():
        assert re.fullmatch(rf"\d+-{source['setName']}", source["id"]) and source["notes"] == run.images.credit
    for shown in database.execute("SELECT tokens FROM Activation").fetchall():
        assert all((report / link).is_file() for link in json.loads(shown["tokens"]))


def test_links_for_neuronpedia_begin_where_the_report_will_lie(run, tmp_path):
    record = {"unit": 0, "positives": [3], "activations": [1.5]}
    place = {"modelId": "m", "layer": "0-x"}
    for site in ("https://example.org/report", "https://example.org/report/"):
        row = neuronpedia._activations(run, place, record, site)[0]
        assert row["tokens"] == [f"https://example.org/report/{pictures.place(3)}"] and row["values"] == [1.5]
    with pytest.raises(UserError, match="is no address"):
        build(run.path, tmp_path / "report", site="example.org")


def test_every_column_to_take_away_holds_the_number_of_its_name(report, run):
    """Read as text and worked out anew from labels, evaluation and activations: no column shifted, none inverted."""
    import csv

    with (report / "takeaway" / "units.csv").open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    number = {"": None}
    told = 0
    for row, (basis, u) in zip(rows, ((b, u) for b in run.bases for u in range(len(b.labels))), strict=True):
        label, measured, acts = basis.labels[u], basis.evaluation[u], basis.acts[:, [u]].toarray().ravel()
        assert (row["basis"], row["kind"], row["layer"]) == (basis.name, basis.kind, basis.layer)
        assert (row["status"], row["label"]) == (label["status"], label["label"] or "")
        assert row["abstained"] == str(label["abstained"]) and int(row["fires_on"]) == label["fires_on"]
        assert float(row["max_activation"]) == pytest.approx(max(acts.max(), 0))
        files, values = json.loads(row["images"]), json.loads(row["activations"])
        assert [acts[run.images.files.index(f)] for f in files] == pytest.approx(values)
        assert values == sorted(values, reverse=True)
        contrasts = [i for i in label["contrasts"][: len(files)] if i >= 0]
        assert [f for f in json.loads(row["contrasts"]) if f] == [run.images.files[i] for i in contrasts]
        for key in ("firing_rate", "clarity", "redundancy", "polysemanticity", "monosemanticity"):
            assert number.get(row[key], row[key]) == (None if measured[key] is None else str(measured[key])), key
        for scorer, found in label["scores"].items():
            assert (row[f"label_{scorer}"], row[f"score_{scorer}"]) == (found["label"], str(found["score"]))
            for key in ("scs", "auprc", "f1", "iou", "auroc", "truth_r", "caption_r"):
                value = measured["by_scorer"].get(scorer, {}).get(key)
                if scorer == row["scorer"] and value is not None:
                    told += 1
                    assert row[key] == str(value), key
                    low, high = measured["interval"].get(key) or (None, None)
                    if low is not None:
                        assert (row[f"{key}_low"], row[f"{key}_high"]) == (str(low), str(high)) and low <= high
    assert told > 50


def test_neuronpedias_numbers_are_those_of_the_unit_and_its_pictures(run, database):
    features = database.execute("SELECT * FROM Neuron ORDER BY rowid").fetchall()
    for feature, (basis, u) in zip(features, ((b, u) for b in run.bases for u in range(len(b.labels))), strict=True):
        acts = basis.acts[:, [u]].toarray().ravel()
        fires = acts[acts > 1e-6]
        assert feature["index"] == str(u) and feature["frac_nonzero"] == pytest.approx(len(fires) / len(acts))
        assert feature["maxActApprox"] == pytest.approx(max(acts.max(), 0))
        mine = 'SELECT * FROM Activation WHERE layer = ? AND "index" = ?'
        for shown in database.execute(mine, (feature["layer"], feature["index"])).fetchall():
            assert acts[run.images.files.index(shown["dataIndex"])] == pytest.approx(shown["maxValue"])
            assert json.loads(shown["values"]) == [shown["maxValue"]] and shown["maxValueTokenIndex"] == 0
        heights, middles = (json.loads(feature[f"freq_hist_data_bar_{part}"]) for part in ("heights", "values"))
        assert len(heights) == len(middles) and middles == sorted(middles)
        if heights:
            assert sum(heights) == len(fires)
            half = (middles[1] - middles[0]) / 2
            counted = [((fires >= m - half) & (fires < m + half)).sum() for m in middles[:-1]]
            assert abs(np.array(counted) - heights[:-1]).sum() <= 2  # an edge rounds either way


def test_methods_name_every_setting_and_cite_only_what_was_used(report, run):
    text = (report / "takeaway" / "methods.txt").read_text()
    for basis in run.bases:
        assert re.search(rf"Bas[ei]s [^.]*{basis.short}\b", text)
        assert "sae" in basis.recipes or basis.kind != "sae"
        for stage, recipe in basis.recipes.items():
            assert all(f"{basis.name}/{stage}/{key}" in text for key in recipe)
    listed = re.findall(r"@\w+{(\w+),", (report / "takeaway" / "references.bib").read_text())
    assert set(listed) == set(re.findall(r"@(\w+)", text)) and len(listed) == len(set(listed))
    assert "Bases sae seed 0, sae seed 1 have 48 units each" in text and text.count("Basis neuron has 24 units of") == 1
    assert "over 40 permutations of its activations is above 0.05" in text and "Correlations count above chance" in text
    assert {"bouanani2026csp", "dreyer2025semanticlens", "gao2025scaling", "holm1979"} <= set(listed)
    assert not {"oikarinen2023clipdissect", "norouzi2014conse", "bussmann2024batchtopk"} & set(listed)  # not used here


def test_the_paragraph_for_latex_cites_the_same_and_escapes_every_sign(report):
    latex = (report / "takeaway" / "methods.tex").read_text()
    listed = re.findall(r"@\w+{(\w+),", (report / "takeaway" / "references.bib").read_text())
    cited = {key for keys in re.findall(r"\\cite{([\w,]+)}", latex) for key in keys.split(",")}
    assert cited == set(listed)
    bare = re.sub(r"\\cite{[^}]*}|\\texttt{|\\footnotesize|\\par\b|\\[&%$#_{}]|\\text\w+{}", "", latex)
    assert not re.search(r"[&%$#_^\\]", bare)
    assert latex.count("{") == latex.count("}") and "[@" not in latex


def test_saes_to_take_away_compute_what_the_run_s_saes_compute(report, run):
    import torch

    from saelab.sae import SAE, convert

    taken = sorted((report / "takeaway" / "saelens").iterdir())
    assert [folder.name for folder in taken] == ["sae_seed_0", "sae_seed_1"]
    x = torch.randn(50, 24, generator=torch.Generator().manual_seed(0))
    for folder, basis in zip(taken, (b for b in run.bases if b.sae), strict=True):
        original, copy = SAE.load(basis.sae / "sae.safetensors"), convert.load(folder)
        torch.testing.assert_close(copy.encode(x), original.encode(x), rtol=1e-5, atol=1e-6)
        torch.testing.assert_close(
            copy.decode(copy.encode(x)), original.decode(original.encode(x)), rtol=1e-5, atol=1e-5
        )
        assert read_json(folder / "cfg.json")["d_sae"] == 48


def test_meanings_and_intervals_reach_pages_and_tables(report, run):
    lines = {(x["basis"], x["unit"]): x for x in read_jsonl(report / "takeaway" / "units.jsonl")}
    several = bounded = 0
    for number, basis in enumerate(run.bases):
        marked = {u for u, flags in enumerate(summary_of(report, number)["flags"]) if flags & 2}
        for u, (row, found) in enumerate(zip(basis.labels, basis.evaluation, strict=True)):
            record, line = unit(report, run, basis.name, u), lines[basis.name, u]
            assert set(record["sources"].values()) <= {"classes"}
            assert bool(record["sources"]) == bool(row["scores"])
            shown = [meaning.pop("shown") for meaning in record["meanings"]]
            assert record["meanings"] == write.rounded(row["meanings"] or [])
            for some, meaning in zip(shown, record["meanings"], strict=True):
                groups = run.images.groups[some].tolist()
                assert some and set(some) <= set(meaning["positives"]) and len(set(groups)) == len(groups)
            assert (u in marked) == line["polysemantic"] == (len(row["meanings"] or []) > 1)
            assert line["meanings"] == [m["label"] for m in row["meanings"] or []]
            assert sum(line["meaning_shares"]) == pytest.approx(1 if line["meanings"] else 0, abs=1e-5)
            assert record["interval"] == write.rounded(found["interval"])
            for key, (low, high) in found["interval"].items():
                assert (line[f"{key}_low"], line[f"{key}_high"]) == (low, high)
                assert low <= line[key] <= high
            several, bounded = several + (u in marked), bounded + bool(found["interval"])
    assert several > 3 and bounded > 20


@pytest.mark.parametrize("own", ["dog", None])
def test_a_label_that_people_took_away_differs_from_one_that_nobody_touched(report, run, own):
    made = [unit(report, run, basis.name, 0) | {"label": own} for basis in run.bases]
    said = {"nothing": None, "a verdict": {"verdict": "accepted"}, "as it was": {"new": own}, "none": {"new": None}}
    said |= {"another": {"new": "cat"}}
    found = {}
    for name, row in said.items():
        rows = exports.Table(run, {(run.bases[0].name, made[0]["unit"]): row} if row else {("another", 0): {}})
        rows.add(0, made[:1])
        (line,) = rows
        found[name] = (line["label_edited"], line["label_by_people"])
    untouched = (False, None)
    removed = (True, None) if own else untouched
    assert found == {"nothing": untouched, "a verdict": untouched, "as it was": untouched, "none": removed} | {
        "another": (True, "cat")
    }
    rows = exports.Table(run)
    rows.add(0, made[:1])
    assert not any("label_edited" in line for line in rows), "nobody said anything of the run"


def test_label_sets_reach_tables_only_where_the_run_has_them(report, run):
    made = [unit(report, run, basis.name, 0) for basis in run.bases]

    def table():
        rows = exports.Table(run)
        for number, record in enumerate(made):
            rows.add(number, [record])
        return rows

    assert not any("label_set" in line for line in table())
    made[-1] |= {"label_set": ["cat", "kitten"]}
    assert [line["label_set"] for line in table()] == [*[None] * (len(made) - 1), ["cat", "kitten"]]
    row = run.bases[0].labels[0]
    assert "label_set" not in records._label(row)
    assert records._label(row | {"label_set": None})["label_set"] is None


def test_what_models_said_and_saw_stands_on_the_unit_s_page(report, run):
    """Twin: proposals.jsonl, detection.jsonl and second_look.jsonl of the run, and the sheets byte for picture."""
    from PIL import Image

    basis = next(b for b in run.bases if b.name == ASKED)
    prompts = data(report, "run")["prompts"]
    for u in range(len(basis.labels)):
        record = unit(report, run, ASKED, u)
        assert bool(record["proposals"]) == (u in UNITS)
        for told, row in zip(record["proposals"], basis.proposals.get(u, []), strict=True):
            for key in ("raw", "status", "model", "prompt_tokens", "completion_tokens", "cost", "evidence"):
                assert told.get(key) == row[key]
            assert tuple(told.get("labels", ())) == tuple(row["labels"])
            assert prompts[told["prompt"]] == row["prompt"]
            assert ("talk" in told) == (u == UNITS[0])
            assert len(told["sheets"]) == len(row["sheets"]) == 2
            for place, name in zip(told["sheets"], row["sheets"], strict=True):
                with Image.open(report / place) as copy, Image.open(basis.sheets / name) as sheet:
                    small = np.asarray(sheet.resize(copy.size).convert("RGB"), float)
                    assert abs(np.asarray(copy.convert("RGB"), float) - small).mean() < 6
        tests = {row["test"]: row for row in record["verified"]}
        own = [row for row in basis.verified.get(u, []) if row["test"] == "intruder"]
        assert ("intruder" in tests) == bool(own) and ("embedding" in tests) == (u in UNITS)
        if own:
            found = sum(row["images"][1] in basis.exemplars["contrasts"][u] for row in own)
            assert (tests["intruder"]["correct"], tests["intruder"]["trials"]) == (found, len(own))
            assert {i for row in own for i in row["images"]} <= set(map(int, record["names"]))
        labelled = set(tests) - {"intruder", "embedding", "fuzzing"}
        assert labelled == ({"detect", "second_look"} if u in UNITS and basis.labels[u]["label"] else set())
        if labelled:
            seen, fires = tests["detect"]["images"], tests["detect"]["fires"]
            assert set(seen) <= set(run.images.ids("show").tolist())
            right = [(i + 1 in (1, 3, 4)) == on for i, on in enumerate(fires)]
            of = [np.mean([r for r, on in zip(right, fires, strict=True) if on == side]) for side in (True, False)]
            assert tests["detect"]["balanced_accuracy"] == pytest.approx(np.mean(of), abs=1e-3)
            assert tests["second_look"]["label"] == tests["second_look"]["candidates"][0]


def test_cost_counts_what_was_paid_once_and_is_unknown_where_a_price_is_missing():
    def row(**facts):
        return {"model": "m", "prompt_tokens": 100, "completion_tokens": 7, "cost": 0.5, "cached": False} | facts

    assert vlm_answers.spent({1: [{"model": None}]}, {}) is None  # the tagger is no model that is paid
    found = vlm_answers.spent({1: [row()], 2: [row(cached=True)]}, {1: [{"record": row(cost=0.25)}]})
    assert found == {"answers": 3, "cached": 1, "prompt_tokens": 200, "completion_tokens": 14, "cost": 0.75}
    assert vlm_answers.spent({1: [row(), row(cost=None)]}, {})["cost"] is None


def test_every_number_of_a_unit_is_explained_with_its_source():
    for key in (*records.FAITHFULNESS, *records.COHERENCE, "null_percentile", "interval", "contrast"):
        title, text, source = glossary.TERMS[key]
        assert title and len(text) > 30 and source, key
    for key, term in glossary.terms(list(SCORERS)).items():
        if key.startswith("scorer:"):
            assert term["title"] and len(term["text"]) > 30 and term["source"], key
        assert "`" not in term["text"], f"{key}: pages show a text as it is"


def test_a_report_is_made_anew_when_models_have_looked_again(run_json, tmp_path):
    shutil.copytree(run_json.parent, tmp_path / "runs")
    index = build(tmp_path / "runs" / run_json.name, tmp_path / "report")
    rows = next((tmp_path / "runs" / "verification").glob("*/detection.jsonl"))
    lines = read_jsonl(rows)
    write_jsonl(rows, lines[:-1])
    before = index.stat().st_ino
    build(tmp_path / "runs" / run_json.name, tmp_path / "report")
    assert index.stat().st_ino != before


def test_two_builds_into_one_folder_take_turns(run_json, tmp_path):
    """Of two that start together one writes and the other finds the report made; neither mixes in."""
    from concurrent.futures import ThreadPoolExecutor

    out = tmp_path / "report"
    with ThreadPoolExecutor(2) as pool:
        assert list(pool.map(build, [run_json] * 2, [out] * 2)) == [out / "index.html"] * 2
    assert not out.with_name("report.partial").exists() and (out / "report.json").is_file()
    assert json.loads((out / "report.json").read_text())["source"]


def test_labels_lines_fit_the_plan(run_json):
    """The fixture itself follows the contract, or the other tests would prove nothing."""
    run = read_json(run_json)
    row = read_jsonl(run_json.parent / run["bases"][0]["labels"] / "labels.jsonl")[0]
    assert {"unit", "basis", "status", "label", "abstained", "source", "scores", "positives", "contrasts"} <= set(row)


def test_a_percentile_says_better_in_the_number_s_own_direction():
    """Lower redundancy and polysemanticity are better: the unit that has the least is better than the others."""
    numbers = dict.fromkeys((*records.FAITHFULNESS, *records.COHERENCE, "score"))
    given = [numbers | {"clarity": x, "redundancy": x, "polysemanticity": x} for x in (0.1, 0.5, 0.9)]
    found = records._percentiles(given)
    assert found["clarity"] == [16.7, 50.0, 83.3]
    assert found["redundancy"] == found["polysemanticity"] == [83.3, 50.0, 16.7]


def test_hits_misses_and_false_alarms_are_those_of_the_test_photos(report, run):
    """Twin: words as plain text, thresholds tried one by one, every test photo in one of four places."""
    test, mine = run.images.ids("test").tolist(), run.images.ids("mine").tolist()
    split = 0
    for basis in run.bases:
        for u, (row, found) in enumerate(zip(basis.labels, held_out.of_basis(run, basis), strict=True)):
            column = basis.acts[:, [u]].toarray().ravel()
            true = {i for i in range(len(column)) if row["label"] in [*run.images.classes[i], *_words(run, i)]}
            assert unit(report, run, basis.name, u)["held_out"] == write.rounded(found)
            if not true & set(test):
                fires = [i for i in test if column[i] > 1e-6]
                assert [i for i, _ in found["strongest"]] == sorted(fires, key=lambda i: -column[i])[:12]
                continue
            threshold = found["threshold"]
            if threshold is not None:
                best = max(_f1(column, true, mine, t) for t in {column[i] for i in mine})
                assert _f1(column, true, mine, threshold) == pytest.approx(best)
            fires = {i for i in test if (column[i] > 1e-6 if threshold is None else column[i] >= threshold)}
            places = [true & fires, (true - fires) & set(test), fires - true]
            assert found["counts"][:3] == [len(p) for p in places] and sum(found["counts"]) == len(test)
            for name, ids in zip(("hits", "misses", "alarms"), places, strict=True):
                assert {i for i, _ in found[name]} <= ids and len(found[name]) == min(len(ids), 6)
                assert [v for _, v in found[name]] == [column[i] for i, _ in found[name]]
            split += 1
    assert split > 40


def _words(run: reading.Run, i: int) -> list[str]:
    return (run.images.captions[i] or "").split()


def _f1(column: np.ndarray, true: set, images: list[int], threshold: float) -> float:
    called = {i for i in images if column[i] >= threshold}
    return 2 * len(called & true) / max(1, len(called) + len(true & set(images)))


def test_badges_stand_wherever_a_label_does(report, run):
    facts = data(report, "run")["bases"]
    for number, (basis, fact) in enumerate(zip(run.bases, facts, strict=True)):
        summary = summary_of(report, number)
        words = [found["badge"] for found in basis.evaluation]
        assert [summary["badges"][b] if b >= 0 else None for b in summary["badge"]] == words
        assert [unit(report, run, basis.name, u)["badge"] for u in range(len(words))] == words
        assert fact["badges"] == {word: words.count(word) for word in ("holds", "weak", "may be luck")}
        shown = [basis.evaluation[card["unit"]] for card in fact["best"]]
        several = [len(basis.labels[card["unit"]].get("meanings") or []) > 1 for card in fact["best"]]
        low = [
            (not found["named"]["truth_images"], two, -found["interval"][fact["judge"]][0])
            for found, two in zip(shown, several, strict=True)
        ]
        assert all(words[card["unit"]] == card["badge"] == "holds" for card in fact["best"])
        assert low == sorted(low) and len({card["label"] for card in fact["best"]}) == len(low)
        assert all(card["badge"] == words[card["unit"]] for card in fact["sample"])
    assert sum(len(fact["best"]) for fact in facts) > 3
    lines = read_jsonl(report / "takeaway" / "units.jsonl")
    assert [x["badge"] for x in lines] == [found["badge"] for b in run.bases for found in b.evaluation]


def test_labels_that_people_said_come_before_those_near_to_what_they_said():
    rows = [("ferret", None, 0.6), ("ferret", 0, 0.7), ("cat", 2, 0.3), ("dog", 1, 0.4), ("cat", 1, 0.2)]
    made = [
        {"unit": u, "label": label, "said_of": said, "badge": "holds", "interval": {"caption_r": [low, 0.9]}}
        | {"several": False}
        for u, (label, said, low) in enumerate(rows)
    ]
    made.append(made[0] | {"unit": 5, "label": "owl", "badge": "weak", "said_of": 3})
    assert [r["unit"] for r in _best(made, "caption_r", 4)] == [3, 2, 1]
    assert [r["unit"] for r in _best(made, "caption_r", 1)] == [3]
    made[3]["several"] = True  # its label names one of two
    assert [r["unit"] for r in _best(made, "caption_r", 4)] == [2, 3, 1]


@pytest.mark.parametrize("key", ["polysemanticity", "redundancy", "clarity", "truth_r"])
def test_better_than_knows_which_direction_is_better(report, run, key):
    basis = run.bases[1]
    rows = [unit(report, run, basis.name, u) for u in range(len(basis.labels))]
    have = [(row["measured"][key], row["percentile"][key]) for row in rows if row["measured"][key] is not None]
    values, percent = map(np.array, zip(*have, strict=True))
    best = values.argmin() if key in ("polysemanticity", "redundancy") else values.argmax()
    assert percent[best] == percent.max() > 90


def test_the_quality_of_each_sae_stands_on_the_pages_and_in_the_methods(report, run, run_json):
    entries = read_json(run_json)["bases"]
    for basis, entry, fact in zip(run.bases, entries, data(report, "run")["bases"], strict=True):
        if entry["quality"] is None:
            assert fact["quality"] is None and basis.sae is None
            continue
        found, shown = read_json(run_json.parent / entry["quality"] / "quality.json"), fact["quality"]
        assert shown["fvu"] == write.rounded(found["mine"]["fvu"])
        assert shown["fvu_test"] == write.rounded(found["held_out"]["fvu"])
        assert shown["shared"] == write.rounded(found["stability"][0]["shared"])
        assert sum(shown["density"]["counts"]) == sum(found["held_out"]["density"]["counts"]) > 30
    text = (report / "takeaway" / "methods.txt").read_text()
    assert "The 2 SAEs leave" in text and "found again by another seed" in text


def test_a_record_without_quality_is_read_all_the_same(run_json, tmp_path):
    shutil.copytree(run_json.parent, tmp_path / "runs")
    facts = read_json(run_json)
    for entry in facts["bases"]:
        del entry["quality"]
    write_json(tmp_path / "runs" / run_json.name, facts)
    run = reading.read(tmp_path / "runs" / run_json.name)
    assert all(basis.quality is None for basis in run.bases)


def test_of_near_duplicates_the_strongest_is_shown_and_the_others_counted(run):
    from dataclasses import replace

    basis = run.bases[1]
    u = next(u for u in range(48) if (basis.exemplars["activations"][u] > 0).sum() >= 4)
    first, second = basis.exemplars["positives"][u][:2].tolist()
    on = dict(zip(*(x.tolist() for x in basis.column(u)), strict=True))
    apart = np.arange(len(run.images))
    alike = np.where(apart == second, first, apart)
    plain, once = (
        records._exemplars(basis, u, records.exemplars_shown(basis, 8, groups)[u], on, groups)
        for groups in (apart, alike)
    )
    assert once["alike"] == [1] + [0] * (len(once["positives"]) - 1) and not any(plain["alike"])
    dense = basis.acts.toarray()[:, u]
    assert basis.column(u)[1].tolist() == dense[dense != 0].tolist()
    assert plain["contrast_activations"] == [None if i < 0 else float(dense[i]) for i in plain["contrasts"]]
    kept = [i for i in plain["positives"] if i != second]
    assert once["positives"][: len(kept)] == kept, "one more of those after them may have its place"
    column = basis.acts[:, [u]].toarray().ravel()
    assert once["activations"] == pytest.approx(column[once["positives"]].tolist())
    assert records._meaning({"positives": [5, 3, 4]}, np.array([0, 1, 2, 3, 3, 5]))["shown"] == [5, 3]
    some = next(label for label in run.bases[0].labels if label["label"])["unit"]
    every = list(held_out.of_basis(run, run.bases[0]))[some]
    one = replace(run, images=replace(run.images, groups=np.zeros(len(run.images), np.int64)))
    series = list(held_out.of_basis(one, one.bases[0]))[some]
    assert series.get("counts") == every.get("counts"), "numbers count every photo"
    for key in {"hits", "misses", "alarms", "strongest"} & set(every):
        assert series[key] == every[key][: (len(every[key]) + 1) // 2], "the only series fills half of the strip"


@pytest.mark.parametrize("seed", range(20))
def test_a_strip_shows_as_few_of_a_group_as_fill_half_of_it(seed):
    rng = np.random.default_rng(seed)
    groups, count = rng.integers(0, rng.integers(1, 40), rng.integers(0, 60)), int(rng.integers(1, 31))
    before = [int((groups[:i] == group).sum()) for i, group in enumerate(groups)]
    half = (min(count, len(groups)) + 1) // 2
    most = next((n for n in range(60) if sum(b <= n for b in before) >= half), 0)
    expected = [i for i, b in enumerate(before) if b <= most][:count]
    assert pictures.few_of_each(groups, count).tolist() == expected


def test_bases_are_called_by_kind_and_by_what_sets_them_apart(report, run):
    def called(*rows):
        bases = [Called(short, kind, layer, seed, control) for short, kind, layer, seed, control in rows]
        return in_few_words(bases), in_words(bases)

    neuron, sae = ("neuron", "neuron", "a", None, False), ("sae seed 0", "sae", "a", 0, False)
    assert called(neuron, sae) == (["Neurons", "SAE features"],) * 2
    other, wide = ("sae seed 1", "sae", "a", 1, False), ("sae k=8 seed 0", "sae", "a", 0, False)
    assert called(sae, other)[0] == ["SAE features, seed 0", "SAE features, seed 1"]
    assert called(sae, wide)[0] == ["SAE features, sae seed 0", "SAE features, sae k=8 seed 0"], "a seed tells nothing"
    strange = ("SAE on random host, seed 0", "sae", "a", 0, True)
    assert called(sae, strange)[0] == ["SAE features", "SAE on random host, seed 0"]
    assert called(sae, ("neuron", "neuron", "b", None, False))[1] == ["SAE features of a", "Neurons of b"]
    assert called(("mine", "my own", "a", None, False))[0] == ["mine"]
    shown = [basis["words"] for basis in data(report, "run")["bases"]]
    assert shown == ["Neurons", "SAE features, seed 0", "SAE features, seed 1", "Random directions"]


def test_a_shelf_gives_back_what_it_took():
    rows = [{"unit": u, "x": [0.1 + u, 1e-300, None], "names": {3: "é\u2028"}, "pair": (1, 2)} for u in range(5)]
    kept = Shelf(iter(rows))
    expected = [row | {"names": {"3": "é\u2028"}, "pair": [1, 2]} for row in rows]
    assert list(kept) == list(kept) == expected and len(kept) == 5
    assert kept[1:3] == expected[1:3] and kept[-1] == expected[-1]
    kept[0]["x"] = None
    assert kept[0] == expected[0]


def test_a_basis_is_never_held_whole_as_records(report, run, tmp_path, monkeypatch):
    """Of records, and of tables' rows, as objects there are as many at once as a step needs, however many units."""
    alive, most = weakref.WeakSet(), []

    class Watched(dict):
        __hash__ = object.__hash__

    def watch(row: dict) -> Watched:
        row = Watched(row)
        alive.add(row)
        most.append(len(alive))
        return row

    joined, read = assembling._joined, shelf._read
    monkeypatch.setattr(assembling, "_joined", lambda *given: map(watch, joined(*given)))
    monkeypatch.setattr(shelf, "_read", lambda data: watch(read(data)))
    for module, name in ((neuronpedia, "BATCH"), (write, "CHUNK"), (exports, "BATCH")):
        monkeypatch.setattr(module, name, 4)
    _write(run, tmp_path, 6, None)
    units = sum(len(basis.labels) for basis in run.bases)
    assert len(most) > 4 * units > 0 and max(most) <= 10 < units


def test_batches_for_neuronpedia_hold_every_unit_whatever_their_length(report, run, tmp_path, monkeypatch):
    """Cut at another length than the chunks that come, per basis: the same rows in the same order."""

    def rows(folder):
        found = {}
        for file in sorted(folder.rglob("batch-*.gz"), key=lambda f: int(f.name[6:].split(".")[0])):
            lines = gzip.decompress(file.read_bytes()).decode().splitlines()
            found.setdefault(str(file.parent.relative_to(folder)), []).append(lines)
        return found

    whole = rows(report / "takeaway" / "neuronpedia")
    monkeypatch.setattr(neuronpedia, "BATCH", 7)
    _write(run, tmp_path, 30, None)
    cut = rows(tmp_path / "takeaway" / "neuronpedia")
    assert whole.keys() == cut.keys() and len(whole) == 3 * len(run.bases)
    for table, batches in cut.items():
        assert list(chain(*batches)) == list(chain(*whole[table]))
        if table.endswith("features"):
            assert [len(batch) for batch in batches[:-1]] == [7] * (len(batches) - 1) and 0 < len(batches[-1]) <= 7


@pytest.mark.parametrize("columns", [3, 64, 400, 449, 5000])
def test_the_highest_of_each_row_are_found_by_groups(columns):
    rows = np.random.default_rng(columns).standard_normal((9, columns), dtype=np.float32)
    rows[0, -3:], rows[1, :3] = 9, 9  # where no group begins or ends
    for keep in (1, 3):
        expected = np.argsort(-rows, axis=1, kind="stable")[:, :keep]
        best, values = records._highest(rows, keep)
        assert (best == expected).all() and (values == np.take_along_axis(rows, expected, 1)).all()
