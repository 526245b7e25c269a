"""The study of what contrasts do for a proposer: every mode has its row, that of made pictures too."""

import importlib.util
from pathlib import Path

import numpy as np
import pytest

SCRIPT = Path(__file__).resolve().parent.parent / "scripts" / "studies" / "ablate_contrast.py"


@pytest.mark.parametrize("more", [(), ("synthesised alone",), ("synthesised beside",)])
def test_every_mode_is_a_row_on_the_units_that_all_modes_named(more, monkeypatch):
    spec = importlib.util.spec_from_file_location("ablate_contrast", SCRIPT)
    study = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(study)
    modes = (*study.MODES, *more)
    named = {mode: {0: "dog", 1: "dog", 2: f"only {i}", 3 + i: "cat"} for i, mode in enumerate(modes)}
    worth = {mode: np.full((3, len(study.METRICS)), float(i)) for i, mode in enumerate(modes)}
    monkeypatch.setattr(study, "_first", lambda run, place: named[run])
    monkeypatch.setattr(study, "_judged", lambda run, place, shared, labels: worth[run])
    said = study.compare({mode: mode for mode in modes}, 0)
    assert said.startswith("3 units with a candidate in every mode")
    for i, mode in enumerate(modes):
        row = next(line for line in said.splitlines() if line.startswith(f"{mode} ") and "- " not in line)
        assert f"{i}.0000" in row and row.split()[-1] == "2"
    for mode in more:
        row = next(line for line in said.splitlines() if line.startswith(f"{mode} - positives"))
        assert f"{modes.index(mode) - modes.index('positives'):+.4f}" in row
