"""Activations from a file go the whole way by commands, as docs/arrays.md says: train, label, compare, report."""

import json
import subprocess
import sys

import commands
import numpy as np
import pytest
import tiny_clip
from small_images import coloured
from test_scripts import ROOT

pytestmark = pytest.mark.slow
SMALL = ("label.nulls=20", "label.mining.k=4", "seeds=[0]", "sae.train.epochs=3", "sae.k=4", "workers=0", "device=cpu")


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    folder = tmp_path_factory.mktemp("arrays")
    coloured(folder / "pictures", 60, size=32)
    tiny_clip.open_clip(folder / "clip")
    np.save(folder / "acts.npy", np.random.default_rng(0).random((60, 24)).astype(np.float32))
    return folder


def run(place, name: str, *more: str) -> subprocess.CompletedProcess:
    start = [sys.executable, str(ROOT / "scripts" / f"{name}.py"), f"arrays.activations={place / 'acts.npy'}"]
    start += ["images=folder", f"images.root={place / 'pictures'}", f"root={place / 'runs'}", *SMALL]
    start += [
        f"encoder.name=open_clip:local-dir:{place / 'clip'}",
        "proposer=none",
        "label.vocabulary=[classes]",
        *more,
    ]
    return commands.run(start, cwd=place)


def test_every_command_takes_them(place):
    for name, says in (("cache", "60 tokens x 24"), ("train", '"l0": 4.0'), ("label", "pearson"), ("quality", "FVU")):
        done = run(place, name)
        assert done.returncode == 0 and says in done.stdout, done.stderr
    done = run(place, "quickstart")
    assert done.returncode == 0, done.stderr
    record = json.loads((place / "runs" / "quickstart.json").read_text())
    assert record["host"] == "arrays" and {b["layer"] for b in record["bases"]} == {"arrays"}
    assert (place / "runs" / "report" / "quickstart" / "index.html").is_file()


def test_a_basis_whose_units_are_all_left_out_is_compared_as_none(place):
    """Rare features count for nothing in a comparison: the answer says so instead of failing."""
    done = run(place, "compare", "name=strict", 'compare.keep=["dense"]', "sae.latents=200", "sae.expansion=null")
    assert done.returncode == 0 and "compared" in done.stdout, done.stderr
