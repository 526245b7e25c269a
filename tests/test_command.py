"""What a user reads after a slip on the command line: one line, with the nearest names that exist."""

import subprocess
import sys
from pathlib import Path

import commands
import pytest

SCRIPT = Path(__file__).resolve().parent.parent / "scripts" / "quickstart.py"
SLIPS = {
    "host=resnet5": "saelab: host=resnet5: unknown; did you mean resnet50 or",
    "image.limit=20": "saelab: image.limit: there is no such setting; did you mean images.limit?",
    "sae.k": "saelab: sae.k: has no value; write sae.k=VALUE",
    "sae.screen=int8": "saelab: sae.screen=int8: the preset doesn't name it; write +sae.screen=int8",
    "sae.train.ema=0.9": "saelab: sae.train.ema=0.9: the preset doesn't name it; write +sae.train.ema=0.9",
    "images.root=/my=photos": "saelab: command line: mismatched input '='",
    "name=a/b": "saelab: name=a/b: has to be the name of a file",
    "bases=neurn": "saelab: bases=neurn: unknown; did you mean neuron? known: neuron, sae, heads",
    "bases=[neuron]": "saelab: bases=['neuron']: a comparison needs at least two; for example bases=[neuron,sae]",
}


@pytest.mark.parametrize("slip", SLIPS)
def test_a_slip_is_told_in_one_line(slip, tmp_path):
    command = [sys.executable, str(SCRIPT), "images=folder", "proposer=none", f"root={tmp_path / 'runs'}", slip]
    done = commands.run(command, cwd=tmp_path)
    assert done.returncode == 2
    assert done.stderr.startswith(SLIPS[slip]) and len(done.stderr.splitlines()) == 1, done.stderr


def test_a_root_that_is_a_file_is_told_in_one_line(tmp_path):
    from small_images import coloured

    coloured(tmp_path / "pictures", 40)
    (tmp_path / "runs").write_text("a file")
    command = [
        sys.executable,
        str(SCRIPT),
        "images=folder",
        f"images.root={tmp_path / 'pictures'}",
        "host.weights=random",
        "label.mining.k=1",
    ]
    command += [f"root={tmp_path / 'runs'}", "encoder.name=open_clip:ViT-B-32/random", "proposer=none", "workers=0"]
    done = commands.run(command, cwd=tmp_path)
    assert done.returncode == 2 and "Traceback" not in done.stderr
    assert "Not a directory" in done.stderr.splitlines()[-1] and "root=PATH" in done.stderr.splitlines()[-1]


def test_a_command_that_is_none_names_the_nearest(tmp_path):
    done = commands.run([sys.executable, "-m", "saelab", "lable"], cwd=tmp_path)
    assert done.returncode == 2 and "did you mean label" in done.stderr


@pytest.mark.parametrize(
    "words", [["--help"], ["cache", "--help"], ["layers", "host=torchvision:alexnet", "host.weights=random"]]
)
def test_a_reader_who_leaves_early_is_no_error(words, tmp_path):
    started = [sys.executable, "-m", "saelab", *words]
    with subprocess.Popen(started, stdout=subprocess.PIPE, stderr=subprocess.PIPE, cwd=tmp_path) as running:
        running.stdout.close()  # as `| head -1` does
        assert (running.stderr.read(), running.wait()) == (b"", 141)


@pytest.mark.parametrize("given", ["run=nothing.json", "run=empty"])
def test_a_run_that_is_none_names_the_command_that_makes_one(given, tmp_path):
    (tmp_path / "empty").mkdir()
    done = commands.run([sys.executable, "-m", "saelab.cli.main", "view", given], cwd=tmp_path)
    assert done.returncode == 2 and "`saelab quickstart` makes runs/quickstart.json" in done.stderr
    assert len(done.stderr.splitlines()) == 1


NO_RECORDS = {
    "vocab.txt": b"dog\ncat\n",
    "list.json": b"[1, 2]",
    "number.json": b"3",
    "empty.json": b"",
    "cut.json": b'{"name": "quickstart", "config": {',
    "picture.png": bytes(range(256)),
    "deep.json": b"[" * 100_000,
    "digits.json": b"9" * 5000,
}


@pytest.mark.parametrize("name", NO_RECORDS)
def test_a_file_that_is_no_record_is_named_as_the_run(name, tmp_path):
    from saelab import Pipeline, UserError, hub, report
    from saelab.cli.edge import run_file

    file = tmp_path / name
    file.write_bytes(NO_RECORDS[name])
    doors = (run_file, Pipeline.read, hub.read_entries, lambda run: report.build(run, tmp_path / "report" / "pages"))
    for door in doors:
        with pytest.raises(UserError) as caught:
            door(file)
        assert str(caught.value).startswith(f"run={file}: holds no record of a run; give the .json of a finished run")
        assert "delete" not in str(caught.value)
    assert list(tmp_path.iterdir()) == [file]  # no lock, no folder


