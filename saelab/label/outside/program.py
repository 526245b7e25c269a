"""An outside program on a leash: what it writes goes to files, so that nothing is lost when saelab is killed."""

import contextlib
import fcntl
import os
import re
import shlex
import shutil
import signal
import subprocess
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import BinaryIO

from saelab.errors import UserError
from saelab.files import file_digest
from saelab.label.vlm.text import one_line

LOOK = 0.05  # seconds between two looks at what it has written
LARGEST = 1 << 30  # bytes of output; more is a program in a loop
LONGEST = 1 << 20  # bytes of a line; a longer one is taken in pieces
GRACE = 5.0  # seconds between being asked to end and being ended


class Ended(Exception):
    """The program ended in another way than by finishing; its text says how, on one line."""


def split_command(command: str, known: Sequence[str]) -> list[str]:
    """The words of a command line. Raises UserError for none, unknown @places, and a program that isn't there."""
    setting = "proposer.command"
    if not isinstance(command, str):  # `false`, `null` and numbers are no text to Hydra
        raise UserError(setting, command, "names no program", """in quotes within quotes: proposer.command='"true"'""")
    try:
        words = shlex.split(command)
    except ValueError as error:
        raise UserError(setting, command, f"can't be split into words ({error})", "close its quotes") from None
    if not words:
        raise UserError(setting, command, "names no program", "for example 'python describe.py @exemplars @answers'")
    if shutil.which(words[0]) is None:
        raise UserError(setting, words[0], "no such program", "give its path, or make it executable")
    for word in words:
        if re.fullmatch(r"@\w+", word) and word not in known:
            raise UserError(setting, word, f"is none of {', '.join(known)}")
    return words


def digest_files(words: Sequence[str]) -> dict[str, str]:
    """SHA-256 of each file that a command names by its path: who changes the script asks another one."""
    named = [word for place, word in enumerate(words) if (place or "/" in word) and Path(word).is_file()]
    return {word: file_digest(Path(word)) for word in named}


@contextlib.contextmanager
def hold(lock: Path) -> Iterator[int]:
    """A lock that a program inherits, and so holds until it ends. UserError where one of an earlier run holds it."""
    lock.parent.mkdir(parents=True, exist_ok=True)
    handle = os.open(lock, os.O_CREAT | os.O_RDWR, 0o644)
    try:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            busy = "the program of an earlier run is still at work"
            raise UserError(
                "proposer.command", lock.parent, busy, "wait until it ends, or end it; nothing is lost"
            ) from None
        yield handle
    finally:
        os.close(handle)


def run_program(words: Sequence[str], given: Path, output: Path, lock: int, clock: "Clock") -> Iterator[str]:
    """Run a program and yield the lines of its standard output as they come.

    given: file that is its standard input. output: file for its standard output, with `.log` beside it for the rest.
    lock: inherited by it. clock: whoever reads the lines winds it up at each answer. Raises Ended where the program
    fails, writes without an end, or lets the clock run down; it is ended, with all that it started, whenever this is
    left.
    """
    log = output.with_suffix(".log")
    with given.open("rb") as source, output.open("wb") as sink, log.open("wb") as errors:
        process = subprocess.Popen(
            list(words), stdin=source, stdout=sink, stderr=errors, pass_fds=(lock,), start_new_session=True
        )
    try:
        with output.open("rb") as written:
            clock.wind()
            while True:
                done = process.poll() is not None  # before reading: what it wrote last is read below
                yield from _lines(written, done)
                if done:
                    break
                if clock.is_over():
                    raise Ended(f"gave no answer within {clock.seconds:g} s and was ended")
                if output.stat().st_size > LARGEST:
                    raise Ended(f"wrote more than {LARGEST >> 30} GiB and was ended")
                time.sleep(LOOK)
    finally:
        _end(process)
    if process.returncode:
        raise Ended(_describe(process.returncode, log))


class Clock:
    """Runs down in so many seconds, unless it is wound up again."""

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds
        self.wind()

    def wind(self) -> None:
        """All of it again, from now."""
        self._end = time.monotonic() + self.seconds

    def is_over(self) -> bool:
        """Whether it has run down."""
        return time.monotonic() > self._end


def fill(words: Sequence[str], places: Mapping[str, Path]) -> list[str]:
    """The command's words with paths in place of @names."""
    return [str(places.get(word, word)) for word in words]


def _lines(written: BinaryIO, done: bool) -> Iterator[str]:
    """Whole lines that were written since the last look; the last one without an end only when it is done."""
    while True:
        at = written.tell()
        line = written.readline(LONGEST)
        if not line:
            return
        if not line.endswith(b"\n") and not done and len(line) < LONGEST:
            written.seek(at)
            return
        yield line.decode("utf-8", "replace")


def _end(process: "subprocess.Popen[bytes]") -> None:
    """End the program and all that it started."""
    for how in (signal.SIGTERM, signal.SIGKILL):
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(process.pid, how)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(GRACE)
            if how == signal.SIGTERM and not _group_lives(process.pid):
                return
    process.wait()


def _group_lives(group: int) -> bool:
    try:
        os.killpg(group, 0)
    except (ProcessLookupError, PermissionError):
        return False
    return True


def _describe(status: int, log: Path) -> str:
    """How it failed, with the last line of what it complained about."""
    how = f"was ended by signal {-status}" if status < 0 else f"ended with status {status}"
    with log.open("rb") as file:
        file.seek(max(0, log.stat().st_size - 4096))
        said = [line for line in file.read().decode("utf-8", "replace").splitlines() if line.strip()]
    return f"{how}: {one_line(said[-1], 200)}" if said else how
