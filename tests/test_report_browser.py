"""The report in a real browser, from disk: what a reader does, and that nothing fails or leaves the machine."""

import json
import os
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import quote, quote_plus

import pytest
from conftest import PATIENCE
from report_fixture import ASKED, UNITS
from report_reader import Reader, made_report

pytestmark = pytest.mark.browser
playwright = pytest.importorskip("playwright.sync_api", reason="needs playwright (the dev extra)")
CONTRAST = (Path(__file__).parent / "data" / "contrast.js").read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def fixture() -> Path:
    """The report of the fixture's run."""
    return made_report()


@pytest.fixture(scope="module")
def report(request) -> Path:
    """The fixture's report, or a real one: SAELAB_REPORT names its folder."""
    if "SAELAB_REPORT" in os.environ:
        return Path(os.environ["SAELAB_REPORT"]).resolve()
    return request.getfixturevalue("fixture")


@pytest.fixture
def reader(browser, report) -> Iterator[Reader]:
    reader = Reader(browser, report)
    yield reader
    assert reader.faults == []
    reader.context.close()


def test_from_overview_over_browser_and_unit_to_comparison(reader):
    page = reader.open("index.html")
    assert "neurons" in page.inner_text("h1").lower()
    page.click(".gallery .card >> nth=0")
    page.wait_for_selector(".pairs .photo")
    unit = page.inner_text(".crumbs strong")
    page.keyboard.press("ArrowRight")
    playwright.expect(page.locator(".crumbs strong")).not_to_have_text(unit, timeout=PATIENCE)
    page.click("nav >> text=Units")
    page.wait_for_selector(".units tbody tr")
    page.click(".units tbody tr:first-child td.name a")
    page.wait_for_selector(".crumbs")
    page.click("nav >> text=Comparison")
    page.wait_for_selector(".forest")
    assert page.locator(".forest tbody tr").count() >= 5


def test_search_finds_labels_by_word_and_units_by_number(reader):
    page = reader.open("units.html#basis=*")
    label = page.inner_text(".units tbody tr:nth-child(2) td.name a")
    page.fill("input[type=search]", label)
    page.wait_for_url(re.compile("q=" + quote_plus(label)))
    found = page.locator(".units tbody td.name a").all_inner_texts()
    assert found and all(label.lower() in text.lower() for text in found)
    page.fill("input[type=search]", "7")
    page.wait_for_url(re.compile("q=7"))
    assert {text.split()[0] for text in page.locator(".units td.id").all_inner_texts()} == {"7"}


def test_filters_and_sorting_agree_with_the_numbers_shown(reader):
    page = reader.open("units.html#basis=*")
    page.select_option("select[name=status]", "ok")
    page.wait_for_url(re.compile("status=ok"))
    assert set(page.locator(".units td.state").all_inner_texts()) == {"ok"}
    page.click(".units th button:has-text('Fires on')")
    page.wait_for_url(re.compile("sort=firing_rate&down=1"))
    rates = [float(t.rstrip(" %")) for t in page.locator(".units td[data-title='Fires on']").all_inner_texts()]
    assert len(rates) > 5 and rates == sorted(rates, reverse=True)
    page.click(".units th button:has-text('Fires on')")
    page.wait_for_url(re.compile("sort=firing_rate(?!&down)"))
    rates = [float(t.rstrip(" %")) for t in page.locator(".units td[data-title='Fires on']").all_inner_texts()]
    assert rates == sorted(rates)
    assert page.get_attribute(".units th[aria-sort]", "aria-sort") == "ascending"


def test_the_address_keeps_filters_and_units(reader):
    page = reader.open("units.html#basis=*&sort=clarity&down=1&page=2")
    shown = page.locator(".units td.id").all_inner_texts()
    page.reload()
    page.wait_for_selector(".units tbody tr")
    assert page.locator(".units td.id").all_inner_texts() == shown
    assert "2 of" in page.inner_text(".pager")


