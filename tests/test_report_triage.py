"""Deciding about units by keyboard, from disk: verdicts, labels, notes, collections, and what becomes of them."""

import json
import re
from urllib.parse import quote

import pandas
import pytest
from conftest import PATIENCE
from report_fixture import ASKED, write_run
from report_reader import Reader, made_report

from saelab.report import build

pytestmark = pytest.mark.browser
playwright = pytest.importorskip("playwright.sync_api", reason="needs playwright (the dev extra)")
LIST = "basis=*&sort=score&down=1"


@pytest.fixture
def reader(browser):
    reader = Reader(browser, made_report())
    yield reader
    assert reader.faults == []
    reader.context.close()


def place(page) -> str:
    return page.inner_text(".triage .place b")


def said(page) -> list[dict]:
    """What the browser keeps."""
    return page.evaluate("JSON.parse(localStorage.getItem('saelab-people fixture') ?? '[]')")


def test_twenty_decisions_in_a_row_need_no_mouse(reader):
    page = reader.open(f"units.html#{LIST}")
    rows = page.evaluate("""async () => {
      const run = await saelab.need("run"), state = { ...listDefaults, basis: "*", sort: "score", down: "1" }
      return sorted(await load(run, "*"), state).slice(0, 21).map(r => [r.basis, r.unit, r.label])
    }""")
    page.focus(".units tbody tr:first-child td.name a")
    page.keyboard.press("Enter")
    page.wait_for_selector(".triage")
    page.focus(".modes >> text=heat map")
    page.keyboard.press("Enter")
    page.evaluate("document.activeElement.blur()")
    keys = "axxa" * 5
    for key in keys[:18]:  # as fast as they come: no key may be lost, none may hit the wrong unit
        page.keyboard.press(key)
    playwright.expect(page.locator(".triage .place b")).to_have_text(re.compile("^place 19 of"), timeout=PATIENCE)
    assert page.locator(".modes button[aria-pressed=true]").inner_text() == "heat map"
    page.keyboard.press("e")
    page.keyboard.type("roof tiles")
    page.keyboard.press("Enter")
    playwright.expect(page.locator(".triage .place b")).to_have_text(re.compile("^place 20 of"), timeout=PATIENCE)
    page.keyboard.press("s")
    playwright.expect(page.locator(".triage .place b")).to_have_text(re.compile("^place 21 of"), timeout=PATIENCE)
    kept = said(page)
    words = {"a": "accepted", "x": "rejected"}
    assert [(row["basis"], row["unit"], row.get("verdict")) for row in kept[:18]] == [
        (basis, unit, words[key]) for (basis, unit, _), key in zip(rows, keys[:18])
    ]
    assert kept[18]["new"] == "roof tiles" and (kept[18]["basis"], kept[18]["unit"], kept[18]["old"]) == tuple(rows[18])
    assert len(kept) == 19 and "view=heat" in page.url and "sort=score" in page.url
    page.keyboard.press("u")  # the last decision was another label
    playwright.expect(page.locator(".triage .place b")).to_have_text(re.compile("^place 19 of"), timeout=PATIENCE)
    playwright.expect(page.locator("h1")).to_have_text(rows[18][2], timeout=PATIENCE)
    page = reader.open(f"units.html#{LIST}&said=accepted")
    assert page.locator(".units tbody tr").count() == keys[:18].count("a")
    assert set(page.locator(".units .badge.said").all_inner_texts()) == {"accepted"}


def test_next_and_previous_follow_the_list_that_was_filtered_and_sorted(reader):
    page = reader.open("units.html#basis=*&q=temple OR flower NOT 7&sort=clarity&down=1")
    shown = page.locator(".units td.id").all_inner_texts()
    page.click(".units tbody tr:nth-child(2) td.name a")
    page.wait_for_selector(".triage")
    assert place(page).startswith("place 2 of") and "temple OR flower" in page.inner_text(".triage .place a")
    for step, at in (("ArrowRight", 3), ("j", 4), ("k", 3), ("ArrowLeft", 2), ("ArrowLeft", 1)):
        page.keyboard.press(step)
        playwright.expect(page.locator(".triage .place b")).to_have_text(
            re.compile(f"^place {at} of"), timeout=PATIENCE
        )
        assert page.inner_text(".crumbs strong").split()[-1] == shown[at - 1].split()[0]
    assert page.get_attribute(".crumbs .previous", "aria-disabled") == "true"
    page.click(".triage .place a")
    page.wait_for_selector(".units tbody tr")
    assert page.locator(".units td.id").all_inner_texts() == shown
    page = reader.open("unit.html#neuron/2?view=heat")  # the way of looking is part of the address
    assert place(page) == "neuron 2 of 0–23", "a basis in order counts as units are numbered, from 0"
    assert page.inner_text(".crumbs strong") == "neuron 2"
    assert page.locator(".pairs canvas").count() > 0


def test_stars_notes_and_collections_stay_and_a_collection_has_an_address(reader):
    page = reader.open("unit.html#neuron/2")
    page.keyboard.press("f")
    page.wait_for_selector(".badge.star")
    page.keyboard.press("n")
    page.keyboard.type("looks like <b>sky</b>")
    page.keyboard.press("Enter")
    page.wait_for_selector(".badge.said:text-is('note')")
    page.keyboard.press("c")
    page.keyboard.type("skies & seas")
    page.keyboard.press("Enter")
    page.wait_for_selector(".notebook .chips a")
    page.reload()
    page.wait_for_selector(".notebook .chips a")
    assert page.input_value("input[name=note]") == "looks like <b>sky</b>"
    page.click(".history summary")
    assert page.locator(".history li").count() == 3 and "unnamed" in page.inner_text(".history li >> nth=0")
    page.click(".notebook .chips a")
    page.wait_for_selector(".units tbody tr")
    assert page.locator(".units tbody tr").count() == 1 and "in=skies" in page.url
    page = reader.open("units.html#basis=*&only=0.2_1.3")  # chosen units, for whoever has the same report
    assert page.locator(".units tbody tr").count() == 2


