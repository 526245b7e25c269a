"""The browser of units: numeric ranges, columns, the gallery, brushing; and that pages say nothing empty."""

import re
from collections.abc import Iterator

import pytest
from report_reader import Reader, made_report

pytestmark = pytest.mark.browser
ALL = """async () => {
  const rows = await load(await saelab.need("run"), "*")
  return rows.map(r => ({ basis: r.basis, unit: r.unit, clarity: r.clarity, rate: r.firing_rate, score: r.score }))
}"""


@pytest.fixture
def reader(browser) -> Iterator[Reader]:
    reader = Reader(browser, made_report())
    yield reader
    assert reader.faults == []
    reader.context.close()


def matches(page) -> int:
    """How many units the page says that it shows."""
    return int(page.inner_text("[role=status]").split()[0].replace(",", ""))


def test_a_numeric_range_keeps_what_lies_in_it_and_can_be_dropped(reader):
    page = reader.open("units.html#basis=*")
    clarity = [row["clarity"] for row in page.evaluate(ALL)]
    page.click("summary:has-text('Ranges')")
    page.fill("[name=clarity-0]", "0.3")
    page.wait_for_url(re.compile("range=clarity%3A0.3"))
    assert page.evaluate("document.activeElement.name") == "clarity-0", "who types goes on typing"
    page.keyboard.press("Tab")
    page.keyboard.type("0.6")
    page.wait_for_url(re.compile("range=clarity%3A0.3%3A0.6"))
    page.wait_for_selector("[role=status]:has-text('match')")
    assert matches(page) == sum(x is not None and 0.3 <= x <= 0.6 for x in clarity) > 0
    shown = [float(t.replace("−", "-")) for t in page.locator("td[data-title=Clarity]").all_inner_texts()]
    assert shown and all(0.295 <= x <= 0.605 for x in shown)
    page.focus(".chips [data-key=drop-clarity]")
    page.keyboard.press("Enter")
    page.wait_for_url(re.compile("^((?!range).)*$"))
    assert matches(page) == len(clarity) and page.evaluate("document.activeElement.name") == "q"


def heads(page) -> list[str]:
    """The numbers that are columns."""
    return page.locator(".units thead th.num button").evaluate_all("all => all.map(b => b.dataset.key)")


def test_columns_can_be_chosen_and_stay_in_the_address(reader):
    page = reader.open("units.html")
    usual = heads(page)
    page.click("summary:has-text('Columns')")
    page.click("[data-key=col-clarity]")
    page.wait_for_url(re.compile("cols="))
    assert heads(page) == [key for key in usual if key != "clarity"]
    assert page.evaluate("document.activeElement.dataset.key") == "col-clarity"
    page.click("[data-key=col-redundancy]")
    page.wait_for_selector(".units thead [data-key=redundancy]")
    page.reload()
    page.wait_for_selector(".units thead [data-key=redundancy]")
    assert "clarity" not in heads(page)
    page.click("summary:has-text('Columns')")
    page.click("[data-key=col-reset]")
    page.wait_for_url(re.compile("^((?!cols=).)*$"))
    assert heads(page) == usual


def test_the_gallery_shows_the_same_units_in_the_same_order(reader):
    page = reader.open("units.html#basis=*&sort=score&down=1")
    rows = page.locator(".units td.name a").evaluate_all("all => all.map(a => a.getAttribute('href'))")
    page.select_option("select[name=view]", "gallery")
    page.wait_for_url(re.compile("view=gallery"))
    cards = page.locator(".units-gallery a.card").evaluate_all("all => all.map(a => a.getAttribute('href'))")
    assert cards == rows and len(cards) == 40
    assert set(page.locator(".units-gallery .badge").all_inner_texts()) & {"holds", "abstains"}
    page.click(".units-gallery a.card >> nth=3")
    page.wait_for_selector(".triage")
    assert page.inner_text(".triage .place b").startswith("place 4 of"), (
        "the unit's page walks along the gallery's list"
    )