def test_the_whole_walk_works_by_keyboard(reader):
    page = reader.open("units.html")
    page.keyboard.press("/")
    assert page.evaluate("document.activeElement.name") == "q"
    page.keyboard.press("Escape")
    page.evaluate("document.activeElement.blur()")
    page.focus(".units tbody tr:first-child td.name a")
    page.keyboard.press("Enter")
    page.wait_for_selector(".crumbs strong")
    page.focus(".facts .term >> nth=0")
    assert page.is_visible(".tip") and page.get_attribute(".facts .term >> nth=0", "aria-describedby") == "tip"
    page.keyboard.press("Escape")
    assert not page.is_visible(".tip")


def test_every_metric_is_explained_on_hover(reader):
    page = reader.open("unit.html")
    count = page.locator("main [data-term]").count()
    assert count > 8
    for i in range(count):
        page.locator("main [data-term]").nth(i).focus()
        assert len(page.inner_text(".tip")) > 25


def test_a_unit_can_be_taken_away_as_json(reader):
    reader.page.add_init_script("document.addEventListener('copy', e => window.copied = getSelection().toString())")
    page = reader.open("unit.html#neuron/2")
    page.evaluate("navigator.clipboard && (navigator.clipboard.writeText = async text => { window.copied = text })")
    page.click("text=copy as JSON")
    page.wait_for_selector(".toast")
    assert page.evaluate("JSON.parse(window.copied).unit") == 2


def test_the_next_best_labels_stand_among_the_candidates(reader):
    """Of 18 labels of three scorers twelve are shown, all those of the scorer that chose among them."""
    page = reader.open("unit.html#neuron/2")
    shown = page.evaluate("""async () => {
      const run = await saelab.need("run")
      const record = (await saelab.need("units/0/0"))[2]
      const next = s => [2, 3, 4, 5, 6].map(i => [`${s} ${i}`, 1 / i])
      const of = s => ({ label: `${s} 1`, score: 1, runners_up: next(s), null_percentile: 1, rank: 1 })
      const made = { ...record, scorer: "c", label: "c 1", scores: { a: of("a"), b: of("b"), c: of("c") } }
      const table = candidates({ ...run, scorers: ["a", "b", "c"] }, run.bases[0], made)
      const rows = [...table.querySelectorAll("tbody th")].map(x => x.textContent)
      return { next: alternatives(made).textContent, rows }
    }""")
    assert shown["next"] == "Next best: c 2, c 3, c 4, c 5."
    assert len(shown["rows"]) == 12 and {f"c {i}" for i in range(1, 7)} < set(shown["rows"])


def test_heat_maps_and_crops_are_drawn_on_the_pictures(reader):
    page = reader.open("unit.html#neuron/2")
    assert page.locator(".pairs canvas").count() == 0
    page.click(".modes >> text=heat map")
    assert page.locator(".pairs canvas").count() == page.locator(".pair").count() > 0
    page.click(".modes >> text=crop to the peak")
    assert page.locator(".pairs canvas").count() == 0
    assert "scale(" in page.get_attribute(".pairs .photo >> nth=0", "style")


def test_a_models_answer_and_pictures_are_shown(browser, fixture):
    """On the fixture, whose SAE features have been put to a model with recorded answers."""
    reader = Reader(browser, fixture)
    page = reader.open(f"unit.html#{ASKED}/{UNITS[0]}")
    text = page.inner_text("section:has(h2:text('Proposals'))")
    assert "temple roof, curved eaves" in text and "1,234 + 56 tokens" in text and "$0.0013" in text
    page.click("text=The full answer >> nth=0")
    assert page.is_visible("pre:has-text('fits')") or page.is_visible("pre:has-text('concepts')")
    page.click("summary:has-text('The talk (2 rounds)')")
    page.locator("ol.talk").wait_for()  # a busy machine opens it after the click has returned
    talk = page.locator("ol.talk").inner_text()
    assert 'strongest {"count": 2}' in talk and "curved eaves, then" in talk and talk.count("x") == 1000
    assert page.locator(".sheets img").count() == 2
    page.locator(".sheets img >> nth=1").scroll_into_view_if_needed()
    page.wait_for_function("() => [...document.querySelectorAll('.sheets img')].every(i => i.naturalWidth > 200)")
    shown = page.locator(".answer:has(h3:text('Which photos show'))")
    right, looked = shown.locator("figure.right").count(), shown.locator("figure").count()
    assert looked and f"{right} of {looked} photos judged correctly" in shown.inner_text()
    assert reader.faults == []
    reader.context.close()


