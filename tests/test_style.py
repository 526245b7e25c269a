"""The whole tree passes the linter, the formatter and the type checker."""

import ast
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
    """`from pickle import UnpicklingError` names the error that torch.load raises; nothing else of pickle is used."""
    edge = ROOT / "saelab" / "cli"
    for path in sorted((ROOT / "saelab").rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            where = f"{path.relative_to(ROOT)}:{getattr(node, 'lineno', '')}"
            if isinstance(node, ast.Import):
                names = {alias.name.split(".")[0] for alias in node.names}
            elif isinstance(node, ast.ImportFrom):
                names = (
                    {(node.module or "").split(".")[0]}
                    if [a.name for a in node.names] != ["UnpicklingError"]
                    else set()
                )
            else:
                names = set()
            kept_out = {"pickle"} if edge in path.parents else {"hydra", "omegaconf", "wandb", "pickle"}
            assert not names & kept_out, where
            if isinstance(node, ast.Call):
                given = {k.arg: k.value.value for k in node.keywords if isinstance(k.value, ast.Constant)}
                assert given.get("weights_only", True) is True and not given.get("allow_pickle", False), where
