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
    page.click("text=Open as a list")
    page.wait_for_selector(".units tbody tr")
    page.wait_for_selector(f"[role=status]:has-text('{inside} unit')")
    page = reader.open("map.html#q=temple NOT flower&by=badge")
    assert page.locator("[aria-label='Units of the map'] .card").count() > 0
    assert set(page.locator("[aria-label='Units of the map'] .card .name").all_inner_texts()) == {"temple"}
    assert reader.faults == []
    reader.context.close()