@pytest.mark.parametrize("name", ["report", "view", "serve", "effects", "export"])
def test_commands_refuse_such_a_file_and_leave_nothing_beside_it(name, tmp_path):
    (tmp_path / "vocab.txt").write_text("dog\n")
    done = commands.run([sys.executable, "-m", "saelab.cli.main", name, "run=vocab.txt"], cwd=tmp_path)
    assert done.returncode == 2 and done.stderr.startswith("saelab: run=vocab.txt: holds no record of a run; ")
    assert len(done.stderr.splitlines()) == 1 and [p.name for p in tmp_path.iterdir()] == ["vocab.txt"]


@pytest.mark.parametrize(
    ("slip", "expected"),
    [
        ("report site=5", "a word or null"),
        ("export k=many", "a whole number"),
        ("push out=5", "a word or null"),
        ("serve mcp=5", "true or false"),
        ("view returned=a.csv", "a list"),
        ("search top=few", "a whole number"),
        ("label label.sets=2", "a number from 0 to 1"),
    ],
)
def test_a_value_of_another_kind_is_one_line(slip, expected, tmp_path):
    name, value = slip.split()[1].split("=")
    done = commands.run([sys.executable, "-m", "saelab.cli.main", *slip.split()], cwd=tmp_path)
    assert done.returncode == 2 and done.stderr == f"saelab: {name}={value}: expected {expected}\n"


@pytest.mark.parametrize("name", ["view", "serve"])
@pytest.mark.parametrize("port", [-5, -1, 65536, 99999, 2**40])
def test_a_port_that_is_none_is_refused_before_anything_starts(name, port, monkeypatch):
    from omegaconf import OmegaConf

    from saelab import UserError
    from saelab.cli import serve, view

    def start(*given, **more):
        raise AssertionError("something was started or read")

    for place in ("run_file", "reading.read", "threading.Thread", "Search"):
        monkeypatch.setattr(f"saelab.cli.view.{place}", start)
    monkeypatch.setattr("saelab.cli.serve.run_file", start)
    main = {"view": view.main, "serve": serve.main}[name].__wrapped__
    with pytest.raises(UserError, match=rf"^port={port}: expected 0 to 65535"):
        main(OmegaConf.create({"do": "serve", "port": port, "run": "run.json", "shown": 30, "mcp": False}))
    with pytest.raises(UserError, match=rf"^port={port}: expected 0 to 65535"):
        view.listen(port)


@pytest.mark.parametrize("shown", [-3, 0, 2.5, "30", True, None])
def test_a_page_shows_at_least_one_image(shown, tmp_path):
    from saelab import UserError, report

    with pytest.raises(UserError, match=rf"^shown={shown}: expected a whole number of at least 1"):
        report.build(tmp_path / "run.json", tmp_path / "report", shown=shown)
    assert not list(tmp_path.iterdir())


def test_help_names_commands_that_exist():
    from saelab.cli import cache, train

    for name, module in (("cache", cache), ("train", train)):
        assert f"`torchrun --nproc-per-node 2 -m saelab {name} ...`" in " ".join(module.__doc__.split())


@pytest.mark.parametrize(
    ("typed", "read"),
    [
        ("images.root=~/photos", [f"images.root={Path.home() / 'photos'}"]),
        ("host=timm:resnet50", ["host=own", "host.name=timm:resnet50"]),
        ("encoder=open_clip:ViT-B-32/openai", ["encoder=conse", "encoder.name=open_clip:ViT-B-32/openai"]),
        ("host=resnet50", ["host=resnet50"]),
        ("proposer.units=status:ok", ["proposer.units=status:ok"]),
        ("proposer.units=status:ok,dense top:9", ["proposer.units='status:ok,dense top:9'"]),
        ("units=3,17,20-29", ["units='3,17,20-29'"]),
        ("proposer.units=396", ["proposer.units='396'"]),
        ("units=all", ["units=all"]),
        ("units='3,17'", ["units='3,17'"]),
        ("units=[3,17]", ["units=[3,17]"]),
        ("layers=3", ["layers='3'"]),
        ("layers=[3]", ["layers=['3']"]),
        ("layers=[in:4,3.10, 5.1.2,layer4.0,'6']", ["layers=[in:4,'3.10', '5.1.2',layer4.0,'6']"]),
        ("pattern=3", ["pattern='3'"]),
        ("--multirun", ["--multirun"]),
    ],
)
def test_what_a_person_types_is_what_hydra_reads(typed, read):
    from saelab.cli.edge import _spell

    assert _spell(typed) == read
