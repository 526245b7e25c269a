"""What is on disk is what was written: flipped bits, foreign recipes, kills at any write, two processes, old locks."""

import csv
import json
import os
import shutil
import signal
import subprocess
import sys
import textwrap
from collections.abc import Callable
from pathlib import Path

import cache_world
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from small_images import coloured
from test_encoders import Colours

from saelab import artifacts, cache, compare, evaluate, integrity
from saelab.compare import tables
from saelab.encoders.embed import image_embeddings, label_embeddings
from saelab.errors import UserError
from saelab.images import hubs, streams
from saelab.sae import SAE, SAEConfig, Trainer
from saelab.units import stage as basis_units

CALM = settings(max_examples=40)


def build(folder: Path) -> None:
    (folder / "labels.jsonl").write_text("".join(json.dumps({"unit": i, "label": "owl"}) + "\n" for i in range(9)))
    (folder / "sub").mkdir(exist_ok=True)
    (folder / "sub" / "weights.safetensors").write_bytes(bytes(range(256)) * 8)
    artifacts.write_json(folder / "evaluation.json", {"auroc": 0.75})


@pytest.fixture
def made(tmp_path) -> artifacts.Artifact:
    return artifacts.ensure(tmp_path / "runs", "labels", "n", {"k": 3}, build)