def test_a_key_held_down_decides_about_one_unit(reader):
    page = reader.open(f"unit.html#neuron/0?{LIST}&basis=neuron")
    start = place(page)
    for _ in range(6):
        page.keyboard.down("a")  # all but the first are repeats
    page.keyboard.up("a")
    page.keyboard.press("f")
    page.wait_for_selector(".badge.star")
    assert [row.get("verdict") for row in said(page)] == ["accepted", None] and place(page) != start


def test_the_focus_stays_with_the_notebook_when_a_collection_goes(reader):
    page = reader.open("unit.html#neuron/2")
    for name in ('say "sky"', "seas"):
        page.keyboard.press("c")
        page.keyboard.type(name)
        page.keyboard.press("Enter")
        page.wait_for_selector(f".notebook .chips a:has-text('{name}')")
    for left in (1, 0):
        page.focus(".notebook .chips button")
        page.keyboard.press("Enter")
        playwright.expect(page.locator(".notebook .chips button")).to_have_count(left, timeout=PATIENCE)
        assert page.evaluate("document.activeElement.closest('.notebook') !== null")


def test_a_verdict_can_be_taken_back_on_a_phone(reader):
    page = reader.open(f"unit.html#neuron/0?{LIST}&basis=neuron")
    page.set_viewport_size({"width": 390, "height": 844})
    start = place(page)
    page.click(".triage >> text=Accept")
    playwright.expect(page.locator(".triage .place b")).not_to_have_text(start, timeout=PATIENCE)
    page.click(".triage >> text=Undo")
    playwright.expect(page.locator(".triage .place b")).to_have_text(start, timeout=PATIENCE)
    assert said(page)[-1]["verdict"] is None
    height = page.locator(".triage").bounding_box()["height"]
    assert height < 90, "one row of buttons: the bar must leave room for the page"


def test_two_to_four_units_stand_side_by_side(reader):
    page = reader.open("units.html#basis=*")
    for i in (0, 2):
        page.check(f".units tbody tr >> nth={i} >> .tick")
    shown = page.locator(".units td.name a").all_inner_texts()
    page.click(".picked >> text=Side by side")
    page.wait_for_selector(".beside")
    assert page.locator(".beside thead .serif").all_inner_texts() == [shown[0], shown[2]]
    alike = page.evaluate("document.querySelectorAll('.beside .shared').length")
    ids = page.evaluate("""() => [...document.querySelectorAll('.beside tbody tr:nth-child(2) td')].map(
      c => [...c.querySelectorAll('img')].map(i => i.src))""")
    assert alike >= len(set(ids[0]) & set(ids[1])) * 2
    page = reader.open("beside.html#0.1")
    assert "Two to four" in page.inner_text("[role=alert]")
    page = reader.open("beside.html#0.1_0.999")
    assert "no unit 0.999" in page.inner_text("[role=alert]")


def test_what_was_decided_in_a_browser_comes_back_in_a_rebuilt_report(browser, tmp_path):
    run = write_run(tmp_path)
    reader = Reader(browser, build(run, tmp_path / "report").parent)
    page = reader.open(f"unit.html#{quote(ASKED)}/3")
    own = page.inner_text("h1")
    page.keyboard.press("a")
    playwright.expect(page.locator(".triage .place b")).to_have_text(re.compile(" 4 of 0–"), timeout=PATIENCE)
    page.keyboard.press("e")
    page.keyboard.type("roof tiles")
    page.keyboard.press("Enter")
    playwright.expect(page.locator(".triage .place b")).to_have_text(re.compile(" 5 of 0–"), timeout=PATIENCE)
    page = reader.open("units.html")
    with page.expect_download() as waited:
        page.click(".decisions button")
    target = run.parent / "live" / run.stem / "judgements.jsonl"
    target.parent.mkdir(parents=True)
    waited.value.save_as(target)
    reader.context.close()
    again = build(run, tmp_path / "report").parent
    reader = Reader(browser, again)  # another browser, which keeps nothing
    page = reader.open(f"unit.html#{quote(ASKED)}/4")
    assert page.inner_text("h1") == "roof tiles" and page.locator(".edited").count() == 1
    page = reader.open(f"unit.html#{quote(ASKED)}/3")
    assert page.locator(".badge.accepted").count() == 1 and page.inner_text("h1") == own
    reader.context.close()
    table = pandas.read_csv(again / "takeaway" / "units.csv").set_index(["basis", "unit"])
    assert table.loc[(ASKED, 3), "verdict"] == "accepted" and table.loc[(ASKED, 3), "label"] == own
    assert table.loc[(ASKED, 4), "label_by_people"] == "roof tiles" and table["verdict"].notna().sum() == 1
    rows = [json.loads(line) for line in (again / "takeaway" / "judgements.jsonl").read_text().splitlines()]
    assert [(row["unit"], row.get("verdict"), row.get("new")) for row in rows] == [
        (3, "accepted", None),
        (4, None, "roof tiles"),
    ]
