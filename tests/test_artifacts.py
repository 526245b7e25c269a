"""Artifacts: never a stale hit, never a half-written one, and a kill loses nothing that was written."""

import json
import os
import signal
import subprocess
import sys
import textwrap
from dataclasses import dataclass
from pathlib import Path, PureWindowsPath

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from saelab import artifacts, files
from saelab.errors import UserError
from saelab.files import folder_name, folder_names


@dataclass(frozen=True)
class Recipe:
    """A recipe."""

    host: str
    k: int = 3


def write_once(calls: list):
    def build(folder: Path) -> None:
        calls.append(folder)
        (folder / "data.txt").write_text("data")

    return build


def test_same_recipe_is_reused_and_any_other_is_not(tmp_path):
    calls: list = []
    first = artifacts.ensure(tmp_path, "stage", "a/b c", Recipe("x"), write_once(calls))
    again = artifacts.ensure(tmp_path, "stage", "a/b c", Recipe("x"), write_once(calls))
    other = artifacts.ensure(tmp_path, "stage", "a/b c", Recipe("x", 4), write_once(calls))
    assert (first.reused, again.reused, other.reused) == (False, True, False)
    assert first.path == again.path != other.path and len(calls) == 2
    assert first.path.parent == tmp_path / "stage"


def test_several_are_made_in_one_pass_and_only_those_that_are_missing(tmp_path):
    wanted = [("sae", {"seed": seed}) for seed in range(4)]
    artifacts.ensure(tmp_path, "sae", *wanted[1], write_once([]))
    passes = []

    def build(missing: dict) -> None:
        passes.append(sorted(missing))
        for position, folder in missing.items():
            (folder / "seed.txt").write_text(str(position))

    made = artifacts.ensure_all(tmp_path, "sae", wanted, build)
    assert [sorted(positions) for positions in passes] == [[0, 2, 3]]
    assert [a.reused for a in made] == [False, True, False, False]
    assert [(a.path / "seed.txt").read_text() for a in made if not a.reused] == ["0", "2", "3"]
    again = artifacts.ensure_all(tmp_path, "sae", wanted, build)
    assert [a.path for a in again] == [a.path for a in made] and len(passes) == 1


def test_a_recipe_named_twice_is_made_once(tmp_path):
    wanted = [("sae", {"seed": seed}) for seed in (1, 0, 1)]
    built: list = []

    def build(missing: dict) -> None:
        built.extend(missing)
        for position, folder in missing.items():
            (folder / "seed.txt").write_text(str(wanted[position][1]["seed"]))

    made = artifacts.ensure_all(tmp_path, "sae", wanted, build)
    assert sorted(built) == [0, 1] and made[0].path == made[2].path
    assert [(a.path / "seed.txt").read_text() for a in made] == ["1", "0", "1"]


def test_locks_are_taken_in_one_order_whatever_order_is_wanted(tmp_path):
    """Two processes that want the same artifacts in other orders must not wait for each other for ever."""
    code = textwrap.dedent("""
        import sys, time
        from saelab.artifacts import ensure_all
        def build(missing):
            time.sleep(0.1)
            for folder in missing.values():
                (folder / "x").write_text("x")
        wanted = [("n", {"seed": seed}) for seed in (range(6) if sys.argv[2] == "up" else reversed(range(6)))]
        for round in range(10):
            ensure_all(sys.argv[1], f"s{round}", wanted, build)
    """)
    pair = [subprocess.Popen([sys.executable, "-c", code, str(tmp_path), way]) for way in ("up", "down")]
    try:
        assert [process.wait(timeout=600) for process in pair] == [0, 0]
    finally:
        for process in pair:
            process.kill()


def test_what_is_there_is_reused_without_writing(tmp_path):
    made = artifacts.ensure(tmp_path, "s", "n", {"r": 1}, write_once([]))
    (tmp_path / "s" / (made.path.name + ".lock")).unlink()
    before = {p: p.stat().st_mtime_ns for p in (tmp_path, *tmp_path.rglob("*"))}
    assert artifacts.ensure(tmp_path, "s", "n", {"r": 1}, write_once([])).reused
    assert {p: p.stat().st_mtime_ns for p in (tmp_path, *tmp_path.rglob("*"))} == before