@CALM
@given(data=st.data())
def test_any_flipped_bit_of_any_file_is_refused_and_named(tmp_path_factory, data):
    folder = tmp_path_factory.mktemp("flip")
    made = artifacts.ensure(folder, "labels", "n", {"k": 3}, build)
    files = sorted(p for p in made.path.rglob("*") if p.is_file())
    file = data.draw(st.sampled_from(files))
    raw = bytearray(file.read_bytes())
    bit = data.draw(st.integers(0, 8 * len(raw) - 1))
    raw[bit // 8] ^= 1 << bit % 8
    assert artifacts.verify(made.path) == []
    file.write_bytes(raw)
    if file.name == "complete.json" and _same_claim(bytes(raw), made.path):
        return  # a flip of white space
    with pytest.raises(UserError, match="delete"):
        artifacts.open_artifact(made.path)
    with pytest.raises(UserError, match="delete"):
        artifacts.ensure(folder, "labels", "n", {"k": 3}, build)
    assert len(artifacts.verify(made.path)) == 1


def _same_claim(raw: bytes, folder: Path) -> bool:
    try:
        told = json.loads(raw)
        right = {name: told[name]["bytes"] == (folder / name).stat().st_size for name in told}
        return all(right.values()) and all(told[n]["sha256"] == artifacts.file_digest(folder / n) for n in told)
    except (ValueError, KeyError, OSError, TypeError):
        return False


def test_complete_json_holds_size_and_sha256_of_every_file_and_recipes_keep_their_names(made):
    told = artifacts.read_json(made.path / "complete.json")
    assert set(told) == {"recipe.json", "labels.jsonl", "evaluation.json", "sub/weights.safetensors"}
    assert all(told[n]["sha256"] == artifacts.file_digest(made.path / n) for n in told)
    assert made.path.name == "n-615b1dfe84"  # of older runs


def test_artifacts_from_before_there_was_a_sha256_still_open(made):
    sizes = {k: v["bytes"] for k, v in artifacts.read_json(made.path / "complete.json").items()}
    artifacts.write_json(made.path / "complete.json", sizes)
    assert artifacts.open_artifact(made.path).recipe == {"k": 3} and artifacts.verify(made.path) == []
    (made.path / "labels.jsonl").write_bytes(b"short")
    with pytest.raises(UserError, match=r"labels\.jsonl has 5 bytes, expected"):
        artifacts.open_artifact(made.path)


def test_a_recipe_that_is_not_the_one_in_the_name_is_refused(made):
    moved = made.path.with_name("n-0123456789")
    shutil.copytree(made.path, moved)
    with pytest.raises(UserError, match=r"its recipe\.json is not the one in its name"):
        artifacts.open_artifact(moved)


def test_large_files_are_compared_by_their_head_when_opened_and_whole_when_verified(tmp_path, monkeypatch):
    monkeypatch.setattr(integrity, "HASHED", 1 << 10)
    monkeypatch.setattr(integrity, "HEAD", 1 << 8)
    made = artifacts.ensure(tmp_path, "s", "n", {"r": 1}, lambda f: (f / "big.h5").write_bytes(bytes(4096)) and None)
    file = made.path / "big.h5"
    file.write_bytes(b"x" + bytes(4095))
    with pytest.raises(UserError, match=r"contents of big\.h5"):
        artifacts.open_artifact(made.path)
    file.write_bytes(bytes(4095) + b"x")
    assert artifacts.open_artifact(made.path)
    assert [p for p in artifacts.verify(made.path) if "contents of big.h5" in p]


def test_verify_names_what_is_damaged_missing_or_not_listed_in_a_run(made, tmp_path):
    root = made.path.parent.parent
    other = artifacts.ensure(root, "units", "m", {"k": 4}, build)
    run = {"bases": [{"labels": f"labels/{made.path.name}", "units": f"units/{other.path.name}"}], "name": "run"}
    artifacts.write_json(root / "run.json", run)
    assert artifacts.verify(root / "run.json") == artifacts.verify(root) == []
    (other.path / "stray.txt").write_text("x")
    shutil.rmtree(made.path)
    missing, stray = artifacts.verify(root / "run.json")
    assert "no such folder" in missing and "stray.txt is not in complete.json" in stray
    with pytest.raises(UserError, match="no artifact there"):
        artifacts.verify(tmp_path / "nowhere")


def test_flipped_weights_are_not_loaded(tmp_path):
    trainer = Trainer(SAEConfig(d_in=8, latents=16, k=2))
    trainer.step(torch.randn(32, 8))
    made = artifacts.ensure(tmp_path, "sae", "n", {"r": 1}, lambda folder: trainer.sae.save(folder))
    assert SAE.load(made.path)
    raw = bytearray((made.path / "sae.safetensors").read_bytes())
    raw[-3] ^= 1
    (made.path / "sae.safetensors").write_bytes(raw)
    with pytest.raises(UserError, match=r"contents of sae\.safetensors"):
        SAE.load(made.path / "sae.safetensors")


# ---- kills ----


def killed_at(action: Callable[[], object], write: int) -> bool:
    """Run `action` in a process that is killed at its `write`th rename, in turn before and after; was it killed?"""
    child = os.fork()
    if child == 0:
        left = [write]

        def killing(original: Callable) -> Callable:
            def renamed(self: Path, target: Path) -> Path:
                left[0] -= 1
                if left[0] == 0 and write % 2:
                    os.kill(os.getpid(), signal.SIGKILL)
                made = original(self, target)
                if left[0] == 0:
                    os.kill(os.getpid(), signal.SIGKILL)
                return made

            return renamed

        Path.replace, Path.rename = killing(Path.replace), killing(Path.rename)  # type: ignore[method-assign]
        try:
            action()
            os._exit(0)
        except BaseException:
            os._exit(3)
    status = os.waitpid(child, 0)[1]
    assert os.WIFSIGNALED(status) or os.WEXITSTATUS(status) == 0, "a resume died"
    return os.WIFSIGNALED(status)


def contents(root: Path) -> dict[str, bytes]:
    files = [p for p in root.rglob("*") if p.is_file() and p.suffix != ".lock"]
    return {str(p.relative_to(root)): p.read_bytes() for p in files}


def _embedded(root: Path, tmp: Path) -> None:
    image_embeddings(coloured(tmp / "photos", 30), Colours(), root, batch_size=2)
    label_embeddings(["red", "green"], Colours(), root)


def _cached(root: Path, tmp: Path) -> None:
    cache.write(cache_world.pictures(tmp / "noise", 8), cache_world.host(), ["conv"], root, batch_size=4)
    (store,) = map(cache.open, (root / "activations").glob("*-??????????"))
    basis_units.neuron(store, root)


def _copied(root: Path, tmp: Path) -> None:
    os.environ["SAELAB_CACHE"] = str(root)
    items = [hubs.Item(bytes([i]) * 9, ".png", f"number {i}", name=str(i)) for i in range(5)]
    items[2] = hubs.Item(b"", "", name="two", problem="no picture")
    listing = hubs.copy_items("set", {"of": "kills"}, lambda start: iter(items[start:]), "", None)
    assert len(listing.entries) == 4 and listing.skipped == [("two", "no picture")]


def _streamed(root: Path, tmp: Path) -> None:
    os.environ["SAELAB_CACHE"] = str(root)

    def read(file: str, after: int | None):
        for i in range(after or 0, 4):
            yield streams.Found(streams.Item(b"no picture", ".png"), f"{i}.png", (i, 1), i + 1)

    stream = streams.Stream("s", ["a.tar"], {"of": "kills"}, read, lambda *_: None)
    assert len(streams.listing(stream, None).skipped) == 4


def _evaluated(root: Path, tmp: Path) -> None:
    rows = [{"unit": i, "label": "owl"} for i in range(3)]
    artifacts.ensure(root, "evaluation", "e", {"s": 1}, lambda f: evaluate.write(f, rows, {"units": 3}))
    result = {"bases": [], "pairs": [], "methods": [{"name": "csp", "mean": 0.5}]}
    artifacts.ensure(root, "comparison", "c", {"s": 2}, lambda f: tables.write(f, result))


@pytest.mark.parametrize(
    "stage", [_cached, _embedded, _copied, _streamed, _evaluated], ids=lambda stage: stage.__name__[1:]
)
def test_a_kill_at_any_write_leaves_what_an_unkilled_run_makes(tmp_path, monkeypatch, stage):
    monkeypatch.setenv("SAELAB_CACHE", str(tmp_path / "unused"))
    stage(tmp_path / "whole", tmp_path)
    for write in range(1, 99):
        root = tmp_path / f"killed-{write}"
        was_killed = killed_at(lambda root=root: stage(root, tmp_path), write)
        left = {str(p) for p in root.rglob(".*.tmp")}
        stage(root, tmp_path)
        assert contents(root) == contents(tmp_path / "whole"), (write, left)
        assert artifacts.verify(root) == []
        if not was_killed:
            break
    assert 2 < write < 98


def test_what_a_kill_left_is_cleared_under_the_lock_and_is_no_part_of_the_artifact(tmp_path):
    partial = artifacts.folder(tmp_path, "s", "n", {"r": 1}).with_suffix("")
    partial = partial.with_name(partial.name + ".partial")
    (partial / "parts").mkdir(parents=True)
    for name in (".complete.json.123.tmp", "parts/.x.h5.9.tmp"):
        (partial / name).write_text("half")

    def resumed(folder: Path) -> None:
        (folder / "parts").rmdir()  # as a stage does that joins its parts
        (folder / "data").write_text("data")

    made = artifacts.ensure(tmp_path, "s", "n", {"r": 1}, resumed)
    assert set(contents(made.path)) == {"data", "recipe.json", "complete.json"}


def test_a_lock_that_a_dead_process_left_holds_nobody_up(tmp_path):
    lock = artifacts.folder(tmp_path, "s", "n", {"r": 1})
    lock.parent.mkdir(parents=True)
    code = "import fcntl, os, sys; f = open(sys.argv[1], 'w'); fcntl.flock(f, fcntl.LOCK_EX); os.kill(os.getpid(), 9)"
    place = lock.with_name(lock.name + ".lock")
    assert subprocess.run([sys.executable, "-c", code, str(place)], check=False).returncode == -9 and place.exists()
    assert not artifacts.ensure(tmp_path, "s", "n", {"r": 1}, build).reused


def test_of_two_processes_one_builds_and_the_other_finds_it(tmp_path):
    code = textwrap.dedent("""
        import sys, time
        from pathlib import Path
        from saelab.artifacts import ensure
        def build(folder):
            with (Path(sys.argv[1]) / "built").open("a") as log:
                log.write("x")
            time.sleep(0.2)
            (folder / "x").write_text("x")
        print(ensure(Path(sys.argv[1]) / "runs", "s", "n", {"r": 1}, build).reused)
    """)
    start = [sys.executable, "-c", code, str(tmp_path)]
    both = [subprocess.Popen(start, stdout=subprocess.PIPE, text=True) for _ in range(2)]
    assert sorted(process.communicate()[0].strip() for process in both) == ["False", "True"]
    assert (tmp_path / "built").read_text() == "x"


# ---- tables ----


@CALM
@given(st.lists(st.tuples(st.text(max_size=12), st.floats(allow_nan=False) | st.integers() | st.none()), max_size=5))
def test_no_cell_of_a_table_is_a_formula_and_numbers_stay_numbers(tmp_path_factory, rows):
    path = tmp_path_factory.getbasetemp() / "t.csv"
    artifacts.write_csv(path, [{"label": label, "value": value} for label, value in rows], ["label", "value"])
    with path.open(newline="", encoding="utf-8") as file:
        head, *found = list(csv.reader(file))
    assert head == ["label", "value"] and len(found) == len(rows)
    for (label, value), (text, number) in zip(rows, found, strict=True):
        assert not text.startswith(("=", "+", "-", "@", "\t", "\r", "\n"))
        expected = label.encode("utf-8", "replace").decode()
        assert text in (expected, f"'{expected}")
        assert number == ("" if value is None else str(value))


@pytest.mark.parametrize("label", ["=1+1", "+cmd|' /C calc'!A0", "-2+3", "@SUM(A1)", "\tx", "\rx", "＝1+1"])
def test_labels_that_spreadsheets_would_execute_get_an_apostrophe(tmp_path, label):
    tables.write(tmp_path, {"bases": [], "pairs": [], "methods": [{"name": label, "mean": -0.5}]})
    with (tmp_path / "methods.csv").open(newline="", encoding="utf-8") as file:
        assert list(csv.reader(file)) == [["name", "mean"], [f"'{label}", "-0.5"]]


def test_every_csv_is_written_by_the_one_writer():
    room = Path(compare.__file__).parent.parent
    writers = [p for p in room.rglob("*.py") if "csv.writer(" in p.read_text() or "DictWriter(" in p.read_text()]
    assert [p.name for p in writers] == ["files.py"]


@pytest.mark.parametrize("stage", integrity.OPEN_ENDED)
def test_folders_that_grow_are_read_line_by_line(stage, tmp_path):
    """Nothing is written down of them, but a run that has them is whole; a damaged line or recipe is named."""
    recipe = {"stage": stage, "k": 3}
    folder = artifacts.folder(tmp_path / "runs", stage, "neuron", recipe)
    folder.mkdir(parents=True)
    artifacts.write_json(folder / "recipe.json", recipe)
    rows = folder / "rows.jsonl"
    rows.write_text("".join(json.dumps({"unit": i}) + "\n" for i in range(5)) + '{"unit": 5')  # cut off by a kill
    run = tmp_path / "runs" / "run.json"
    artifacts.write_json(run, {"bases": [{stage: str(folder.relative_to(run.parent))}]})
    assert integrity.verify(run) == [] == integrity.verify(tmp_path / "runs")
    rows.write_text(rows.read_text().replace('"unit": 2}', '"unit": 2'))
    (wrong,) = integrity.verify(run)
    assert "rows.jsonl" in wrong and "line 3 is not JSON" in wrong
    artifacts.write_json(folder / "recipe.json", recipe | {"k": 4})
    assert len(integrity.verify(run)) == 2
    (folder / "recipe.json").unlink()
    assert any("recipe.json" in line for line in integrity.verify(run))
