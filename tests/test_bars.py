"""Progress: a bar on a terminal, whole lines in a file, nothing of what is over before anybody could wonder."""

import io
import os
import re
import subprocess
import sys
import time

import pytest

from saelab import bars


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def work(steps: int = 6, **given) -> None:
    with bars.show(what="pool units", unit="img", **given) as bar:
        for _ in range(steps):
            time.sleep(0.02)
            bar.update(10)


def test_a_log_gets_lines_with_a_rate_and_what_is_left(capsys, monkeypatch):
    monkeypatch.setattr(bars, "EVERY", 0.03)
    work(total=100, initial=40)
    written = capsys.readouterr().err
    lines = written.splitlines()
    assert lines and "\r" not in written and "\x1b" not in written
    for line in lines:
        assert re.fullmatch(r"pool units: \d+ of 100 img, \S+(img/s|s/img), 00:\d\d so far, about 00:\d\d to go", line)
    done = [int(line.split()[2]) for line in lines]
    assert done == sorted(done) and 40 < done[0] <= done[-1] <= 100


def test_nobody_knows_how_much_there_is(capsys, monkeypatch):
    monkeypatch.setattr(bars, "EVERY", 0.03)
    assert list(bars.show((time.sleep(0.02) or i for i in range(6)), what="stream", unit="image")) == [*range(6)]
    written = capsys.readouterr().err
    assert re.match(r"stream: \d image, \S+image/s, 00:\d\d so far\n", written)
    assert " of " not in written


def test_short_and_hidden_work_writes_nothing(capsys, monkeypatch):
    work(total=100)  # a line comes after half a minute
    monkeypatch.setattr(bars, "EVERY", 0.01)
    work(total=100, hidden=True)
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize("leave", [True, False])
def test_a_terminal_has_a_bar(monkeypatch, leave):
    monkeypatch.setattr(sys, "stderr", Terminal())
    work(total=60, leave=leave)
    shown = sys.stderr.getvalue()
    assert "\rpool units: " in shown and "img/s" in shown
    assert shown.endswith("\n") == leave  # else it is wiped out


def test_nothing_is_shown_where_there_is_no_standard_error(monkeypatch):
    monkeypatch.setattr(sys, "stderr", None)  # as under pythonw
    monkeypatch.setattr(bars, "EVERY", 0.01)
    work(total=60)


@pytest.mark.parametrize("switch", ["", "1"])
def test_tqdms_own_switch_holds(switch):
    """It is read when tqdm is imported."""
    code = "import time; from saelab import bars; bars.EVERY = 0.01; [time.sleep(0.02) for _ in bars.show(range(6))]"
    env = {**os.environ, "TQDM_DISABLE": switch}
    done = subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True, check=True)
    assert bool(done.stderr) != bool(switch)
