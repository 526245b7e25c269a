"""The whole tree passes the linter, the formatter and the type checker."""

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent


@pytest.mark.parametrize(
    "command",
    [
        ["ruff", "check", "."],
        ["ruff", "format", "--check", "."],
        pytest.param([sys.executable, "-m", "mypy"], marks=pytest.mark.slow),
    ],
    ids=["lint", "format", "types"],
)
def test_clean(command):
    if command[0] == "ruff":
        command = [sys.executable, "-m", *command]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert result.returncode == 0, result.stdout + result.stderr


def test_the_library_knows_neither_hydra_nor_wandb_and_nothing_unpickles():
    for path in sorted((ROOT / "saelab").rglob("*.py")):
        for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
            words = line.split()
            imported = words[1].split(".")[0] if len(words) > 1 and words[0] in ("import", "from") else ""
            assert imported not in ("hydra", "omegaconf", "wandb", "pickle"), f"{path.name}:{number}: {line.strip()}"
            assert "weights_only=False" not in line and "allow_pickle=True" not in line, f"{path.name}:{number}"
