"""`effects=auto`, the quickstart's default: measured where the host names its outputs, a note where it can't be."""

import dataclasses

import pytest
from test_effects_stage import made  # noqa: F401

import saelab
from saelab.artifacts import read_json
from saelab.cli.stage_lines import stages_of
from saelab.compare import Settings
from saelab.hosts import Host
from saelab.run.config import RunConfig
from saelab.run.making import Stages
from saelab.run.presets import folder
from saelab.run.record import read_config, write
from saelab.run.stages.effects_auto import AUTOMATIC

NOTE = "What units do is not compared: "


def automatic(made, **changes):  # noqa: F811
    changes = {"effects": "auto", "compare": Settings(fewest=3, resamples=20)} | changes
    return Stages(dataclasses.replace(made.config, **changes), made.given)


def test_the_quickstart_asks_for_it_and_the_record_says_what_it_stood_for(made):  # noqa: F811
    assert "\neffects: auto" in (folder() / "quickstart.yaml").read_text()
    run = automatic(made)
    found = read_json(run.comparisons["second"].path / "comparison.json")
    assert found["causal"]["how"]["units"] == AUTOMATIC["units"]
    assert {b["name"]: b["chosen"] for b in found["causal"]["bases"]}["neuron"] == 9, "it has no more than nine"
    kept = read_config(write(run.outcome(), run.root, "automatic"))
    assert kept.effects == AUTOMATIC and not any(note.startswith(NOTE) for note in run.notes)
    assert read_config(write(run.outcome(comparisons=False), run.root, "without")).effects == "auto"
    assert "effects" in stages_of(run.config, "report")


def test_a_host_without_names_is_compared_without_and_a_note_says_why(made, monkeypatch):  # noqa: F811
    monkeypatch.setattr(made.host.model, "config", None)
    run = automatic(made)
    found = read_json(run.comparisons["second"].path / "comparison.json")
    (note,) = [note for note in run.notes if note.startswith(NOTE)]
    assert "its 3 outputs have no names" in note and "causal" not in found
    assert run.outcome().config["effects"] is None
    asked = automatic(made, effects={"units": "all", "count": 6})
    with pytest.raises(saelab.UserError, match="its 3 outputs have no names"):
        _ = asked.measured


def test_a_layer_from_which_nothing_can_be_resumed_is_left_to_the_command(made, monkeypatch):  # noqa: F811
    monkeypatch.setattr(Host, "cuts", lambda self, layer: False)
    run = automatic(made)
    assert run.effects_compared is None and "second every pass has to start from a picture" in run.notes[-1]


def test_labels_of_another_scorer_and_groups_are_obstacles(made):  # noqa: F811
    scorer = automatic(made, compare=Settings(fewest=3, resamples=20, scorer="pearson"))
    assert scorer.effects_compared is None and "the labels of pearson" in scorer.notes[-1]
    groups = automatic(made, bases=("neuron", "neuron_groups"))
    assert groups.effects_compared is None and "groups write nothing" in groups.notes[-1]
    assert RunConfig.of({"effects": "auto", "bases": ["neuron", "neuron_groups"]}).effects == "auto"
    with pytest.raises(saelab.UserError, match="groups write nothing"):
        RunConfig.of({"effects": "all", "bases": ["neuron", "neuron_groups"]})
