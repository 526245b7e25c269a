"""The wheel alone, in an empty folder without the repository: the command and the object."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow
ROOT = Path(__file__).resolve().parents[2]
SMALL = (
    "label.nulls=20",
    "label.mining.k=2",
    "seeds=[0]",
    "sae.latents=160",
    "sae.train.epochs=2",
    "bases=[neuron,sae]",
    "workers=0",
    "device=cpu",
)
SCRIPT = """
import saelab
label = {{"nulls": 20, "mining": {{"k": 2}}}}
p = saelab.Pipeline(images={pictures!r}, root="runs", bases=["neuron"], workers=0, label=label)
print(len(p.labels["neuron"].table()), saelab.__file__)
"""


@pytest.fixture(scope="module")
def place(tmp_path_factory) -> tuple[Path, dict[str, str]]:
    """An empty folder with forty pictures and the unpacked wheel, and the environment that knows only the wheel."""
    from small_images import coloured

    folder = tmp_path_factory.mktemp("elsewhere")
    build = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(folder / "dist")]
    done = subprocess.run(build, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    (wheel,) = (folder / "dist").glob("*.whl")
    unpack = [sys.executable, "-m", "zipfile", "-e", str(wheel), str(folder / "site")]
    subprocess.run(unpack, check=True)
    coloured(folder / "pictures", 40, size=64)
    (folder / "work").mkdir()
    # The wheel stands before everything else on the path; its dependencies are those of this environment.
    return folder, os.environ | {"PYTHONPATH": str(folder / "site"), "HYDRA_FULL_ERROR": "1"}


def saelab(place, *given: str) -> subprocess.CompletedProcess:
    """The wheel's own command."""
    folder, env = place
    start = [sys.executable, "-m", "saelab.cli.main", *given]
    return subprocess.run(start, cwd=folder / "work", env=env, capture_output=True, text=True, check=False)


def test_the_command_lists_its_commands_and_explains_one(place):
    done = saelab(place, "--help")
    assert done.returncode == 0 and "quickstart" in done.stdout and "verify-run" in done.stdout
    done = saelab(place, "label", "--help")
    assert done.returncode == 0 and "label.nulls=200" in done.stdout and "permutations" in done.stdout, done.stderr


def test_layers_without_the_repository(place):
    pytest.importorskip("efficientnet_lite_pytorch")
    done = saelab(place, "layers")
    assert done.returncode == 0 and "_blocks.15" in done.stdout, done.stderr


def test_quickstart_on_a_folder_of_pictures_and_the_object(place):
    pytest.importorskip("efficientnet_lite_pytorch")
    folder, env = place
    done = saelab(place, "quickstart", "images=folder", f"images.root={folder / 'pictures'}", "root=runs", *SMALL)
    assert done.returncode == 0 and "Report: file://" in done.stdout, done.stderr
    whole = saelab(place, "verify-run", "runs/quickstart.json")
    assert whole.returncode == 0 and whole.stdout.startswith("whole"), whole.stdout + whole.stderr
    script = SCRIPT.format(pictures=str(folder / "pictures"))
    made = subprocess.run(
        [sys.executable, "-c", script], cwd=folder / "work", env=env, capture_output=True, text=True, check=False
    )
    assert made.returncode == 0, made.stderr
    count, file = made.stdout.split()
    assert count == "1600" and Path(file).is_relative_to(folder / "site")
