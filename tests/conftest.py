"""What several test files need: where data outside the repository lies, and the golden numbers inside it."""

import json
import os
from pathlib import Path

import pytest
from hypothesis import settings

HERE = Path(__file__).resolve().parent
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)  # else every script that a test starts compiles torch anew
if "PYTEST_XDIST_WORKER" in os.environ:
    os.environ.setdefault("OMP_NUM_THREADS", "1")  # as many test processes as cores: one thread each

settings.register_profile("ci", derandomize=True)  # what lands is judged by one draw; whoever works here draws anew
if os.environ.get("CI"):
    settings.load_profile("ci")


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
