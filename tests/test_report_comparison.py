"""The page of the comparison in a browser: one axis, fixed columns, verdicts on a phone, contents, SAEs in a row."""

import json
import shutil
from collections.abc import Iterator
from copy import deepcopy
from pathlib import Path

import pytest
from report_reader import Reader, made_report

from saelab.report import write

pytestmark = pytest.mark.browser
EXAMPLE = Path(__file__).parent / "data" / "comparison_example.json"  # a planted world with every control


@pytest.fixture(scope="module")
def compared() -> dict:
    """The example under the names of the fixture's bases, and half of its SAEs' seeds as SAEs of another setting."""
    found = json.loads(EXAMPLE.read_text(encoding="utf-8"))
    names = {"neurons": "neuron", **{f"SAE seed {i}": f"sae seed {i}" for i in range(3)}}
    for basis in found["bases"]:
        basis["name"] = names.get(basis["name"], basis["name"])
    for group in found["groups"]:
        group["bases"] = [names.get(name, name) for name in group["bases"]]
    sae = next(group for group in found["groups"] if group["name"] == "SAE features")
    sae["bases"].remove("sae seed 1")
    found["groups"].append({**sae, "name": "SAE features, k=8", "bases": ["sae seed 1"], "seeds": [1]})
    for basis in found["bases"]:
        basis["group"] = "SAE features, k=8" if basis["name"] == "sae seed 1" else basis["group"]
    for pair in deepcopy([pair for pair in found["pairs"] if pair["b"] == "neurons"]):
        found["pairs"].append(pair | {"b": "SAE features, k=8"})
    found["setup"]["layer"], found["distributions"] = "fire", {}
    found["validity"] = [{"check": "sae against itself", "passed": True, "detail": "no difference"}]
    return found


