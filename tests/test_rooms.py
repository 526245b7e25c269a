"""Imports run one way: from the rooms at the end of the data's way to those at its beginning, and never in a circle."""

import ast
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

PACKAGE = Path(__file__).resolve().parent.parent / "saelab"
# A room may import those before it.
ROOMS = """
errors settings bars files integrity artifacts tensor_files text tables arrays names planted acts images hosts cache
sae units encoders synthesise metrics label truth evaluate effects verify compare report hub run serve bench cli
__main__
""".split()  # noqa: SIM905  (a list to read)


def imports(tree: ast.AST, modules: set[str]) -> set[str]:
    """saelab's modules that a module imports anywhere, also in functions; not those for types alone."""
    found: set[str] = set()
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.dump(node.test):
            continue
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            names = {alias.name: f"{node.module}.{alias.name}" for alias in node.names}
            found |= {whole if whole in modules else node.module for whole in names.values()}
        else:
            found |= imports(node, modules)
    return found & modules


@pytest.fixture(scope="module")
def graph() -> dict[str, set[str]]:
    """Module -> the modules that it imports."""
    files = {".".join(("saelab", *f.relative_to(PACKAGE).with_suffix("").parts)): f for f in PACKAGE.rglob("*.py")}
    modules = {name.removesuffix(".__init__"): file for name, file in files.items()}
    modules.pop("saelab")
    return {
        name: imports(ast.parse(f.read_text(encoding="utf-8")), set(modules)) - {name} for name, f in modules.items()
    }


def room(module: str) -> str:
    return module.split(".")[1]


def test_every_module_has_its_room(graph):
    assert {room(module) for module in graph} <= set(ROOMS)


def test_no_room_imports_a_later_one(graph):
    backwards = [
        f"{module} imports {other}"
        for module, others in graph.items()
        for other in others
        if ROOMS.index(room(other)) > ROOMS.index(room(module))
    ]
    assert not backwards


def test_no_circle_of_modules(graph):
    """A package imports what it offers, so its own modules may not import the package by its name."""
    try:
        list(TopologicalSorter(graph).static_order())
    except CycleError as error:
        pytest.fail(f"circle: {' -> '.join(error.args[1])}")