def test_meanings_and_intervals_are_shown_and_can_be_searched_for(browser, fixture):
    reader = Reader(browser, fixture)
    page = reader.open("units.html#basis=*")
    page.select_option("select[name=chance]", "2")
    page.wait_for_url(re.compile("chance=2"))
    rows = page.locator(".units tbody tr")
    assert rows.count() == page.locator(".units td.name .tag").count() > 0
    page.click(".units tbody tr:first-child td.name a")
    page.wait_for_selector("h2:text('Two meanings')")
    assert page.locator(".group").count() == 2
    shares = [float(text.rstrip(" %")) for text in page.locator("section:has(.group) h3 .tag").all_inner_texts()]
    assert sum(shares) == pytest.approx(100, abs=0.2) and shares[0] >= shares[1]
    assert page.locator("td.quiet:text-matches('^−?[0-9.]+ to −?[0-9.]+$')").count() > 2
    assert reader.faults == []
    reader.context.close()


def test_the_first_page_of_units_does_not_wait_for_the_whole_basis(browser, fixture):
    reader = Reader(browser, fixture)
    held = []
    reader.page.route("**/summary-0.js", lambda route: held.append(route))  # asked for, never answered
    reader.page.goto(f"file://{fixture}/units.html", wait_until="commit")
    reader.page.wait_for_selector(".units tbody tr:nth-child(20) td.name a")
    assert "24 units match" in reader.page.inner_text("[role=status]")
    reader.page.wait_for_function("() => document.querySelector('script[src$=\"summary-0.js\"]')")
    assert held and reader.faults == []
    assert reader.page.evaluate("typeof Plot") == "undefined"  # nor for what only charts need
    held[0].continue_()
    reader.page.wait_for_selector("main:not([aria-busy]) .plot svg")
    reader.context.close()


def test_a_units_page_reads_no_whole_basis_before_its_neighbours_come_near(browser, fixture):
    reader = Reader(browser, fixture, viewport={"width": 1280, "height": 300})
    page = reader.open("unit.html#neuron/2")
    page.wait_for_timeout(300)
    read = "() => [...document.scripts].map(script => script.src.split('/').pop())"
    assert "0.js" in page.evaluate(read) and not any("summary" in name for name in page.evaluate(read))
    page.locator(".neighbours").scroll_into_view_if_needed()
    page.wait_for_selector(".neighbours .near li a")
    assert any("summary" in name for name in page.evaluate(read)) and reader.faults == []
    reader.context.close()


def test_the_overview_opens_with_what_was_compared_and_how_it_came_out(reader):
    page = reader.open("index.html")
    run = page.evaluate("saelab.need('run')")
    kicker = page.inner_text(".kicker")
    assert run["host"] in kicker and run["bases"][0]["layer"] in kicker and "held out" in kicker
    fold = page.locator(".fold").first
    named = fold.locator(".plot").get_attribute("aria-label")
    groups = page.evaluate("saelab.need('comparison-0').then(c => c.groups.map(g => groupWords(c, g.name)))")
    assert all(name in named for name in groups), "every basis, controls included, stands in the forest plot"
    lines = fold.locator(".headline").all_inner_texts()
    used = page.evaluate("saelab.need('comparison-0').then(c => Boolean(c.causal))")
    assert used == ("Does the network use it so?" in lines[-1])
    lines = lines[: len(lines) - used]
    assert 2 <= len(lines) <= 3 and "All units" in lines[0] and (len(lines) == 2 or "other ways" in lines[1])
    words = page.inner_text("main")
    assert "beats chance" not in words and "Median null" not in words
    assert page.locator(".cautions li").count() >= 1
    headings = page.locator("h2").all_inner_texts()
    if "Best on held-out images" in headings:
        assert headings.index("Best on held-out images") < headings.index("Evenly spaced")


