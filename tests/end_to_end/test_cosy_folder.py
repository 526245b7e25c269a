"""scripts/cosy.py with a folder: the test pictures themselves, laid out by label, give what `heldout` gives."""

import json
import shutil
import sys
from pathlib import Path

import commands
import pytest

from saelab import images, truth
from saelab.units import UnitActivations

ROOT = Path(__file__).resolve().parents[2]
SETTINGS = "images.limit=90 bases=[neuron] scorer=[invert] label.final=invert label.vocabulary=[classes] proposer=none"
SETTINGS = [*SETTINGS.split(), "label.nulls=0", "label.meanings=false", "label.mining.k=5", "workers=0", "device=cpu"]
SETTINGS += ["layers=[_blocks.15]"]


def measured(folder: Path, *more: str) -> tuple[list[dict], str]:
    """The rows that a run of the script adds, and what it prints."""
    before = set(folder.glob("runs/cosy/*/cosy.jsonl"))
    printed = script("cosy", folder, *more)
    (found,) = set(folder.glob("runs/cosy/*/cosy.jsonl")) - before
    return [json.loads(line) for line in found.read_text().splitlines()], printed


def script(name: str, folder: Path, *more: str) -> str:
    """What a script prints, run to its end."""
    given = [sys.executable, str(ROOT / "scripts" / f"{name}.py"), f"root={folder / 'runs'}", *SETTINGS, *more]
    done = commands.run(given, cwd=folder)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.mark.slow
def test_a_folder_of_the_test_pictures_gives_what_heldout_gives(tmp_path):
    """Real photos, a real network: their activations are computed anew and have to be those of the cache."""
    photos = images.load("packaged", limit=90)
    labels = sorted({name for own in photos.classes for name in own})
    stated = truth.from_descriptions(labels, photos.captions, photos.classes, "mention")
    described = [i for i in photos.ids("test").tolist() if stated.known[i]]
    for label, column in stated.column.items():
        for i in described:
            if stated.member[i, column]:
                target = tmp_path / "pictures" / label.replace(" ", "_") / f"{i}{Path(photos.files[i]).suffix}"
                target.parent.mkdir(parents=True, exist_ok=True)
                shutil.copy(photos.root / photos.files[i], target)
    heldout, _ = measured(tmp_path)
    folder, printed = measured(tmp_path, "cosy.source=folder", f"cosy.folder={tmp_path / 'pictures'}")
    assert len(folder) == len(heldout) == 320 and "_blocks.15 neuron" in printed
    both = [(a, b) for a, b in zip(heldout, folder, strict=True) if a["auc_half"] is not None]
    assert len(both) > 100
    for a, b in both:
        assert (a["label"], a["images"]) == (b["label"], b["images"])
        if a["controls"] == b["controls"]:
            for name in ("auc_half", "auc_strict", "mad", "dma"):
                assert b[name] == pytest.approx(a[name], abs=2e-3), (a, b)
    assert sum(a["controls"] == b["controls"] for a, b in both) > 100

    # Search, the same run: words find units by the words, a picture finds the units that it fires.
    (acts,) = (tmp_path / "runs" / "units").glob("neuron-*[0-9a-f]")
    stored = UnitActivations.load(acts)
    picture = described[0]
    hits = search(script("search", tmp_path, f"image='{photos.root / photos.files[picture]}'", "top=5"))
    assert len(hits) == 5 and all(float(stored.rows([picture])[0, unit]) > 0 for unit in hits)
    assert len(search(script("search", tmp_path, "text='a fish'", "top=5"))) == 5


def search(printed: str) -> list[int]:
    """The units that the search script names, best first."""
    return [int(line.split()[0]) for line in printed.splitlines() if line.startswith("  ")]
