"""Scripts in processes of their own that share the imports: a server imports torch once and forks for every command.

The server computes nothing, so a fork of it is as good as a fresh interpreter that has imported what it has.
"""

import multiprocessing as mp
import os
import runpy
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path

PRELOADED = [
    "hydra",
    "h5py",
    "matplotlib.backends.backend_agg",
    "matplotlib.figure",
    "pandas",
    "scipy.optimize",
    "scipy.stats",
    "torch._dynamo",  # what torch's optimizers import
    "transformers",
    "saelab.cli.quickstart",
]


def run(
    command: Sequence[str | Path], *, cwd: Path | str | None = None, env: Mapping[str, str] | None = None
) -> subprocess.CompletedProcess:
    """`subprocess.run([sys.executable, script, ...], capture_output=True, text=True)`, without the imports' seconds."""
    python, *given = map(str, command)
    assert python == sys.executable and given[0] not in ("-c", "-u"), command
    server = mp.get_context("forkserver")
    server.set_forkserver_preload(PRELOADED)
    with tempfile.TemporaryDirectory() as folder:
        out, err = Path(folder, "out"), Path(folder, "err")
        arguments = (given, str(cwd or Path.cwd()), dict(os.environ if env is None else env), str(out), str(err))
        process = server.Process(target=_become, args=arguments)
        process.start()
        process.join()
        return subprocess.CompletedProcess(command, process.exitcode, out.read_text(), err.read_text())


def _become(given: list[str], cwd: str, env: dict[str, str], out: str, err: str) -> None:
    for file, target in ((out, 1), (err, 2)):
        os.dup2(os.open(file, os.O_WRONLY | os.O_CREAT | os.O_APPEND), target)
    os.chdir(cwd)
    os.environ.clear()
    os.environ.update(env)
    try:
        if given[0] == "-m":
            sys.argv = given[1:]
            runpy.run_module(given[1], run_name="__main__", alter_sys=True)
        else:
            sys.argv, sys.path[0] = given, str(Path(given[0]).parent)
            runpy.run_path(given[0], run_name="__main__")
    except SystemExit as leave:
        if isinstance(leave.code, str):
            print(leave.code, file=sys.stderr)
        raise SystemExit(leave.code if isinstance(leave.code, int) else int(leave.code is not None)) from None
