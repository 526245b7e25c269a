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
    "open_clip",
    "openai",
    "pandas",
    "scipy.optimize",
    "scipy.stats",
    "sklearn.linear_model",
    "torch._dynamo",  # what torch's optimizers import
    "transformers.models.bert.modeling_bert",
    "saelab.cli.quickstart",
]


class Going:
    """A command under way: a fork of the server, with its output in files."""

    def __init__(self, command: Sequence[str | Path], cwd: Path | str | None, env: Mapping[str, str] | None) -> None:
        python, *given = self.command = list(map(str, command))
        assert python == sys.executable and given[0] not in ("-c", "-u"), command
        server = mp.get_context("forkserver")
        server.set_forkserver_preload(PRELOADED)
        self.folder = tempfile.TemporaryDirectory()
        self.out, self.err = (Path(self.folder.name, name) for name in ("out", "err"))
        places = (str(cwd or Path.cwd()), dict(os.environ if env is None else env), str(self.out), str(self.err))
        self.process = server.Process(target=_become, args=(given, *places))
        self.process.start()

    @property
    def pid(self) -> int:
        """Its process."""
        return self.process.pid

    def poll(self) -> int | None:
        """Its exit code; None while it goes on."""
        return self.process.exitcode

    def kill(self) -> subprocess.CompletedProcess:
        """Send SIGKILL, and wait for its end."""
        self.process.kill()
        return self.wait()

    def wait(self) -> subprocess.CompletedProcess:
        """Wait for its end: what it wrote, and its exit code."""
        self.process.join()
        said = [file.read_text() if file.exists() else "" for file in (self.out, self.err)]
        return subprocess.CompletedProcess(self.command, self.process.exitcode, *said)


def start(
    command: Sequence[str | Path], *, cwd: Path | str | None = None, env: Mapping[str, str] | None = None
) -> Going:
    """`subprocess.Popen([sys.executable, script, ...])`, without the imports' seconds."""
    return Going(command, cwd, env)


def run(
    command: Sequence[str | Path], *, cwd: Path | str | None = None, env: Mapping[str, str] | None = None
) -> subprocess.CompletedProcess:
    """`subprocess.run([sys.executable, script, ...], capture_output=True, text=True)`, without the imports' seconds."""
    return start(command, cwd=cwd, env=env).wait()


def _become(given: list[str], cwd: str, env: dict[str, str], out: str, err: str) -> None:
    for file, target in ((out, 1), (err, 2)):
        os.dup2(os.open(file, os.O_WRONLY | os.O_CREAT | os.O_APPEND), target)
    os.chdir(cwd)
    os.environ.clear()
    os.environ.update(env)
    sys.path[1:1] = [folder for folder in env.get("PYTHONPATH", "").split(os.pathsep) if folder]
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