@pytest.fixture(scope="module")
def report(compared, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("comparison") / "report"
    shutil.copytree(made_report(), folder)
    write.put(folder, "comparison-0", compared)
    return folder


@pytest.fixture
def reader(browser, report) -> Iterator[Reader]:
    reader = Reader(browser, report)
    yield reader
    assert reader.faults == []
    reader.context.close()


def test_all_bars_stand_on_one_axis_in_columns_of_one_width(reader, compared):
    page = reader.open("compare.html")
    for summary in page.locator("summary:has-text('Against the controls')").all():
        summary.click()
    tables = page.locator("table.forest")
    assert tables.count() == sum(pair["matching"] == "all" for pair in compared["pairs"])
    ticks, columns, dots = page.evaluate("""() => {
      const all = [...document.querySelectorAll("table.forest")]
      const left = x => Math.round(x.getBoundingClientRect().left * 2) / 2
      const near = (table, what) => [...table.querySelectorAll(what)]
      return [all.map(t => near(t, ".ticks i").map(i => [i.textContent, left(i.parentElement), i.style.left].join())),
        all.map(t => near(t, "thead th").map(left)), near(all[0], ".whisker i").map(i => parseFloat(i.style.left))]
    }""")
    assert len({json.dumps(row) for row in ticks}) == 1 and len({json.dumps(row) for row in columns}) == 1
    own = {float(text.split(",")[0].replace("−", "-")): float(text.split(",")[2].rstrip("%")) for text in ticks[0]}
    assert len(own) >= 5 and own[0] == 50
    one = max(own)  # a dot stands where the ticks say
    rows = [r for r in compared["pairs"][0]["results"] if r["counting"] == "named" and r["difference"] is not None]
    order = sorted(rows, key=lambda r: list(compared["metrics"]).index(r["metric"]))
    wanted = [50 + (own[one] - 50) * r["difference"] / one for r in order]
    assert dots == pytest.approx(wanted, abs=0.05)


def test_an_interval_longer_than_the_axis_is_cut_and_marked(reader):
    page = reader.open("compare.html")
    found = page.evaluate("""async () => {
      const run = await saelab.need("run"), c = await saelab.need("comparison-0")
      const pair = structuredClone(c.pairs.find(p => p.matching === "all"))
      const axis = sharedAxis(c.pairs)
      Object.assign(pair.results.find(r => r.counting === "named"), { low: -9, high: 0.1, difference: 0.05 })
      const row = pairTable(run, c, pair, "named", axis).querySelector(".whisker")
      const count = css => row.querySelectorAll(css).length
      return [count("s.left"), count("s.right"), row.querySelector("b").style.left]
    }""")
    assert found == [1, 0, "0%"]


def test_on_a_phone_every_verdict_is_in_sight_and_the_contents_stay(browser, report):
    reader = Reader(browser, report, viewport={"width": 390, "height": 844})
    page = reader.open("compare.html")
    for kind in (".forest tbody .verdictcell", ".glance tbody .verdictcell"):
        cells = [c.bounding_box() for c in page.locator(kind).all() if c.is_visible()]
        assert cells and all(box["x"] >= 0 and box["x"] + box["width"] <= 390 for box in cells), kind
    assert page.evaluate("document.documentElement.scrollWidth") <= 390
    page.evaluate("scrollTo(0, 3000)")
    page.wait_for_selector(".contents [aria-current]")
    assert abs(page.locator(".contents").bounding_box()["y"]) < 2
    assert reader.faults == []
    reader.context.close()


OUT_OF_CELLS = """css => [...document.querySelectorAll(css)].flatMap(cell => {
  const range = document.createRange(), { left, right } = cell.getBoundingClientRect()
  range.selectNodeContents(cell)
  const box = range.getBoundingClientRect()
  return box.width && (box.left < left - 1 || box.right > right + 1) ? [cell.innerText] : []
})"""


def test_no_verdict_and_no_number_leaves_its_cell_on_a_small_screen(browser, report):
    reader = Reader(browser, report, viewport={"width": 1024, "height": 900})
    page = reader.open("compare.html")
    page.evaluate("document.querySelectorAll('details').forEach(d => { d.open = true })")
    assert page.locator(".glance .chip").count() and page.locator(".forest td.num").count()
    for css in (".glance tbody td", ".forest thead th", ".forest tbody td.num"):
        assert page.evaluate(OUT_OF_CELLS, css) == [], css
    reader.context.close()


def test_contents_stay_in_sight_open_what_is_folded_and_mark_what_is_read(reader):
    page = reader.open("compare.html")
    folded = page.locator("section.folded details")
    assert folded.count() >= 3 and folded.locator("table").first.is_hidden()
    assert "the check holds" in page.inner_text("summary:has-text('Does the comparison itself hold?')")
    link = page.locator(".contents button", has_text="Coverage")
    link.focus()
    page.keyboard.press("Enter")
    heading = page.locator("h2", has_text="Coverage and redundancy")
    assert heading.evaluate("x => x === document.activeElement")
    assert page.locator("section.folded:has(h2:text('Coverage')) table").is_visible()
    bar = page.locator(".contents").bounding_box()
    page.wait_for_timeout(100)
    bar = page.locator(".contents").bounding_box()
    assert 40 < bar["y"] < 70 and heading.bounding_box()["y"] >= bar["y"] + bar["height"] - 1
    page.wait_for_selector(".contents button[aria-current]")


def test_saes_of_other_settings_and_their_seeds_stand_beside_each_other(reader, compared):
    page = reader.open("compare.html")
    section = page.locator("section:has(h2:text-is('SAE sizes and seeds'))")
    rows = section.locator("table.dictionaries tbody tr").all_inner_texts()
    assert [row.split("\t")[0].split("\n")[0] for row in rows] == [
        "SAE features, mean of 2 seeds",
        "seed 0",
        "seed 2",
        "SAE features, k=8",
    ]
    value = {b["name"]: b["means"][compared["primary"]]["named"] for b in compared["bases"]}
    shown = [float(row.split()[-1]) for row in rows]
    two = [value["sae seed 0"], value["sae seed 2"]]
    assert shown == pytest.approx([sum(two) / 2, *two, value["sae seed 1"]], abs=6e-4)
    tables = section.locator("table.forest")
    assert tables.count() == 1 and "SAE features, k=8" in section.locator(".pairing h3").inner_text()
    says = section.locator(".plot").first.get_attribute("aria-label")
    assert f"SAE features, k=8 {value['sae seed 1']:.3f}" in says and f"Neurons {value['neuron']:.3f}" in says
    section.locator("button", has_text="matched on firing rate").click()
    assert page.evaluate("document.activeElement.textContent") == "matched on firing rate"
    pressed = page.locator("section:has(h2:text-is('Metric by metric')) button[aria-pressed=true]").all_inner_texts()
    assert pressed[0] == "all units", "each section has switches of its own"


def test_the_null_is_summed_up_by_the_scorer_that_labelled(reader, compared):
    page = reader.open("compare.html")
    says = page.evaluate("""async () => {
      const run = await saelab.need("run"), c = await saelab.need("comparison-0")
      return nullTable({ ...run, scorer: "pearson" }, c).querySelector("summary .quiet").textContent
    }""")
    assert next(iter(compared["bases"][0]["null_percentile"])) != "pearson" and says.lower().startswith("by pearson, ")
    assert page.evaluate("saelab.need('run').then(run => run.scorers.includes(run.scorer))")


def test_a_drag_over_the_plot_of_rates_does_nothing(reader, compared):
    page = reader.open("compare.html")
    chart = page.locator("section", has=page.locator("h2", has_text="Quality against firing rate"))
    chart.scroll_into_view_if_needed()
    chart.locator("svg").wait_for()
    assert chart.locator("select").input_value() == compared["primary"]
    box = chart.locator("svg").bounding_box()
    page.mouse.move(box["x"] + 80, box["y"] + 40)
    page.mouse.down()
    page.mouse.move(box["x"] + 180, box["y"] + 120, steps=3)
    page.mouse.up()
    assert chart.locator("svg").is_visible()  # the reader fails at its end if the page raised an error
