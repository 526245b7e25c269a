"""What a long command prints while it works: a line a stage, and nothing of what is built or reused by itself."""

import logging
import os
import re
import sys
import time
import webbrowser
from pathlib import Path

import pytest

from saelab.cli.stage_lines import TITLES, StageLines, stage_lines, stages_of
from saelab.cli.view import show
from saelab.run.config import RunConfig
from saelab.run.timings import Timings


class Made:
    """What the lines look at of a run's stages."""

    def __init__(self, **given) -> None:
        self.config, self.timings = RunConfig.of(given), Timings()


def test_stages_stand_in_their_places_with_what_they_made(capsys, caplog):
    made, log = Made(bases=["neuron", "sae"], proposer={"name": "none"}), logging.getLogger("saelab")
    caplog.set_level("INFO", "saelab")
    with stage_lines(made, last="report") as lines:
        with made.timings.of("images"):
            time.sleep(0.06)
        for stage in ("units", "sae", "units"):  # by turns: one line
            with made.timings.of(stage):
                log.info("building %s", "runs/somewhere")
        with made.timings.of("labels"), made.timings.of("embeddings"):  # inside another: no line of its own
            log.info("reused  %s", "runs/elsewhere")
            log.info("a sentence that a person should read")
        with made.timings.of("units"):  # nothing leads back
            pass
        lines.begin("report")
    shown = capsys.readouterr().err.splitlines()
    wanted = ["1/10  photos", "3/10  bases", "6/10  labels", "10/10  report"]
    assert [re.match(r" *(\d+/\d+  \w+)", line)[1] for line in shown] == wanted
    assert "3 made" in shown[1] and "1 reused" in shown[2] and "made" not in shown[0]
    assert float(shown[0].split()[-2]) >= 0.06 and len({len(line) for line in shown}) == 1
    assert [r.message for r in caplog.records] == ["a sentence that a person should read"]
    log.info("building again")
    assert caplog.records[-1].message == "building again" and made.timings.told is None


def test_a_command_that_stops_halfway_leaves_the_log_as_it_was(capsys):
    made = Made(bases=["neuron"])
    with pytest.raises(ValueError), stage_lines(made, last="evaluation"), made.timings.of("images"):
        raise ValueError
    assert capsys.readouterr().err == ""  # a stage that failed has no line
    assert not any(isinstance(f, StageLines) for f in logging.getLogger("saelab").filters)
    assert made.timings == {} and made.timings._open == 0


def test_only_what_a_run_goes_through_is_counted():
    bare = {"bases": ["neuron", "pca"], "proposer": {"name": "none"}}
    assert stages_of(RunConfig.of(bare), "evaluation") == [
        *("photos", "activations", "bases", "embeddings"),
        *("strongest images", "labels", "evaluation"),
    ]
    assert "quality of SAEs" not in stages_of(RunConfig.of(bare), "report")
    assert "quality of SAEs" in stages_of(RunConfig.of(bare | {"also": ["sae.k=8"]}), "report")
    named = {name for names in TITLES.values() for name in names}
    assert {"images", "sae", "units", "mining", "labels", "evaluation", "comparison", "quality"} <= named


@pytest.mark.skipif(os.name != "posix", reason="needs a pseudo-terminal")
def test_view_opens_the_browser_where_somebody_looks_on_and_wants_it(monkeypatch, tmp_path):
    program, opened = tmp_path / "browser", tmp_path / "opened"
    program.write_text(f"#!/bin/sh\necho $1 >> {opened}\n", encoding="utf-8")
    program.chmod(0o755)
    monkeypatch.setattr(webbrowser, "_tryorder", None)  # as in a fresh process
    monkeypatch.setenv("BROWSER", str(program))
    ours, theirs = os.openpty()
    with os.fdopen(theirs, "w", encoding="utf-8") as terminal, Path(os.devnull).open("w", encoding="utf-8") as nothing:
        for stdout, wanted in ((nothing, True), (terminal, False), (terminal, True)):
            monkeypatch.setattr(sys, "stdout", stdout)
            opening = show(f"http://127.0.0.1:8765/{wanted}{stdout.isatty()}", wanted)
            if opening is not None:
                opening.join(20)
    os.close(ours)
    assert opened.read_text(encoding="utf-8").split() == ["http://127.0.0.1:8765/TrueTrue"]