def test_the_forest_plot_puts_every_group_on_the_axis_of_the_first(browser, fixture):
    """Means are the neurons' plus the difference from them, whichever side of its pair a group is."""
    reader = Reader(browser, fixture)
    reader.open("index.html")
    says = reader.page.evaluate("""async () => {
      const run = await saelab.need("run"), c = structuredClone(await saelab.need("comparison-0"))
      const row = (difference, low, high) =>
        [{ metric: c.primary, counting: "named", mean_a: 0.3, mean_b: 0.2, difference, low, high, p_holm: 0.01 }]
      const pair = (a, b, role, ...x) => ({ a, b, role, matching: "all", refused: null, results: row(...x) })
      c.pairs = [pair("sae", "neuron", "main", 0.1, 0.05, 0.15)]
      c.pairs.push(pair("neuron", "random_rotation", "control", 0.04, -0.02, 0.1))
      return meansOfAll(run, c).querySelector(".plot").getAttribute("aria-label")
    }""")
    assert "SAE features 0.300, interval 0.250 to 0.350" in says  # neurons 0.2, and 0.1 more
    assert "Neurons 0.200;" in says and "Random directions 0.160, interval 0.100 to 0.220" in says
    assert reader.faults == []
    reader.context.close()


def test_marks_of_a_label_are_words_everywhere(browser, fixture):
    reader = Reader(browser, fixture)
    page = reader.open("units.html#basis=*")
    known = {"holds", "weak", "may be luck", "abstains"}
    assert set(page.locator(".units .badge").all_inner_texts()) <= known
    page.select_option("select[name=chance]", "holds")
    page.wait_for_url(re.compile("chance=holds"))
    rows = page.locator(".units tbody tr")
    assert rows.count() == page.locator(".units .badge.holds").count() > 0
    page.click(".units tbody tr:first-child td.name a")
    page.wait_for_selector(".lede .badge.holds")
    assert "the label holds" in page.inner_text(".lede .standfirst")
    page.locator(".neighbours").scroll_into_view_if_needed()
    page.wait_for_selector(".near .badge")
    assert set(page.locator(".near .badge").all_inner_texts()) <= known
    page = reader.open("index.html")
    page.evaluate("document.querySelectorAll('details.further').forEach(d => d.open = true)")
    assert set(page.locator(".card .badge").all_inner_texts()) <= known and page.locator(".card .badge").count() > 4
    assert reader.faults == []
    reader.context.close()


def test_unseen_photos_come_before_the_ones_that_the_label_was_made_from(browser, fixture):
    reader = Reader(browser, fixture)
    page = reader.open("unit.html#neuron/2")
    found = page.evaluate("saelab.need('units/0/0').then(rows => rows[2])")
    order = page.locator("main h2").all_inner_texts()
    assert order[0] == "Does the label hold on photos it was not made from?"
    assert order[1].startswith(("What excites", "Two meanings"))
    hits, misses, alarms, _ = found["held_out"]["counts"]
    heads = page.locator(".confusion h3").all_inner_texts()
    assert [int(head.split()[0]) for head in heads] == [hits, misses, alarms]
    assert page.locator(".confusion img").count() == sum(
        len(found["held_out"][k]) for k in ("hits", "misses", "alarms")
    )
    contrasts = [i for i in found["contrasts"] if i >= 0]
    assert page.locator(".pair .contrast").count() == len(set(contrasts))
    assert page.locator("text=contrast of photo").count() == len(contrasts) - len(set(contrasts))
    assert reader.faults == []
    reader.context.close()


