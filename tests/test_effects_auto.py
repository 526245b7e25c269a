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
from saelab.run.stages import effects as stage
from saelab.run.stages.effects_auto import automatic as settings_of

AUTOMATIC = settings_of(("ok", "dense"))
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


def test_what_no_time_was_left_for_is_said(made, monkeypatch, tmp_path):  # noqa: F811
    ticks = iter(range(1000))
    monkeypatch.setattr(stage.time, "monotonic", lambda: 30.0 * next(ticks))  # the third look is beyond a minute
    asked = []
    usual = stage.usual_amounts
    monkeypatch.setattr(stage, "CHECKPOINT", 1)
    monkeypatch.setattr(stage, "usual_amounts", lambda *given: (asked.append(given[2]), usual(*given))[1])
    run = automatic(made, effects={"count": 9, **AUTOMATIC})  # measured by no other test
    bases = [basis for basis in run.measured if basis.effects]
    left = {basis.name: read_json(basis.effects / stage.SUMMARY)["left"] for basis in bases}
    assert left["neuron"] == 8 and len(asked) == len(bases), "one unit each, and nothing is read for those left out"
    (note,) = [note for note in run.notes if "for lack of time" in note]
    assert "8 units of second neuron" in note and "`saelab effects` goes on" in note


def test_activations_that_are_not_stored_are_an_obstacle(made):  # noqa: F811
    run = Stages(RunConfig.of({**made.config.record(), "effects": "auto", "stream": True}), made.given)
    assert run.effects_compared is None and "activations are not stored" in run.notes[-1]


def test_whatever_a_host_raises_ends_no_run_that_did_not_ask(made, monkeypatch):  # noqa: F811
    def fails(*_: object) -> None:
        raise RuntimeError("no such thing\nat all")

    monkeypatch.setattr("saelab.run.stages.effects_auto.make_head", fails)
    run = automatic(made)
    assert run.effects_compared is None and "(RuntimeError: no such thing" in run.notes[-1]
    assert "\n" not in run.notes[-1]


def test_labels_of_another_scorer_and_groups_are_obstacles(made):  # noqa: F811
    scorer = automatic(made, compare=Settings(fewest=3, resamples=20, scorer="pearson"))
    assert scorer.effects_compared is None and "the labels of pearson" in scorer.notes[-1]
    groups = automatic(made, bases=("neuron", "neuron_groups"))
    assert groups.effects_compared is None and "groups write nothing" in groups.notes[-1]
    assert RunConfig.of({"effects": "auto", "bases": ["neuron", "neuron_groups"]}).effects == "auto"
    with pytest.raises(saelab.UserError, match="groups write nothing"):
        RunConfig.of({"effects": "all", "bases": ["neuron", "neuron_groups"]})
