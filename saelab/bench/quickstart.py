"""A whole command in a process of its own, with freed memory given back to the system as glibc does, and kept."""

import os
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from saelab.artifacts import read_json
from saelab.errors import UserError


def cases(command: str = "quickstart", settings: Sequence[str] = (), rounds: int = 1) -> Iterator[dict[str, Any]]:
    """One record for each way and round, in turns: seconds by the clock, of the processor and of the system.

    `settings` of the command, such as `layers=[_blocks.15]`. Every run has a folder of its own; a user's cache is
    shared, so what is made once for a user counts for the first alone. `stages`: seconds by stage, where a run keeps a
    record. Raises UserError where the command fails.
    """
    for _ in range(rounds):
        for malloc in ("system", "kept"):
            with tempfile.TemporaryDirectory() as root:
                yield {"case": f"{command}, memory {malloc}"} | _timed([command, f"root={root}", *settings], malloc)


def _timed(arguments: list[str], malloc: str) -> dict[str, Any]:
    before, start = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
    environment = os.environ | {"SAELAB_MALLOC": malloc}
    made = subprocess.run([sys.executable, "-m", "saelab.cli.main", *arguments], env=environment, capture_output=True)
    seconds, after = time.perf_counter() - start, resource.getrusage(resource.RUSAGE_CHILDREN)
    if made.returncode:
        last = (made.stderr.decode(errors="replace").strip().splitlines() or ["no message"])[-1]
        raise UserError("command", " ".join(arguments), f"ended with {made.returncode}: {last}", "run it by itself")
    spent = {"user_seconds": after.ru_utime - before.ru_utime, "system_seconds": after.ru_stime - before.ru_stime}
    record = Path(arguments[1].removeprefix("root=")) / "quickstart.json"
    stages = {"stages": read_json(record)["timings"]} if record.is_file() else {}
    return {name: round(value, 2) for name, value in ({"seconds": seconds} | spent).items()} | stages
