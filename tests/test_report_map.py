"""Units by meaning: means, axes and neighbours against planted worlds; the page of the map in a browser."""

import shutil

import numpy as np
import pytest
from report_fixture import write_run
from report_reader import Reader, made_report

from saelab.report import meaning, reading, records


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> reading.Run:
    return reading.read(write_run(tmp_path_factory.mktemp("map")))


def test_means_are_those_of_the_strongest_images_by_activation(run):
    means = meaning.of_bases(run)
    space = meaning._embeddings(run, run.bases[0].recipes["labels"]["encoder"])
    for basis, found in zip(run.bases, means):
        for u in (0, 3, 11):
            ids, weights = basis.exemplars["positives"][u], basis.exemplars["activations"][u]
            fires = (ids >= 0) & (weights > 0)
            own = (weights[fires, None] * space[ids[fires]]).sum(0)
            own /= max(np.linalg.norm(own), 1e-12)
            np.testing.assert_allclose(found[u], own, atol=1e-5)


def test_neighbours_in_meaning_are_the_nearest_of_all_bases(run):
    means = meaning.of_bases(run)
    near = records.neighbours(run, means)
    rows, names = np.concatenate(means), [(b.name, u) for b in run.bases for u in range(len(b.labels))]
    for place in (0, 30, len(names) - 1):
        cosine = rows @ rows[place]
        cosine[place] = -2
        best = np.sort(cosine)[::-1][: records.NEAREST]
        name, u = names[place]
        assert [x for _, _, x in near[name][u]["meaning"]] == pytest.approx(best[best > 0].tolist(), abs=1e-3)


def test_axes_are_the_two_directions_of_most_variance():
    rng = np.random.default_rng(0)
    directions = np.linalg.qr(rng.normal(size=(12, 12)))[0]
    spread = np.array([9.0, 4.0, *[0.1] * 10])
    rows = (rng.normal(size=(500, 12)) * spread) @ directions.T
    placed, shares = meaning.axes(rows)
    for axis in (0, 1):
        assert abs(np.corrcoef(placed[:, axis], rows @ directions[:, axis])[0, 1]) > 0.99
    variance = np.linalg.svd(rows - rows.mean(0), compute_uv=False) ** 2
    assert shares == pytest.approx((variance[:2] / variance.sum()).tolist(), rel=1e-6)
    assert placed.min() == 0 and placed.max() == meaning.SIDE
    again, _ = meaning.axes(rows.copy())
    assert (again == placed).all()


def planted(rng: np.random.Generator, per: int = 40) -> tuple[np.ndarray, np.ndarray]:
    """Eight groups of directions in 32 dimensions, three times as far apart as they are wide; which is whose."""
    middles = np.linalg.qr(rng.normal(size=(32, 8)))[0].T
    of = np.repeat(np.arange(8), per)
    rows = middles[of] + 0.06 * rng.normal(size=(8 * per, 32))
    return rows / np.linalg.norm(rows, axis=1, keepdims=True), of


def test_umap_keeps_neighbours_where_two_components_cannot():
    """Two axes of eight directions at right angles let groups fall on each other; UMAP has to keep them apart."""
    pytest.importorskip("umap", reason="needs umap-learn (the map extra)")
    rows, of = planted(np.random.default_rng(0))
    placed = meaning.neighbourhoods(rows)
    assert placed.shape == (len(of), 2) and placed.min() == 0 and placed.max() == meaning.SIDE
    kept = [own(xy, of) for xy in (placed, meaning.axes(rows)[0])]
    assert kept[0] > 0.97 > kept[1]
    assert (meaning.neighbourhoods(rows) == placed).all()


def own(placed: np.ndarray, of: np.ndarray, near: int = 5) -> float:
    """The share of the `near` nearest on a map that are of the same group."""
    apart = np.linalg.norm(placed[:, None] - placed[None], axis=2) + np.diag(np.full(len(of), np.inf))
    return float((of[np.argsort(apart, axis=1)[:, :near]] == of[:, None]).mean())


def test_a_map_says_how_it_was_drawn(run):
    """By what is installed; fewer units than UMAP has neighbours are drawn on two components."""
    found = meaning.maps(run, meaning.of_bases(run))
    assert {row["by"] for row in found} == {meaning.method()}
    for row in found:
        assert len(row["shares"]) == (2 if row["by"] == "pca" else 0)
        assert [len(xs) for xs in row["x"]] == [len(run.bases[b].labels) for b in row["bases"]]
    rows = np.eye(8, 12)
    assert meaning._map("layer", "decoder", [0], [rows])["by"] == "pca"


