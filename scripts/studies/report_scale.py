"""How fast the pages are with many units: `python report_scale.py REPORT [UNITS ...]`, on a copy of a report.

The units of the report's first basis are repeated until they are so many (20,000 and 100,000 unless given). It prints,
for each thing that a reader does, the median of seconds on the clock and of the page's own processor seconds, which
other programs on the machine change little; then what the page of units holds in memory. Needs Chromium and playwright.
"""

import json
import shutil
import statistics
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np

from saelab.report import write

ROUNDS = 5
TABLE = ".units tbody tr:nth-child(20) .name a"
ALL = "main:not([aria-busy]) .plot svg"
MAP = "p.legend span"
UNIT = "main:not([aria-busy]) h1"
ROWS = "document.querySelector('.scroll.wide > div')"
ACTIONS = {  # what a reader does on the page of units, which draws its rows anew
    "search": "const q = document.querySelector('[name=q]'); q.value = 'e'; q.dispatchEvent(new Event('input'))",
    "sort": "document.querySelector('th [data-key=score]').click()",
    "sort by label": "document.querySelector('th [data-key=label]').click()",
    "filter": "const x = document.forms[0].least; x.value = 'often'; x.dispatchEvent(new Event('change'))",
    "next page": "document.querySelector('[data-key=next]').click()",
}
# Notes the seconds at which each element is first on the screen: asked from outside, a busy page answers late.
SEEN = """window.seen = {}
const drawn = element => requestAnimationFrame(() => setTimeout(() => { seen[element] = performance.now() / 1000 }))
const wanted = new Set(ELEMENTS)
new MutationObserver(() => {
  for (const element of wanted) if (document.querySelector(element)) { wanted.delete(element); drawn(element) }
}).observe(document, { childList: true, subtree: true, attributeFilter: ["aria-busy"] })"""
# Seconds until the rows have changed and are on the screen.
UNTIL = """async act => {
  const from = performance.now()
  await new Promise(done => {
    const drawn = (_, seen) => { seen.disconnect(); requestAnimationFrame(() => setTimeout(done)) }
    new MutationObserver(drawn).observe(ROWS, { childList: true })
    act()
  })
  return (performance.now() - from) / 1000
}"""
# Of a walk along the list that was searched and sorted, the last unit: its page reads the whole basis and a shard.
LIST = "basis={basis}&q=e&sort=score&down=1"


def read(folder: Path, key: str) -> Any:
    """What `write.put` wrote under `key`."""
    text = (folder / "data" / f"{key}.js").read_text(encoding="utf-8")
    return json.loads(text[text.index(",") + 2 : text.rindex("'")].replace("\\'", "'").replace("\\\\", "\\"))