def test_focus_stays_where_it_was_after_sorting_and_switching(browser, fixture):
    reader = Reader(browser, fixture)
    page = reader.open("units.html#basis=*")
    page.focus(".units th button:has-text('Fires on')")
    page.keyboard.press("Enter")
    page.wait_for_url(re.compile("sort=firing_rate"))
    page.wait_for_function("() => document.activeElement.dataset.key === 'firing_rate'")
    page.focus(".pager button:has-text('Next')")
    page.keyboard.press("Enter")
    page.wait_for_url(re.compile("page=2"))
    page.wait_for_function("() => document.activeElement.dataset.key === 'next'")
    page = reader.open("unit.html#neuron/2")
    page.focus(".modes >> text=heat map")
    page.keyboard.press("Enter")
    assert page.evaluate("document.activeElement.textContent") == "heat map"
    assert page.locator(".pairs canvas").count() > 0 and reader.faults == []
    reader.context.close()


@pytest.mark.parametrize(
    ("address", "says"),
    [
        ("unit.html#neuron/24", "no unit 24"),
        ("unit.html#neuron/-1", "no unit -1"),
        ("unit.html#neuron/x", "no unit x"),
        ("unit.html#nope/3", "no basis nope"),
        ("units.html#basis=nope", "no basis nope"),
        ("compare.html#nope", "no comparison of a layer nope"),
    ],
)
def test_an_address_of_something_that_is_not_there_says_so(browser, fixture, address, says):
    reader = Reader(browser, fixture)
    page = reader.open(address)
    assert says in page.inner_text("[role=alert]") and page.locator("main a").count() == 4
    assert reader.faults == []
    reader.context.close()


def test_the_rows_that_match_can_be_downloaded_and_heads_stay_in_sight(browser, fixture, tmp_path):
    import pandas

    reader = Reader(browser, fixture)
    page = reader.open("units.html#basis=*&sort=clarity&down=1&q=temple")
    with page.expect_download() as waited:
        page.click("text=Download these units")
    waited.value.save_as(tmp_path / "units.csv")
    table = pandas.read_csv(tmp_path / "units.csv")
    assert f"{len(table)} units match" in page.inner_text("[role=status]") and set(table["label"]) == {"temple"}
    assert table["clarity"].dropna().is_monotonic_decreasing and {"badge", "abstained", "caption_r"} <= set(table)
    page = reader.open("units.html#basis=*")
    page.evaluate("scrollTo(0, 1500)")
    page.wait_for_timeout(100)
    box = page.locator(".units thead th").first.bounding_box()
    assert 0 < box["y"] < 120
    assert reader.faults == []
    reader.context.close()


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("address", ["index.html", "units.html", "unit.html", "compare.html", "methods.html"])
def test_pages_fit_a_phone_name_their_pictures_and_can_be_read(browser, report, address, scheme):
    reader = Reader(browser, report, viewport={"width": 390, "height": 844}, color_scheme=scheme)
    page = reader.open(address)
    page.wait_for_timeout(300)
    assert page.evaluate("document.documentElement.scrollWidth") <= 390
    assert page.evaluate("[...document.images].filter(i => !i.alt).length") == 0
    nameless = "[...document.querySelectorAll('button, a')].filter(b => !(b.textContent.trim() || b.ariaLabel))"
    assert page.evaluate(f"{nameless}.length") == 0
    faint = page.evaluate(CONTRAST)
    assert faint == [], "text with less than 4.5 : 1"
    assert reader.faults == []
    reader.context.close()


def test_a_label_set_stands_under_the_label(browser, report, tmp_path):
    shutil.copytree(report, tmp_path / "report")
    first = next((tmp_path / "report" / "data" / "units" / "0").glob("0.js"))
    text, names = first.read_text(encoding="utf-8"), ["cat", "kitten", *(f"tabby {i}" for i in range(30))]
    asked = [f'{{"label_set":{json.dumps(some)},"unit":' for some in (names, names[:1])]
    for unit, change in enumerate(asked):
        assert f'{{"unit":{unit},' in text
        text = text.replace(f'{{"unit":{unit},', f"{change}{unit},", 1)
    first.write_text(text, encoding="utf-8")
    reader = Reader(browser, tmp_path / "report")
    name = reader.open("index.html").evaluate("async () => (await saelab.need('run')).bases[0].name")
    for unit, shown in enumerate(
        ("cat, or kitten, or tabby 0, or tabby 1, or tabby 2, or tabby 3, or 26 others", "no other label")
    ):
        reader.open(f"unit.html#{name}/{unit}")
        assert reader.page.inner_text(".lede h1 + p") == f"Label set: {shown}"
    assert reader.faults == []
    reader.context.close()