def test_a_rectangle_over_the_plot_keeps_its_dots(reader):
    page = reader.open("units.html#basis=*&y=score")
    page.wait_for_selector(".plotted .brush .overlay")
    assert page.locator(".plotted .legend").count() == 1, "dots of several bases say which is which"
    box = page.locator(".plotted .brush .overlay").bounding_box()
    x, y = box["x"] + 0.5 * box["width"], box["y"] + 0.5 * box["height"]
    page.mouse.move(x, box["y"] + 2)
    page.mouse.down()
    page.mouse.move(box["x"] + box["width"] - 2, y, steps=4)
    page.mouse.up()
    page.wait_for_url(re.compile("range="))
    text = page.evaluate("new URLSearchParams(location.hash.slice(1)).get('range')")
    bounds = {key: (float(low), float(high)) for key, low, high in (part.split(":") for part in text.split(","))}
    inside = [
        row
        for row in page.evaluate(ALL)
        if all(
            row[name] is not None and bounds[key][0] <= row[name] <= bounds[key][1]
            for key, name in (("firing_rate", "rate"), ("score", "score"))
        )
    ]
    page.wait_for_selector(f"[role=status]:has-text('{len(inside)} unit')")
    assert set(bounds) == {"firing_rate", "score"} and 0 < len(inside) < 144
    assert page.locator(".chips button").count() == 2


def test_nothing_is_written_where_there_is_nothing_to_say(reader):
    """A child that is null must not appear as the word."""
    for address in ("index.html", "units.html", "units.html#view=gallery", "map.html", "compare.html", "methods.html"):
        page = reader.open(address)
        words = page.evaluate(
            "[...document.querySelectorAll('main, main *')].flatMap(x => [...x.childNodes])"
            ".filter(n => n.nodeType === 3).map(n => n.data.trim())"
        )
        assert not {"null", "undefined", "NaN", "[object Object]"} & set(words), address
        assert not [text for text in words if re.search(r"(^|\s)1 (units|images|pictures|photos|labels|seeds)\b", text)]


def test_columns_say_what_the_records_say(reader):
    """Each unit's row, a view into packed columns, against the record on its own page."""
    page = reader.open("units.html")
    differing = page.evaluate(
        """async () => {
          const run = await saelab.need("run"), found = []
          let seen = 0
          for (const [b, basis] of run.bases.entries()) for (const row of await load(run, basis.name)) {
            const record = (await saelab.need(`units/${b}/${Math.floor(row.unit / run.chunk)}`))[row.unit % run.chunk]
            const { label, status, badge, abstained, meanings, positives, measured } = record
            const several = meanings.length > 1, thumbs = positives.slice(0, 5)
            const own = { label, status, badge, abstained, several, thumbs, ...measured }
            for (const key in own) {
              seen++
              if (JSON.stringify(row[key]) !== JSON.stringify(own[key])) found.push([basis.name, row.unit, key])
            }
          }
          return [seen, found]
        }"""
    )
    assert differing[0] > 3000 and differing[1] == []


def test_lists_are_sorted_and_searched_as_by_hand(reader):
    """Against a comparison of whole rows and a search of every label, on all bases, for every column both ways."""
    page = reader.open("units.html")
    wrong = page.evaluate(
        """async () => {
          const run = await saelab.need("run"), rows = await load(run, "*"), wrong = []
          const place = r => `${r.basis}/${r.unit}`
          const none = x => x === null || x === undefined
          const keys = ["unit", "label", "status", ...numberColumns, "random_percentile", "nothing"]
          for (const sort of keys) for (const down of ["", "1"]) {
            const hand = [...rows].sort((a, b) => {
              const [x, y] = [a[sort], b[sort]]
              if (none(x) || none(y)) return none(x) - none(y) || a.unit - b.unit
              return (down ? -1 : 1) * (typeof x === "string" ? x.localeCompare(y, "en") : x - y) || a.unit - b.unit
            })
            if (sorted(rows, { sort, down }).map(place).join() !== hand.map(place).join()) wrong.push(sort + down)
          }
          const has = (r, word) => (r.label ?? "").toLowerCase().includes(word) || String(r.unit) === word
          const asked = {
            "ro": r => has(r, "ro"), "7": r => has(r, "7"), "07": r => has(r, "07"), "-a": r => !has(r, "a"),
            '""': () => true, "ro OR NOT e": r => has(r, "ro") || !has(r, "e"),
            "o 3 OR a": r => (has(r, "o") && has(r, "3")) || has(r, "a"),
          }
          const same = (a, b) => a.map(place).join() === b.map(place).join()
          for (const q in asked) if (!same(rows.filter(query(q)), rows.filter(asked[q]))) wrong.push(q)
          return wrong
        }"""
    )
    assert wrong == []