def test_the_digest_does_not_depend_on_the_process(tmp_path):
    code = "from saelab.artifacts import digest; print(digest({'b': [1, 2.5, None], 'a': {'x': True}}))"
    texts = {
        subprocess.run(
            [sys.executable, "-c", code],
            env={**os.environ, "PYTHONHASHSEED": seed},
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        for seed in "01"
    }
    assert len(texts) == 1
    with pytest.raises(TypeError):
        artifacts.digest({"model": object()})


def test_a_failed_build_leaves_what_it_wrote_and_the_next_one_goes_on(tmp_path):
    def failing(folder: Path) -> None:
        (folder / "part0").write_text("kept")
        raise RuntimeError("boom")

    with pytest.raises(RuntimeError):
        artifacts.ensure(tmp_path, "s", "n", {"r": 1}, failing)
    seen = []

    def resuming(folder: Path) -> None:
        seen.append((folder / "part0").read_text())

    assert not artifacts.ensure(tmp_path, "s", "n", {"r": 1}, resuming).reused
    assert seen == ["kept"]


def test_a_killed_build_is_never_taken_for_a_whole_one(tmp_path):
    code = textwrap.dedent("""
        import os, signal, sys
        from saelab.artifacts import ensure
        def build(folder):
            (folder / "half").write_text("x")
            os.kill(os.getpid(), signal.SIGKILL)
        ensure(sys.argv[1], "s", "n", {"r": 1}, build)
    """)
    died = subprocess.run([sys.executable, "-c", code, str(tmp_path)], check=False)
    assert died.returncode == -signal.SIGKILL
    assert not artifacts.folder(tmp_path, "s", "n", {"r": 1}).exists()
    calls: list = []
    assert not artifacts.ensure(tmp_path, "s", "n", {"r": 1}, write_once(calls)).reused and len(calls) == 1


def test_damage_is_refused_with_the_remedy(tmp_path):
    made = artifacts.ensure(tmp_path, "s", "n", {"r": 1}, write_once([]))
    (made.path / "data.txt").write_text("dat")
    for look in (
        lambda: artifacts.open_artifact(made.path),
        lambda: artifacts.ensure(tmp_path, "s", "n", {"r": 1}, write_once([])),
    ):
        with pytest.raises(UserError, match=r"data\.txt has 3 bytes, expected 4.*delete"):
            look()
    with pytest.raises(UserError, match="no such folder"):
        artifacts.open_artifact(tmp_path / "nowhere")


def test_json_lines_survive_a_cut_and_nan_has_no_word(tmp_path):
    path = tmp_path / "rows.jsonl"
    artifacts.write_jsonl(path, [{"a": float("nan"), "b": [float("inf"), 1.5]}, {"a": 2}])
    assert artifacts.read_jsonl(path) == [{"a": None, "b": [None, 1.5]}, {"a": 2}]
    path.write_text(path.read_text()[:-4])
    assert len(artifacts.read_jsonl(path)) == 1
    path.write_text('{"a": 1}\n{"a"\n{"a": 3}\n')
    with pytest.raises(UserError, match="line 2"):
        artifacts.read_jsonl(path)


PLAIN = st.none() | st.booleans() | st.integers() | st.floats() | st.text(st.characters(codec="utf-8"), max_size=5)
KEYS = st.text("kq", max_size=3) | st.integers(0, 9)
OTHERS = st.builds(Recipe, st.text("ab", max_size=3), st.integers() | st.floats()) | st.just(Path("a") / "b")


@given(
    st.dictionaries(
        KEYS,
        st.recursive(
            PLAIN | OTHERS,
            lambda own: st.lists(own, max_size=3) | st.tuples(own, own) | st.dictionaries(KEYS, own),
            max_leaves=6,
        ),
        max_size=4,
    )
)
def test_json_lines_are_what_plain_says_with_null_for_no_number(row):
    expected = json.dumps(files._finite(artifacts.plain(row)), ensure_ascii=False)
    assert files._line(row) == expected
    with pytest.raises(TypeError, match="can't hold a object"):
        files._line(row | {"more": [object()]})


def test_json_lines_end_where_lines_end_and_nowhere_else(tmp_path):
    """Captions and answers may hold characters at which Python's texts are split; a kill may cut one in two."""
    table, rows = tmp_path / "rows.jsonl", [{"raw": "one\u2028two\u0085three"}, {"raw": "\U0001f9ad"}]
    artifacts.write_jsonl(table, rows)
    assert artifacts.read_jsonl(table) == rows
    table.write_bytes(table.read_bytes()[:-5])  # within the last character
    assert artifacts.read_jsonl(table) == rows[:1]


def test_an_atomic_write_that_fails_leaves_the_old_text(tmp_path):
    path = tmp_path / "x.json"
    artifacts.write_json(path, {"old": 1})
    with pytest.raises(TypeError):
        artifacts.write_json(path, {"new": object()})
    assert json.loads(path.read_text()) == {"old": 1}
    assert [p.name for p in tmp_path.iterdir()] == ["x.json"]


NAMES = [
    "in:_pool sae seed 0",
    "in/_pool sae seed 0",
    "neuron",
    "NEURON",
    "con",
    "nul.txt",
    "..",
    "",
    "\udcff",
    "神经元",
]


@settings(max_examples=300)
@given(st.lists(st.sampled_from(NAMES) | st.text(max_size=80), max_size=8))
def test_names_of_bases_make_folders_that_every_file_system_takes_and_tells_apart(names):
    found = folder_names(names)
    assert len({name.casefold() for name in found}) == len(found) == len(names)
    for name in found:
        assert name and not set(name) & set('<>:"/\\|?* \t\n') and name.isprintable() and len(name.encode()) < 255
        path = PureWindowsPath(name)
        assert name[0] != "." and name[-1] != "." and path.parts == (name,) and not path.is_reserved()
        assert folder_name(name, 70) == name  # a folder's own name makes it again


def test_a_basis_name_that_is_plain_stays_as_it_was():
    names = ["_blocks.15 sae seed 0", "in:_avg_pooling neuron"]
    assert folder_names(names) == ["blocks.15_sae_seed_0", "in__avg_pooling_neuron"]
