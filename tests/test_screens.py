"""The last screen of a run, and what the record says of its parts."""

import json
from pathlib import Path
from types import SimpleNamespace

import pytest

from saelab.artifacts import Artifact, read_json, write_json
from saelab.cli.screens import last_screen, sets_line
from saelab.run import record
from saelab.run.basis import Basis

EXAMPLE = Path(__file__).parent / "data" / "comparison_example.json"


def made(folder: Path, name: str, content: dict) -> Artifact:
    folder.mkdir(parents=True)
    write_json(folder / name, content)
    return Artifact(folder, {"stage": folder.parent.name, "of": folder.name}, False)


@pytest.fixture
def outcome(tmp_path) -> record.Outcome:
    """A run whose SAE overfits, and whose comparison is the example with every unit named and a long verdict."""
    result = json.loads(EXAMPLE.read_text(encoding="utf-8"))
    for pair in result["pairs"]:
        for row in pair["results"]:
            row["counting"] = "named" if row["counting"] == "all" else row["counting"]
    result["headline"] = "Labels of SAE features hold better than labels of neurons. " * 6
    compared = made(tmp_path / "comparison" / "x", "comparison.json", result)
    units = made(tmp_path / "units" / "sae", "units.json", {})
    held = {"held_out": {"overfit": "The SAE overfits: FVU 0.52 on held-out tokens, 0.19 on those it was trained on."}}
    quality = made(tmp_path / "quality" / "sae", "quality.json", held)
    bases = [Basis("neuron", "neurons", "neuron", None, "world", units, "0")]
    bases += [Basis("sae seed 0", "SAE features", "sae", 0, "world", units, "0", sae=units, quality=quality)]
    images = made(tmp_path / "images" / "i", "images.json", {})
    return record.Outcome({}, images, "a host", "an encoder", bases, {"world": compared}, {"quality": 0.5}, [])


def test_the_last_screen_wraps_the_verdict_and_ends_with_the_viewer(outcome, tmp_path, monkeypatch):
    monkeypatch.setenv("COLUMNS", "90")
    run = tmp_path / "a run.json"
    photos = SimpleNamespace(skipped=(), __len__=lambda self: 580)
    text = last_screen(type("Photos", (), vars(photos))(), outcome, run, tmp_path / "index.html", 12)
    lines = text.splitlines()
    verdict = [line for line in lines if "hold better" in line]
    assert len(verdict) > 3 and all(len(line) <= 90 for line in verdict)
    assert lines[-1].endswith(f"saelab view run='{run}'") and lines[-2].startswith("Report: file://")
    assert any("overfits: FVU 0.52" in line for line in lines)
    head = next(line for line in lines if line.startswith("world"))
    names = [group["name"] for group in json.loads(EXAMPLE.read_text(encoding="utf-8"))["groups"]]
    assert all(f"  {name}" in head for name in names), "columns keep apart, however long a name is"


def test_what_units_do_has_its_line_where_it_was_compared(outcome, tmp_path):
    def lines() -> list[str]:
        photos = type("Photos", (), {"skipped": (), "__len__": lambda self: 580})()
        return last_screen(photos, outcome, tmp_path / "r.json", tmp_path / "index.html", 12).splitlines()

    title = "Own class, net of other units"
    assert not any(line.startswith(title) for line in lines())
    path = outcome.comparisons["world"].path / "comparison.json"
    result = read_json(path)
    result["headline"] = "Short."
    names = [group["name"] for group in result["groups"]]
    row = {"metric": "causal_net", "counting": "named", "mean_a": 0.339, "mean_b": 0.012, "difference": 0.327}
    row |= {"low": 0.197, "high": 0.457}
    pair = {"a": names[0], "b": names[1], "role": "main", "matching": "all", "refused": None, "results": [row]}
    pair |= {"units_a": [40, 38], "units_b": [39]}
    result["causal"] = {"primary": "causal_net", "metrics": {"causal_net": {"title": title}}, "pairs": [pair]}
    write_json(path, result)
    (line,) = [line for line in lines() if line.startswith(title)]
    (counts,) = [line for line in lines() if line.startswith("units measured for the next")]
    assert counts.split()[5:7] == ["78", "39"]
    assert line.split()[6:8] == ["0.339", "0.012"] and line.endswith("+0.327 [+0.197, +0.457]")
    write_json(path, result | {"causal": result["causal"] | {"pairs": [pair | {"refused": "only 3 units"}]}})
    assert not any(line.startswith(title) for line in lines()), "nothing was measured that could be compared"


def test_the_record_says_where_the_quality_of_each_sae_lies(outcome, tmp_path):
    path = record.write(outcome, tmp_path, "quickstart")
    assert [basis["quality"] for basis in read_json(path)["bases"]] == [None, "quality/sae"]
    assert "quality/sae" not in read_json(path)["reused"]


def test_what_label_sets_hold_is_a_line():
    """Named: 1, 3, 32 and none; a unit that abstains does not count."""
    named = {"label": "cat", "abstained": False}
    rows = [named | {"label_set": own} for own in (["cat"], ["cat"] * 3, ["cat"] * 32, None)]
    rows.append({"label": "dog", "abstained": True, "label_set": ["dog"]})
    rows.append({"label": None, "abstained": True, "label_set": None})
    assert sets_line(rows) == (
        "label sets of 3 named units: 1 hold one label, 2 at most three, 1 the most that are looked at (32); median 3; "
        "1 fire on too few pictures for one"
    )
    assert sets_line([named]) == ""
