"""Whoever reads the report in a browser test: notes every complaint of a page, and what it asks for."""

import atexit
import shutil
from functools import cache
from pathlib import Path
from tempfile import mkdtemp

from conftest import PATIENCE
from report_fixture import write_run

from saelab.report import build


@cache
def made_report() -> Path:
    """The report of the fixture's run, built once a process: to be read, and copied before it is changed."""
    folder = Path(mkdtemp(prefix="saelab-report-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    return build(write_run(folder), folder / "report").parent


class Reader:
    """A page that remembers every complaint and every request that is not for a file of the report."""

    def __init__(self, browser, report: Path, **context) -> None:
        self.report, self.faults = report, []
        self.context = browser.new_context(**({"viewport": {"width": 1280, "height": 900}} | context))
        self.context.set_default_timeout(PATIENCE)
        self.watch(self.context.new_page())

    def watch(self, page) -> None:
        """Make `page` the page that is read."""
        self.page = page
        self.page.on("console", lambda m: self.faults.append(m.text) if m.type in ("error", "warning") else None)
        self.page.on("pageerror", lambda error: self.faults.append(str(error)))
        self.page.on("requestfailed", self._failed)
        self.page.on("request", self._local)

    def _failed(self, request) -> None:
        if request.failure != "net::ERR_ABORTED":  # what a page still loads when the reader leaves it is given up
            self.faults.append(f"failed: {request.url}")

    def _local(self, request) -> None:
        if not request.url.startswith(("data:", "blob:", f"file://{self.report}/")):
            self.faults.append(f"asked for {request.url}")

    def open(self, address: str):
        self.page.goto(f"file://{self.report}/{address}")
        self.page.wait_for_selector("main:not([aria-busy])")
        return self.page