def test_a_broken_folder_says_so_on_the_page(browser, report, tmp_path):
    shutil.copytree(report, tmp_path / "report", ignore=shutil.ignore_patterns("units"))
    reader = Reader(browser, tmp_path / "report")
    page = reader.open("unit.html#neuron/0")
    assert "incomplete" in page.inner_text("[role=alert]")
    reader.context.close()


# Of the features of the first SAE whose label holds on held-out images: the one that the overview puts first.
CHOSEN = """async () => {
  const { bases } = await saelab.need("run"), sae = bases.find(b => b.kind === "sae")
  return [sae.name, (sae.best[0] ?? sae.sample[0]).unit]
}"""
VISIBLE = """bottom => [...document.querySelectorAll("img.photo")].filter(i => i.getBoundingClientRect().top < bottom)
  .map(i => [i.src.match(/(\\d+)\\.webp$/)[1], i.alt.replace(/^contrast: /, "")])"""
BOTTOM = "last => Math.ceil(document.querySelector(last).getBoundingClientRect().bottom) + 8"


@pytest.mark.skipif("SAELAB_SCREENSHOTS" not in os.environ, reason="SAELAB_SCREENSHOTS names no folder")
def test_pictures_for_the_readme(browser, report):
    """`SAELAB_REPORT=runs/report/quickstart SAELAB_SCREENSHOTS=docs/pictures` makes what the README shows."""
    out = Path(os.environ["SAELAB_SCREENSHOTS"])
    out.mkdir(parents=True, exist_ok=True)
    reader, shown = Reader(browser, report, viewport={"width": 1280, "height": 1400}), {}
    basis, unit = reader.open("units.html").evaluate(CHOSEN)
    of_unit = ("report", f"unit.html#{quote(basis)}/{unit}", ".pairs")
    for name, address, last in (of_unit, ("comparison", "compare.html", ".glance")):
        reader.page.close()
        reader.watch(reader.context.new_page())
        page = reader.open(address)
        page.wait_for_function(
            "[...document.images].every(i => i.complete || i.getBoundingClientRect().top > innerHeight)"
        )
        page.wait_for_timeout(300)
        bottom = page.evaluate(BOTTOM, last)
        page.screenshot(path=out / f"{name}.png", clip={"x": 0, "y": 0, "width": 1280, "height": bottom})
        shown |= dict(page.evaluate(VISIBLE, bottom))
        assert (out / f"{name}.png").stat().st_size > 50_000
    credit = reader.page.evaluate("saelab.need('run').then(run => [run.images.credits, run.images.credit])")
    rows = [f"| {words} | {credit[0].get(i) or credit[1]} |" for i, words in sorted(shown.items(), key=lambda x: x[1])]
    head = [
        "# Credits of the photos in these pictures\n",
        f"`report.png` is the page of {basis}, feature {unit}, in the quickstart's report: of the units of",
        "one meaning whose label captions name, the one whose label holds best on held-out photos (lower end of the",
        "interval of its correlation with what people wrote).",
        "`comparison.png` is the top of its page on the comparison.\n\n| photo | credit |\n| --- | --- |",
    ]
    file = out / "CREDITS.md"
    others = file.read_text(encoding="utf-8").partition("\n## ")[1:] if file.is_file() else ()  # of other pictures
    file.write_text("\n".join([*head, *rows]) + "\n" + "".join(others), encoding="utf-8")
    assert shown and reader.faults == []
    reader.context.close()