def enlarge(folder: Path, units: int) -> None:
    """Make the report's first basis, and its map, one of so many units."""
    run, packed = read(folder, "run"), read(folder, "summary-0")
    summary = write.read_summary(packed)
    rng, old = np.random.default_rng(0), summary["units"]
    source = np.concatenate([np.arange(old), rng.integers(0, old, max(0, units - old))])[:units]
    noise = rng.normal(scale=0.02, size=units)
    columns = {key: np.array(summary[key])[source] for key in packed["columns"]}
    wide = max(map(len, summary["thumbs"]))
    thumbs = np.array([row + [-1] * (wide - len(row)) for row in summary["thumbs"]])[source]
    measured = {}
    for key, column in summary["measured"].items():
        drawn = [column[i] for i in source]
        measured[key] = [x if x is None else abs(x + e) for x, e in zip(drawn, noise, strict=True)]
    for name, count in (("summary-0", units), ("summary-0-first", write.CHUNK)):
        own = {key: write.integers(column[:count]) for key, column in columns.items()}
        numbers = {key: write.decimals(column[:count]) for key, column in measured.items()}
        part = {"columns": own, "thumbs": write.integers(thumbs[:count].ravel()), "measured": numbers}
        write.put(folder, name, packed | part | {"units": count})
    records = read(folder, "units/0/0")
    for shard in range(old // write.CHUNK, -(-units // write.CHUNK)):
        write.put(folder, f"units/0/{shard}", [records[i % len(records)] for i in range(write.CHUNK)])
    run["bases"][0]["units"] = units
    write.put(folder, "run", run)
    x, y = np.round(rng.normal(500, 150, size=(2, units))).clip(0, 1000).astype(int).tolist()
    shown = {"layer": run["bases"][0]["layer"], "of": "meaning", "by": "pca", "bases": [0], "x": [x], "y": [y]}
    write.put(folder, "maps", [shown | {"shares": [0.1, 0.1]}])


class Meter:
    """A page whose main thread's processor time can be read."""

    def __init__(self, browser: Any, folder: Path) -> None:
        self.folder, self.context = folder, browser.new_context(viewport={"width": 1280, "height": 900})
        self.page = self.context.new_page()
        self.page.set_default_timeout(120_000)
        self.page.add_init_script(SEEN.replace("ELEMENTS", json.dumps([TABLE, ALL, MAP, UNIT])))
        self.cdp = self.context.new_cdp_session(self.page)
        self.cdp.send("Performance.enable", {"timeDomain": "threadTicks"})

    def busy(self) -> float:
        """Processor seconds of the page's main thread since it was opened."""
        found = self.cdp.send("Performance.getMetrics")["metrics"]
        return next(row["value"] for row in found if row["name"] == "TaskDuration")

    def opened(self, address: str, *until: str) -> list[tuple[float, float]]:
        """(clock, processor) seconds from navigation until each element, one after another, is on the screen."""
        self.page.goto("about:blank")
        before, found = self.busy(), []
        self.page.goto(f"file://{self.folder}/{address}", wait_until="commit")
        for element in until:
            self.page.wait_for_function("element => seen[element]", arg=element)
            found.append((self.page.evaluate("element => seen[element]", element), self.busy() - before))
        return found

    def done(self, action: str) -> tuple[float, float]:
        """(clock, processor) seconds of an action of the page, until its result is drawn."""
        before = self.busy()
        clock = self.page.evaluate(f"({UNTIL.replace('ROWS', ROWS)})(() => {{ {action} }})")
        spent = self.busy() - before
        self.page.wait_for_timeout(500)  # the plot, which comes after the rows
        return clock, spent

    def held(self) -> float:
        """Megabytes that the page holds after garbage is collected: JavaScript's objects and typed arrays."""
        self.cdp.send("HeapProfiler.collectGarbage")
        use = self.cdp.send("Runtime.getHeapUsage")
        return (use["usedSize"] + use.get("backingStorageSize", 0)) / 2**20


def measure(browser: Any, folder: Path, found: dict[str, list[tuple[float, float]]], basis: str, units: int) -> float:
    """Add one round of everything that a reader does; returns the megabytes that the page of units held."""
    meter = Meter(browser, folder)
    first, whole = meter.opened("units.html", TABLE, ALL)
    found.setdefault("first row", []).append(first)
    found.setdefault("whole basis, with its plot", []).append(whole)
    for name, action in ACTIONS.items():
        found.setdefault(name, []).append(meter.done(action))
    held = meter.held()
    pages = {
        "map": ("map.html", MAP),
        "map by label": ("map.html#by=label", MAP),
        "the last unit's page": (f"unit.html#{basis}/{units - 1}", UNIT),
        "the same in a list": (f"unit.html#{basis}/{units - 1}?{LIST.format(basis=basis)}", UNIT),
    }
    for name, (address, until) in pages.items():
        found.setdefault(name, []).append(meter.opened(address, until)[0])
    meter.context.close()
    return held


def study(report: Path, units: int) -> None:
    """Print a line for each thing that a reader does with so many units."""
    from playwright.sync_api import sync_playwright

    with tempfile.TemporaryDirectory() as place, sync_playwright() as started:
        folder = Path(place) / "report"
        shutil.copytree(report, folder)
        enlarge(folder, units)
        basis = read(folder, "run")["bases"][0]["name"]
        found: dict[str, list[tuple[float, float]]] = {}
        held = []
        for _ in range(ROUNDS):
            browser = started.chromium.launch(executable_path=shutil.which("chromium"), args=["--no-sandbox"])
            held.append(measure(browser, folder, found, basis, units))
            browser.close()
    for name, rows in found.items():
        clock, spent = (statistics.median(column) for column in zip(*rows, strict=True))
        print(f"{name:<28}{clock:6.3f} s on the clock, {spent:6.3f} s of the page's processor time, {units:,} units")
    print(f"{'memory of the page of units':<28}{statistics.median(held):6.1f} MB, {units:,} units", flush=True)


if __name__ == "__main__":
    for count in map(int, sys.argv[2:] or ("20000", "100000")):
        study(Path(sys.argv[1]), count)