def test_a_run_without_its_embeddings_has_maps_of_directions_alone(tmp_path):
    path = write_run(tmp_path)
    shutil.rmtree(path.parent / "embeddings")
    run = reading.read(path)
    means = meaning.of_bases(run)
    assert means == [None] * len(run.bases)
    assert [found["of"] for found in meaning.maps(run, means)] == ["decoder"] * sum(
        b.decoder is not None for b in run.bases
    )
    assert not any("meaning" in entry for rows in records.neighbours(run, means).values() for entry in rows)


@pytest.mark.browser
def test_a_rectangle_on_the_map_lists_what_lies_in_it(browser):
    reader = Reader(browser, made_report())
    page = reader.open("map.html")
    first = page.evaluate("saelab.need('maps').then(maps => maps[0])")
    box = page.locator(".map").bounding_box()
    page.mouse.move(box["x"] + 4, box["y"] + 4)
    page.mouse.down()
    page.mouse.move(box["x"] + box["width"] / 2, box["y"] + box["height"] - 4, steps=4)
    page.mouse.up()
    page.wait_for_selector("h2:has-text('in the rectangle')")
    low_x, low_y, high_x, high_y = map(
        int, page.evaluate("new URLSearchParams(location.hash.slice(1)).get('box')").split("_")
    )
    inside = sum(
        low_x <= x <= high_x and low_y <= y <= high_y for xs, ys in zip(first["x"], first["y"]) for x, y in zip(xs, ys)
    )
    assert inside > 0 and page.inner_text("[aria-label='Units of the map'] h2").startswith(f"{inside} unit")
    how = {"pca": "principal components of the mean embedding", "umap": "UMAP of the mean embedding"}[first["by"]]
    assert how in page.inner_text("p.note") and page.inner_text("select[name=map]").count(first["by"].upper()) >= 1
    page.click("text=Open as a list")
    page.wait_for_selector(".units tbody tr")
    page.wait_for_selector(f"[role=status]:has-text('{inside} unit')")
    page = reader.open("map.html#q=temple NOT flower&by=badge")
    assert page.locator("[aria-label='Units of the map'] .card").count() > 0
    assert set(page.locator("[aria-label='Units of the map'] .card .name").all_inner_texts()) == {"temple"}
    assert reader.faults == []
    reader.context.close()


@pytest.mark.browser
def test_dots_are_coloured_by_label_with_the_commonest_in_the_legend(browser):
    reader = Reader(browser, made_report())
    page = reader.open("map.html#by=label")
    rows = page.evaluate("saelab.need('run').then(run => load(run, '*')).then(rows => rows.map(r => r.label))")
    counts = {label: rows.count(label) for label in set(rows) if label}
    legend = page.locator("p.legend > span").all_inner_texts()
    assert legend[-1] == "no label"
    assert [counts[label] for label in legend[:-1]] == sorted(counts.values(), reverse=True)
    pixels = """() => { const from = document.querySelector(".map canvas"), to = document.createElement("canvas")
      Object.assign(to, { width: from.width, height: from.height })
      const own = to.getContext("2d", { willReadFrequently: true }), seen = new Set()
      own.drawImage(from, 0, 0)
      const data = new Uint32Array(own.getImageData(0, 0, to.width, to.height).data.buffer)
      for (const x of data) if (x >>> 24 > 180) seen.add(x)
      return seen.size }"""
    assert page.evaluate(pixels) >= len(counts)
    for by in ("basis", "badge", "firing_rate", "clarity"):
        page.select_option("select[name=by]", by)
        assert page.locator("p.legend").inner_text() and page.evaluate(pixels) > 1, by
    assert reader.faults == []
    reader.context.close()


@pytest.mark.browser
def test_a_map_follows_its_address_and_survives_one_of_another_report(browser):
    reader = Reader(browser, made_report())
    page = reader.open("map.html#by=clarity")
    page.evaluate("location.hash = 'q=temple&by=label'")
    page.wait_for_selector("[aria-label='Units of the map'] .card")
    assert [page.input_value(f"[name={name}]") for name in ("q", "by", "map")] == ["temple", "label", "0"]
    page = reader.open("map.html#map=99&by=nobody&box=0_a_1_2")
    assert [page.input_value(f"[name={name}]") for name in ("by", "map")] == ["basis", "0"]
    assert page.locator("[aria-label='Units of the map'] h2").inner_text() == "Commonest labels"
    assert reader.faults == []
    reader.context.close()
