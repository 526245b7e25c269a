"""What several test files need: where data outside the repository lies, and the golden numbers inside it."""

import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import settings

HERE = Path(__file__).resolve().parent
PATIENCE = 180_000  # milliseconds that a browser may take for a step: a busy machine is no fault of a page
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)  # else every script that a test starts compiles torch anew
if "PYTEST_XDIST_WORKER" in os.environ:
    os.environ.setdefault("OMP_NUM_THREADS", "1")  # as many test processes as cores: one thread each

# No deadline: a first import is slow, and timings belong in `bench`. What lands is judged by one draw; whoever works
# here draws anew.
settings.register_profile("saelab", deadline=None, derandomize=bool(os.environ.get("CI")))
settings.load_profile("saelab")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Files with slow tests go first, so that no worker is left with the longest one at the end."""
    slow = {item.path for item in items if item.get_closest_marker("slow")}
    items.sort(key=lambda item: item.path not in slow)


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder of data that is too large or not free enough for the repository; the test skips without it."""
    folder = Path(os.environ.get("SAELAB_SHARED", HERE.parent.parent / "shared"))
    if not folder.is_dir():
        pytest.skip("needs the shared test data: set SAELAB_SHARED to its folder")
    return folder


@pytest.fixture(scope="session")
def golden() -> dict:
    """Outputs of the upstream programs on closed-form inputs (60 images, 5 units, 7 labels, d 8, k 4)."""
    return json.loads((HERE / "data" / "golden_labelling.json").read_text())


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    """Chromium without a window; the test skips where there is none."""
    playwright = pytest.importorskip("playwright.sync_api", reason="needs playwright (the dev extra)")
    program = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if program is None:
        pytest.skip("needs Chromium (Debian: apt-get install chromium)")
    flags = "--no-sandbox --disable-gpu --no-first-run --disable-background-networking --disable-component-update"
    # Few processes: starting them takes longer than what the tests do in them.
    flags += " --in-process-gpu --disable-site-isolation-trials --renderer-process-limit=1 --disable-extensions"
    flags += " --disable-features=SpareRendererForSitePerProcess,PaintHolding"
    with playwright.sync_playwright() as started:
        opened = started.chromium.launch(executable_path=program, args=flags.split(), timeout=PATIENCE)
        yield opened
        opened.close()
