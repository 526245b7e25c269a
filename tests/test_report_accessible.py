"""axe-core finds nothing on any page: light and dark, on a desktop and on a phone."""

import os
from importlib.resources import files
from pathlib import Path

import pytest
from report_fixture import ASKED, UNITS
from report_reader import Reader, made_report

pytestmark = pytest.mark.browser
PAGES = ("index.html", "units.html#basis=*", f"unit.html#{ASKED}/{UNITS[0]}", "compare.html", "methods.html")
PAGES += ("unit.html#nope/3", "map.html#q=temple", "beside.html#0.2_1.3")
# The colours are all that differs in the dark: everything else is judged once a size.
RULES = {"light": {}, "dark": {"runOnly": {"type": "rule", "values": ["color-contrast", "link-in-text-block"]}}}
FOUND = """rules => axe.run(document, { preload: false, ...rules }).then(found => found.violations.map(
  v => [v.id, v.nodes.length, v.nodes[0].html.slice(0, 120), v.nodes[0].failureSummary]))"""


LOOKS = [(size, scheme) for size in ((1280, 900), (1024, 768), (390, 844)) for scheme in ("light", "dark")]
# Where the shade of a box that scrolls lies: to its left, to its right.
SHADES = """box => { const shades = getComputedStyle(box).boxShadow.split(/,(?![^(]*\\))/).map(shade => [
  shade.match(/(-?[\\d.]+)px/), /, 0\\)|\\/ 0\\)/.test(shade)]); return [1, -1].map(side => shades.some(
  ([x, clear]) => x && Math.sign(Number(x[1])) === side && !clear)) }"""


# What makes a page wider than its window: nothing, or the elements that reach beyond it.
BEYOND = """() => document.documentElement.scrollWidth <= innerWidth ? [] : [...document.body.querySelectorAll("*")]
  .filter(x => x.getBoundingClientRect().right > innerWidth + 0.5).map(x => x.outerHTML.slice(0, 120)).slice(-6)"""


def axe() -> str:
    """axe-core's script, from the package that carries it."""
    pytest.importorskip("axe_playwright_python", reason="needs axe-playwright-python (the dev extra)")
    return (files("axe_playwright_python") / "axe.min.js").read_text(encoding="utf-8")


@pytest.mark.parametrize("address", PAGES)
def test_axe_finds_nothing(browser, address):
    report = Path(os.environ["SAELAB_REPORT"]).resolve() if "SAELAB_REPORT" in os.environ else made_report()
    reader = Reader(browser, report, bypass_csp=True)
    page = reader.open(address)
    page.evaluate(axe())
    for width, height in ((1280, 900), (390, 844)):
        page.set_viewport_size({"width": width, "height": height})
        for scheme, rules in RULES.items():
            page.emulate_media(color_scheme=scheme)
            page.wait_for_timeout(150)
            assert page.evaluate(FOUND, rules) == [], (address, width, scheme)
    assert reader.faults == []
    reader.context.close()


def check_looks(page) -> None:
    """As the page stands: axe-core finds nothing, and nothing but a box scrolls to the side, in every look."""
    page.evaluate(axe())
    for (width, height), scheme in LOOKS:
        page.set_viewport_size({"width": width, "height": height})
        page.emulate_media(color_scheme=scheme)
        page.wait_for_timeout(150)
        assert page.evaluate(FOUND, {}) == [], (page.url, width, scheme)
        assert page.evaluate(BEYOND) == [], (page.url, width)


def check_alone(browser, file: Path) -> None:
    """A page of its own, with boxes that scroll to the side."""
    context = browser.new_context(bypass_csp=True)
    page = context.new_page()
    page.goto(file.resolve().as_uri())
    check_looks(page)
    for box in page.query_selector_all(".scroll"):
        check_shades(box)
    context.close()


def check_shades(box) -> None:
    """A box with more to the side has a shade there, as far as the end; one without has none."""
    wide, seen = box.evaluate("box => box.scrollWidth - box.clientWidth"), []
    for left in (0, wide / 2, wide):
        box.evaluate("(box, left) => { box.scrollLeft = left }", left)
        box.evaluate("() => new Promise(done => requestAnimationFrame(() => requestAnimationFrame(done)))")
        seen.append(box.evaluate(SHADES))
    assert seen == ([[False, True], [True, True], [True, False]] if wide > 1 else [[False, False]] * 3), seen
    assert wide <= 1 or box.get_attribute("tabindex") == "0"


def test_a_collection_can_be_read_anywhere(browser):
    reader = Reader(browser, made_report(), bypass_csp=True)
    for unit in UNITS[:2]:
        page = reader.open("index.html")
        page = reader.open(f"unit.html#{ASKED}/{unit}")
        page.fill("input[name=collection]", "mine and yours")
        page.press("input[name=collection]", "Enter")
        page.wait_for_selector(".notebook .chips")
    page = reader.open("index.html")
    page = reader.open("units.html#basis=*&in=mine and yours")
    assert page.locator(".units tbody tr").count() == 2
    check_looks(page)
    assert reader.faults == []
    reader.context.close()


def test_wide_tables_show_that_there_is_more(browser):
    reader = Reader(browser, made_report(), viewport={"width": 390, "height": 844})
    wide = 0
    for address in (f"unit.html#{ASKED}/{UNITS[0]}", "compare.html", "methods.html", "beside.html#0.2_1.3"):
        page = reader.open(address)
        page.evaluate("document.querySelectorAll('details').forEach(x => { x.open = true })")
        page.wait_for_timeout(200)
        for box in page.query_selector_all(".scroll"):
            check_shades(box)
            wide += box.evaluate("box => box.scrollWidth > box.clientWidth + 1")
    assert wide > 3 and reader.faults == []
    reader.context.close()


def test_axe_sees_what_is_wrong(browser):
    """The check can fail: a picture without words, and grey on grey."""
    reader = Reader(browser, made_report(), bypass_csp=True)
    page = reader.open("index.html")
    page.evaluate(axe())
    page.evaluate("""() => { const x = document.createElement("p"); x.style.cssText = "color:#999;background:#aaa"
      x.append("faint", document.createElement("img")); document.querySelector("main").append(x) }""")
    assert {"color-contrast", "image-alt"} <= {row[0] for row in page.evaluate(FOUND, {})}
    reader.context.close()
