"""How fast the pages are with 20,000 units: `python report_scale.py REPORT [UNITS]`, on a copy of a report.

The units of the report's first basis are repeated until they are so many. It prints, for each thing that a reader does,
the median of seconds on the clock and of the page's own processor seconds, which other programs on the machine change
little. Needs Chromium and playwright.
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
MAP = "p.legend span"
ROWS = "document.querySelector('.scroll.wide > div')"
ACTIONS = {  # what a reader does on the page of units, which draws its rows anew
    "search": "const q = document.querySelector('[name=q]'); q.value = 'e'; q.dispatchEvent(new Event('input'))",
    "sort": "document.querySelector('th [data-key=score]').click()",
    "sort by label": "document.querySelector('th [data-key=label]').click()",
    "filter": "const x = document.forms[0].least; x.value = 'often'; x.dispatchEvent(new Event('change'))",
    "next page": "document.querySelector('[data-key=next]').click()",
}
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


def read(folder: Path, key: str) -> Any:
    """What `write.put` wrote under `key`."""
    text = (folder / "data" / f"{key}.js").read_text(encoding="utf-8")
    return json.loads(text[text.index(",") + 2 : text.rindex("'")].replace("\\'", "'").replace("\\\\", "\\"))


def enlarge(folder: Path, units: int) -> None:
    """Make the report's first basis, and its map, one of so many units."""
    run, summary = read(folder, "run"), read(folder, "summary-0")
    rng, old = np.random.default_rng(0), len(summary["units"])
    source = np.concatenate([np.arange(old), rng.integers(0, old, units - old)])
    for key in ("label", "badge", "status", "thumbs"):
        summary[key] = [summary[key][i] for i in source]
    for key in ("abstained", "several"):
        summary[key] = np.flatnonzero(np.isin(source, summary[key])).tolist()
    summary["units"] = list(range(units))
    noise = rng.normal(scale=0.02, size=units)
    for key, column in summary["measured"].items():
        drawn = [column[i] for i in source]
        summary["measured"][key] = [x if x is None else abs(x + e) for x, e in zip(drawn, noise, strict=True)]
    write.put(folder, "summary-0", summary)
    small = {
        k: v[: write.CHUNK] if k in ("units", "label", "badge", "status", "thumbs") else v for k, v in summary.items()
    }
    small["measured"] = {k: v[: write.CHUNK] for k, v in summary["measured"].items()}
    write.put(folder, "summary-0-first", small)
    run["bases"][0]["units"] = units
    write.put(folder, "run", run)
    x, y = np.round(rng.normal(500, 150, size=(2, units))).clip(0, 1000).astype(int).tolist()
    own = {"layer": run["bases"][0]["layer"], "of": "meaning", "by": "pca", "bases": [0], "x": [x], "y": [y]}
    write.put(folder, "maps", [own | {"shares": [0.1, 0.1]}])


class Meter:
    """A page whose main thread's processor time can be read."""

    def __init__(self, browser: Any, folder: Path) -> None:
        self.folder, self.context = folder, browser.new_context(viewport={"width": 1280, "height": 900})
        self.page = self.context.new_page()
        self.cdp = self.context.new_cdp_session(self.page)
        self.cdp.send("Performance.enable", {"timeDomain": "threadTicks"})

    def busy(self) -> float:
        """Processor seconds of the page's main thread since it was opened."""
        found = self.cdp.send("Performance.getMetrics")["metrics"]
        return next(row["value"] for row in found if row["name"] == "TaskDuration")

    def opened(self, address: str, until: str) -> tuple[float, float]:
        """(clock, processor) seconds from navigation until an element is there."""
        self.page.goto("about:blank")
        before = self.busy()
        self.page.goto(f"file://{self.folder}/{address}", wait_until="commit")
        self.page.wait_for_selector(until)
        clock = self.page.evaluate("performance.now()") / 1000
        return clock, self.busy() - before

    def done(self, action: str) -> tuple[float, float]:
        """(clock, processor) seconds of an action of the page, until its result is drawn."""
        before = self.busy()
        clock = self.page.evaluate(f"({UNTIL.replace('ROWS', ROWS)})(() => {{ {action} }})")
        spent = self.busy() - before
        self.page.wait_for_timeout(500)  # the plot, which comes after the rows
        return clock, spent


def main() -> None:
    """Print a line for each thing that a reader does."""
    from playwright.sync_api import sync_playwright

    report, units = Path(sys.argv[1]), int(sys.argv[2]) if len(sys.argv) > 2 else 20_000
    with tempfile.TemporaryDirectory() as place, sync_playwright() as started:
        folder = Path(place) / "report"
        shutil.copytree(report, folder)
        enlarge(folder, units)
        found: dict[str, list[tuple[float, float]]] = {}
        for _ in range(ROUNDS):
            browser = started.chromium.launch(executable_path=shutil.which("chromium"), args=["--no-sandbox"])
            meter = Meter(browser, folder)
            found.setdefault("first row", []).append(meter.opened("units.html", TABLE))
            meter.page.wait_for_selector("main:not([aria-busy]) .plot svg")
            for name, action in ACTIONS.items():
                found.setdefault(name, []).append(meter.done(action))
            found.setdefault("map", []).append(meter.opened("map.html", MAP))
            found.setdefault("map by label", []).append(meter.opened("map.html#by=label", MAP))
            browser.close()
    for name, rows in found.items():
        clock, processor = (statistics.median(column) for column in zip(*rows, strict=True))
        print(
            f"{name:<14}{clock:6.3f} s on the clock, {processor:6.3f} s of the page's processor time, {units:,} units"
        )


if __name__ == "__main__":
    main()