def test_many_dots_are_counted_at_the_nearest_hexagon(reader):
    page = reader.open("units.html")
    page.wait_for_selector(".plot svg")
    drawn, found, nearest = page.evaluate(
        """() => {
          const [width, height] = [600, 170], random = d3.randomLcg(0.5)
          const unit = i => ({ row: { basis: i % 3 ? "a" : "b" }, x: 10 ** (-3 * random()), y: random() - 0.3 })
          const drawn = Array.from({ length: 2000 }, (_, i) => unit(i))
          const axes = { type: "log", x: [1e-3, 1], y: [-0.3, 0.7] }
          const found = counted(drawn, axes, width, height)
          const [x, y] = [d3.scaleLog(axes.x, [0, width]), d3.scaleLinear(axes.y, [height, 0])]
          const middles = []
          const high = 14 * Math.sqrt(3)
          for (let i = -1; i < 45; i++) for (let j = -1; j < 18; j++) {
            middles.push([14 * i, high * j], [14 * (i + 0.5), high * (j + 0.5)])
          }
          const hand = new Map()
          for (const d of drawn) {
            const far = middles.map(([a, b]) => (a - x(d.x)) ** 2 + (b - y(d.y)) ** 2)
            const key = `${middles[far.indexOf(Math.min(...far))].map(Math.round)} ${d.row.basis}`
            hand.set(key, (hand.get(key) ?? 0) + 1)
          }
          return [drawn.length, found.map(f => [`${[x(f.x), y(f.y)].map(Math.round)} ${f.basis}`, f.count]), [...hand]]
        }"""
    )
    assert sum(n for _, n in found) == drawn and len(found) > 300
    assert dict(found) == dict(nearest)
    assert [n for _, n in found] == sorted((n for _, n in found), reverse=True)


@pytest.mark.parametrize(("asked", "shows"), [("99", -1), ("abc", 1), ("-3", 1), ("1.5", 1)])
def test_an_address_beyond_the_last_page_shows_the_last(reader, asked, shows):
    """Decisions make lists shorter: an address of their fifth page still shows units, not that none match."""
    page = reader.open(f"units.html#basis=*&page={asked}")
    every = len(page.evaluate(ALL))
    last = -(-every // 40)
    assert f"page {last if shows < 0 else shows} of {last}" in page.inner_text(".pager") and last > 1
    assert page.locator(".units td.id").count() == (every - 40 * (last - 1) if shows < 0 else 40)
    page.keyboard.press("ArrowLeft" if shows < 0 else "ArrowRight")
    page.wait_for_selector(f".pager:has-text('page {last - 1 if shows < 0 else 2} of')")


def test_words_in_quotes_are_found_while_they_are_typed(reader):
    page = reader.open("units.html#basis=*")
    labels = page.evaluate("""async () => (await load(await saelab.need("run"), "*")).map(r => r.label ?? "")""")
    begun = max(labels, key=len)[:4].lower()
    for text in (f'"{begun}', f'"{begun}"'):
        page.fill("[name=q]", text)
        page.wait_for_function("q => new URLSearchParams(location.hash.slice(1)).get('q') === q", arg=text)
        assert matches(page) == sum(begun in label.lower() for label in labels) > 0


def test_a_range_that_is_no_number_bounds_nothing(reader):
    page = reader.open("units.html#basis=*&range=clarity:much:0.4")
    some = sum(row["clarity"] is not None and row["clarity"] <= 0.4 for row in page.evaluate(ALL))
    assert matches(page) == some > 0 and "NaN" not in page.inner_text("main")


def test_the_plot_of_one_unit_has_an_axis_that_can_be_read(reader):
    """All values alike: the axis is widened, or its ticks have more digits than the margin has room for."""
    page = reader.open("units.html#basis=*&only=0.2")
    page.wait_for_selector(".plot svg circle")
    ticks = page.locator(".plot svg [aria-label*='tick label'] text")
    assert ticks.count() >= 4
    left = page.locator(".plot").bounding_box()["x"]
    assert all(box["x"] >= left for box in (tick.bounding_box() for tick in ticks.all()))
    shares = [float(text.split()[0]) for text in ticks.all_text_contents() if "%" in text]
    assert len(shares) > 1 and max(shares) <= 100
