"""The whole tree passes the linter, the formatter and the type checker."""

import ast
import re
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
        kept_out = {"pickle"} if edge in path.parents else {"hydra", "omegaconf", "wandb", "pickle"}
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if not isinstance(node, ast.Import | ast.ImportFrom | ast.Call):
                continue
            where = f"{path.relative_to(ROOT)}:{node.lineno}"
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
            assert not names & kept_out, where
            if isinstance(node, ast.Call):
                given = {k.arg: k.value.value for k in node.keywords if isinstance(k.value, ast.Constant)}
                assert given.get("weights_only", True) is True and not given.get("allow_pickle", False), where


FEW = 7
NUMBERS = dict(enumerate(["Eight", "Nine", "Ten", "Eleven", "Twelve", "Thirteen", "Fourteen", "Fifteen"], FEW + 1))


def unexplained(source: str) -> list[str]:
    """Public functions of more than seven parameters whose docstring gives no reason ("Nine parameters: ...")."""

    def walk(body: list[ast.stmt], inside: str, about: str):
        for node in body:
            if isinstance(node, ast.ClassDef) and not node.name.startswith("_"):
                yield from walk(node.body, f"{inside}{node.name}.", ast.get_docstring(node) or "")
            elif isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                made = node.name in ("__init__", "__call__")
                if made or not node.name.startswith("_"):
                    yield f"{inside}{node.name}", node, about if made else ""

    missing = []
    for name, node, about in walk(ast.parse(source).body, "", ""):
        given = [*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs]
        count = len([argument for argument in given if argument.arg not in ("self", "cls")])
        doc = about + (ast.get_docstring(node) or "")
        if count > FEW and not re.search(rf"\b{NUMBERS.get(count, count)} parameters: \w", doc):
            missing.append(f"{name} ({count})")
    return missing


def test_public_functions_of_more_than_seven_parameters_say_why():
    eight = "a, b, c, d, e, f, g, h"
    assert unexplained(f"def f({eight}): ...\ndef _f({eight}): ...\ndef g(a, *b, c, d, e, f, g, **h): ...") == ["f (8)"]
    assert unexplained(f"class A:\n    def __init__(self, {eight}): ...\n    def g(self, {eight}): ...") == [
        "A.__init__ (8)",
        "A.g (8)",
    ]
    assert unexplained(f"class A:\n    'Eight parameters: so.'\n    def __init__(self, {eight}): ...") == []
    assert unexplained(f"def f({eight}):\n    'Nine parameters: so.'") == ["f (8)"]
    files = sorted((ROOT / "saelab").rglob("*.py"))
    found = {str(path.relative_to(ROOT)): unexplained(path.read_text(encoding="utf-8")) for path in files}
    assert {path: names for path, names in found.items() if names} == {}
