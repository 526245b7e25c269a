"""A program of the user's as a proposer, MILAN's exemplars and its rule: what is asked, answered, refused and kept."""

import math
import os
import signal
import sys
import textwrap
import time
from pathlib import Path

import cache_world
import numpy as np
import pytest
import torch
from pictures import Pictures, exemplars

from saelab import cache, units
from saelab.errors import UserError
from saelab.label import milan, propose
from saelab.label.outside import answers
from saelab.label.outside.command import CommandProposer
from saelab.label.outside.program import digest_files
from saelab.label.rerank import Candidate, information, order_by_information

IMAGES = Pictures()
UNITS = list(range(6))
EACH = "import json, sys, time\nfor line in sys.stdin:\n    own = json.loads(line); unit = own['unit']\n"


def program(tmp_path: Path, body: str, head: str = EACH) -> str:
    """A command line for a Python program; `body` is what it does with each unit."""
    file = tmp_path / "program.py"
    file.write_text(head + textwrap.indent(textwrap.dedent(body), "    " if head == EACH else ""))
    return f"{sys.executable} {file}"


def ask(tmp_path: Path, command: str, *, chosen: list[int] = UNITS, **settings) -> dict[int, propose.Proposal]:
    proposer = CommandProposer(command, **settings)
    rows = propose.run(proposer, exemplars(), IMAGES, chosen, tmp_path / "made", progress=False)
    return {row.unit: row for row in rows}


ANSWER = 'print(json.dumps({"unit": unit, "labels": [f"thing {unit}", "other"]}), flush=True)\n'


def count_runs(tmp_path: Path) -> str:
    """A line of a program that notes each unit that it is asked about."""
    return f"open({str(tmp_path / 'asked')!r}, 'a').write(f'{{unit}}\\n')\n"


def asked(tmp_path: Path) -> list[int]:
    return [int(line) for line in (tmp_path / "asked").read_text().split()]


def test_a_program_is_given_pictures_and_its_labels_are_proposals(tmp_path):
    body = """
    from PIL import Image
    sizes = {Image.open(p).size for p in own["positives"] + own["contrasts"]}
    print(json.dumps({"unit": unit, "labels": [f"{len(own['positives'])} of {sizes}", "b"], "confidence": 0.5}))
    """
    found = ask(tmp_path, program(tmp_path, body), part_px=64)
    assert set(found) == set(UNITS)
    assert found[3].labels == ("4 of {(64, 64)}", "b") and found[3].status == "answered" and found[3].confidence == 0.5
    assert len(list((tmp_path / "made" / "sheets").glob("*.jpg"))) == 6 * (4 + 4)


def test_it_is_run_once_for_each_batch_and_never_again(tmp_path):
    command = program(tmp_path, count_runs(tmp_path) + ANSWER)
    first = ask(tmp_path, command, batch=4)
    assert ask(tmp_path, command, batch=4) == first
    assert asked(tmp_path) == UNITS and len(list((tmp_path / "made/command").glob("run-*"))) == 2


def test_what_it_answered_before_it_failed_is_kept_and_only_the_rest_is_asked_again(tmp_path):
    """It fails at unit 3 the first time; the file `once` says that there was a first time."""
    once = tmp_path / "once"
    fail = f"import os\nif unit == 3 and not os.path.exists({str(once)!r}):\n"
    fail += f"    open({str(once)!r}, 'w'); print('out of memory', file=sys.stderr); sys.exit(7)\n"
    command = program(tmp_path, fail + count_runs(tmp_path) + ANSWER)
    found = ask(tmp_path, command)
    assert [found[u].status for u in UNITS] == ["answered"] * 3 + ["failed"] * 3
    assert found[4].error == "the command ended with status 7: out of memory"
    said = propose.summary(list(found.values()), UNITS)["text"]
    assert said == "6 units: 3 answered, 3 failed (unit 3: the command ended with status 7: out of memory)"
    again = ask(tmp_path, command)
    assert {row.status for row in again.values()} == {"answered"} and asked(tmp_path) == UNITS
    assert again[4].attempts == 2 and again[1].attempts == 1


def test_a_program_that_hangs_is_ended_with_all_that_it_started(tmp_path):
    body = f"""
    import subprocess
    if unit == 2:
        child = subprocess.Popen(["sleep", "60"])
        open({str(tmp_path / "child")!r}, "w").write(str(child.pid))
        time.sleep(60)
    """
    started = time.monotonic()
    found = ask(tmp_path, program(tmp_path, body + ANSWER), timeout=1)
    assert time.monotonic() - started < 20
    assert [found[u].status for u in UNITS] == ["answered"] * 2 + ["failed"] * 4
    assert found[2].error == "the command gave no answer within 1 s and was ended"
    with pytest.raises(ProcessLookupError):
        for _ in range(100):
            os.kill(int((tmp_path / "child").read_text()), 0)
            time.sleep(0.05)


def test_repeated_strange_and_unreadable_answers_are_a_line_each(tmp_path, caplog):
    body = """
    print(json.dumps({"unit": unit, "labels": [f"first {unit}"]}))
    print(json.dumps({"unit": unit, "labels": ["second"]}))
    if unit == 0:
        print(json.dumps({"unit": 99, "labels": ["stranger"]}))
        print("no json"); print('{"unit": "x"}'); print('{"unit": 1, "labels": 3}'); print("[" * 100000)
    """
    found = ask(tmp_path, program(tmp_path, body))
    assert [found[u].labels for u in UNITS] == [(f"first {u}",) for u in UNITS]
    said = [record.getMessage() for record in caplog.records]
    assert "unit 0, 1, 2, 3, 4, 5: answered again: the first answer counts" in said
    assert "unit 99: not asked about" in said and "4 lines of the command's answers can't be read" in said
    assert len(said) == 3 + 3 and not any("\n" in line for line in said)


def test_a_program_that_answers_nothing_stops_the_run_in_one_line(tmp_path):
    command = program(tmp_path, "sys.exit(3)")
    with pytest.raises(UserError, match=r"ended with status 3; see .*output\.log; run again") as error:
        ask(tmp_path, command, batch=2)
    assert "\n" not in str(error.value)
    assert len(list((tmp_path / "made/command").glob("run-*"))) == 1  # the next batch isn't tried
    assert {row.status for row in propose.read(tmp_path / "made")} == {"failed"}


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"command": ""}, "names no program"),
        ({"command": False}, "quotes within quotes"),
        ({"command": "python '"}, "close its quotes"),
        ({"command": "/no/such/program x"}, "no such program"),
        ({"command": "python @wrong"}, "is none of @exemplars, @answers"),
        ({"command": "python", "timeout": 0}, "proposer.timeout"),
        ({"command": "python", "batch": 0}, "proposer.batch"),
        ({"command": "python", "weight": -1.0}, "proposer.weight"),
    ],
)
def test_wrong_settings_are_one_line_before_anything_starts(settings, words):
    if isinstance(settings["command"], str):
        settings = settings | {"command": settings["command"].replace("python", sys.executable)}
    with pytest.raises(UserError, match=words):
        CommandProposer(**settings)


def test_killed_with_its_program_at_work_nothing_is_lost_and_nothing_runs_twice(tmp_path):
    """saelab is killed; its program lives on and writes its answers. Until it ends, it isn't run again."""
    command = program(tmp_path, f"time.sleep(.2)\n{count_runs(tmp_path)}{ANSWER}")
    process = os.fork()
    if process == 0:
        ask(tmp_path, command)
        os._exit(0)
    while not (tmp_path / "asked").exists():
        time.sleep(0.02)
    os.kill(process, signal.SIGKILL)
    os.waitpid(process, 0)
    with pytest.raises(UserError, match="still at work"):
        ask(tmp_path, command)
    deadline = time.monotonic() + 30
    while time.monotonic() < deadline:
        try:
            found = ask(tmp_path, command)
            break
        except UserError:
            time.sleep(0.1)
    assert [found[u].labels[0] for u in UNITS] == [f"thing {u}" for u in UNITS]
    assert sorted(asked(tmp_path)) == UNITS


def test_a_changed_program_is_another_recipe(tmp_path):
    command = program(tmp_path, ANSWER)
    before = CommandProposer(command).recipe
    program(tmp_path, ANSWER + "pass\n")
    assert CommandProposer(command).recipe != before


class Gone(Pictures):
    """Pictures of which some can't be read any more."""

    def __init__(self, *gone: int) -> None:
        super().__init__()
        self.gone = gone

    def load(self, i: int):
        if i in self.gone:
            raise UserError("image", f"{i}.jpg", "can't be read any more")
        return super().load(i)


def test_a_unit_with_an_unreadable_photo_fails_alone(tmp_path):
    """Unit 1 has photo 5 among its positives, unit 3 photo 36 among its contrasts: the program hears of neither."""
    command = program(tmp_path, count_runs(tmp_path) + ANSWER)
    settings = {"mode": "contrast", "progress": False}
    rows = propose.run(CommandProposer(command), exemplars(), Gone(5, 36), UNITS, tmp_path / "made", **settings)
    assert [row.status for row in rows] == ["answered", "failed", "answered", "failed", "answered", "answered"]
    assert rows[1].error == "the command was not asked: image=5.jpg: can't be read any more" and "36" in rows[3].error
    assert asked(tmp_path) == [0, 2, 4, 5]
    assert propose.summary(rows, UNITS)["text"].startswith("6 units: 4 answered, 2 failed")
    mended = propose.run(CommandProposer(command), exemplars(), Gone(), UNITS, tmp_path / "made", **settings)
    assert {row.status for row in mended} == {"answered"} and asked(tmp_path) == [0, 2, 4, 5, 1, 3]


def test_a_batch_without_a_readable_photo_runs_no_program(tmp_path):
    command = program(tmp_path, count_runs(tmp_path) + ANSWER)
    with pytest.raises(UserError, match=r"all 2 units failed, .* was not asked: image=1\.jpg"):
        propose.run(CommandProposer(command), exemplars(), Gone(1, 5), [0, 1], tmp_path / "made", progress=False)
    assert not (tmp_path / "asked").exists() and not list((tmp_path / "made/command").glob("run-*"))


# ---- MILAN: exemplars and rule -------------------------------------------------------------------------------------


# ---- MILAN: exemplars and rule -------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """Pictures, the maps of a layer's neurons over them, and the neurons' pooled activations."""
    root = tmp_path_factory.mktemp("milan")
    images = cache_world.pictures(root / "pictures", 40)
    store = cache.write(images, cache_world.host(), ["conv"], root)["conv"]
    made = units.neuron(store, root)
    acts = units.UnitActivations.load(made.path)
    maps = units.HeatMaps(store, units.Projection.load(made.path), acts.acts.amax(0))
    return images, maps, acts


READ = """
import csv, sys
import numpy as np

folder, answers = sys.argv[1:]
images, masks = (np.load(f"{folder}/{name}.npy") for name in ("images", "masks"))
units, ids = np.load(f"{folder}/units.npy"), np.loadtxt(f"{folder}/ids.csv", delimiter=",", ndmin=2)
activations = np.loadtxt(f"{folder}/activations.csv", delimiter=",", ndmin=2)
assert images.dtype == masks.dtype == np.uint8 and images.ndim == masks.ndim == 5
assert images.shape[:2] == masks.shape[:2] == ids.shape == activations.shape and images.shape[3:] == masks.shape[3:]
assert images.shape[2] == 3 and masks.shape[2] == 1 and set(np.unique(masks)) <= {0, 1} and units.ndim == 1
assert (np.diff(activations, axis=1) <= 0).all()
with open(answers, "w", newline="") as file:
    rows = csv.writer(file)
    rows.writerow(["layer", "unit", "description"])
    print("this is for people")
    for unit, own, mask in zip(units, images, masks):
        rows.writerow(["conv", unit, f"{own.shape[0]} pictures, {own.shape[-1]} pixels"])
"""


def test_a_program_reads_exemplars_as_the_authors_tools_do_and_answers_in_their_csv(world, tmp_path):
    """The checks are those of MILAN's TopImagesDataset; descriptions.csv is what its own script writes."""
    images, maps, acts = world
    chosen = [0, 2, 3]
    found = acts.acts[images.ids("mine")].T.topk(4)
    ids = torch.from_numpy(images.ids("mine"))[found.indices]
    shown = propose.ShownExemplars(ids, torch.full_like(ids, -1), found.values)
    proposer = CommandProposer(program(tmp_path, READ, head="") + " @exemplars @answers", shown=4)
    rows = propose.run(proposer, shown, images, chosen, tmp_path / "made", heat=maps, mode="positives", progress=False)
    assert [row.labels for row in rows] == [("4 pictures, 224 pixels",)] * 3
    assert not (tmp_path / "made/command/run-001/exemplars").exists()  # they take space and can be made again
    with pytest.raises(UserError, match="needs maps"):
        propose.run(proposer, shown, images, chosen, tmp_path / "flat", mode="positives", progress=False)


def test_exemplars_leave_out_the_unit_whose_photo_is_gone(world, tmp_path):
    """Of three units the middle one's last photo can't be read: the other two are rows 0 and 1 of the arrays."""
    images, maps, _ = world
    ids = torch.from_numpy(images.ids("mine"))[: 3 * 4].reshape(3, 4)
    lost = Gone(int(ids[1, 3]))
    see = lost.load
    lost.load = lambda i: see(i) and images.load(i)
    shown = propose.ShownExemplars(ids, torch.full_like(ids, -1), torch.ones(3, 4))
    proposer = CommandProposer(program(tmp_path, READ, head="") + " @exemplars @answers", shown=4)
    rows = propose.run(proposer, shown, lost, [0, 1, 2], tmp_path / "made", heat=maps, mode="positives", progress=False)
    assert [row.labels for row in rows] == [("4 pictures, 224 pixels",), (), ("4 pictures, 224 pixels",)]
    assert rows[1].status == "failed" and f"{int(ids[1, 3])}.jpg" in rows[1].error


def test_exemplars_are_the_strongest_pictures_as_the_host_saw_them_with_masks_above_the_level(world, tmp_path):
    images, maps, acts = world
    mine = images.ids("mine")
    chosen = milan.strongest(acts.rows(mine), mine, [1, 4], k=15)
    for own in chosen:
        order = np.argsort(-acts.acts[mine, own.unit].numpy(), kind="stable")[:15]
        assert list(own.images) == mine[order].tolist()
    milan.write_exemplars(tmp_path / "out", chosen, images, maps, progress=False)
    pictures, masks = np.load(tmp_path / "out/images.npy"), np.load(tmp_path / "out/masks.npy")
    assert pictures.shape == (2, 15, 3, 224, 224) and masks.shape == (2, 15, 1, 224, 224)
    first = images.load(chosen[0].images[0]).resize((15, 15), 3).resize((224, 224), 2)
    assert np.abs(pictures[0, 0].transpose(1, 2, 0).astype(int) - np.asarray(first)).max() <= 1
    level = float(maps.levels([1])[0])
    up = torch.nn.functional.interpolate(
        maps.activations(1, chosen[0].images[0])[None, None], size=224, mode="bilinear", align_corners=False
    )[0, 0]
    assert (masks[0, 0, 0] == (up > level).numpy()).all() and 0 < masks[0, 0].mean() < 1
    np.testing.assert_allclose(
        np.loadtxt(tmp_path / "out/activations.csv", delimiter=","), [own.activations for own in chosen], rtol=1e-5
    )


def test_exemplars_that_were_cut_off_leave_no_arrays_and_earlier_ones_as_they_were(world, tmp_path):
    images, maps, acts = world
    mine = images.ids("mine")
    first, other = (milan.strongest(acts.rows(mine), mine, some, k=2) for some in ([0, 1], [2, 3]))
    milan.write_exemplars(tmp_path / "there", first, images, maps, progress=False)
    before = {file.name: file.read_bytes() for file in (tmp_path / "there").iterdir()}
    gone = Gone(other[1].images[0])
    see = gone.load
    gone.load = lambda i: see(i) and images.load(i)
    for place in ("there", "new"):
        with pytest.raises(UserError, match="jpg"):
            milan.write_exemplars(tmp_path / place, other, gone, maps, progress=False)
    assert {file.name: file.read_bytes() for file in (tmp_path / "there").iterdir()} == before
    assert not list((tmp_path / "new").iterdir())


def test_one_percent_of_a_units_places_lie_above_its_level(world):
    images, maps, _ = world
    every = torch.stack([torch.stack([maps.activations(u, int(i)) for i in images.ids("mine")]) for u in range(5)])
    above = (every > maps.levels(range(5))[:, None, None, None]).float().mean((1, 2, 3))
    assert (above <= 0.01).all() and (above > 0.009).all()


def test_units_with_few_pictures_are_filled_up_and_layers_without_places_are_refused(world, tmp_path):
    images, maps, _ = world
    chosen = [milan.Strongest(0, (3, 5), (2.0, 1.0)), milan.Strongest(1, (4,), (1.0,))]
    milan.write_exemplars(tmp_path / "out", chosen, images, maps, progress=False)
    pictures, masks = np.load(tmp_path / "out/images.npy"), np.load(tmp_path / "out/masks.npy")
    assert pictures[1, 1].max() == 0 and masks[1, 1].max() == 0
    assert np.loadtxt(tmp_path / "out/ids.csv", delimiter=",").tolist() == [[3, 5], [4, -1]]
    flat = cache.adopt(np.ones((40, 3), np.float32), tmp_path / "flat")
    with pytest.raises(UserError, match="come from no host"):
        milan.write_exemplars(tmp_path / "no", chosen, images, units.HeatMaps(flat, units.Projection(), torch.ones(3)))


def test_information_by_hand():
    """log .5 - .2 log .25 = -.4159; log .3 - .2 log .01 = -.2829; log .2 - .2 log .001 = -.2279."""
    given = [(0.5, 0.25), (0.3, 0.01), (0.2, 0.001)]
    own = [Candidate(f"d{i}", math.log(p), math.log(q)) for i, (p, q) in enumerate(given)]
    np.testing.assert_allclose([information(c) for c in own], [-0.4159, -0.2829, -0.2279], atol=1e-4)
    assert [c.text for c in order_by_information(own)] == ["d2", "d1", "d0"]
    assert [c.text for c in order_by_information(own, 0)] == ["d0", "d1", "d2"]  # by likelihood
    np.testing.assert_allclose([information(c, 1) for c in own], np.log([2, 30, 200]))  # pointwise mutual information
    ruled_out = Candidate("no", -math.inf, -math.inf)
    assert order_by_information([ruled_out, *own])[-1] is ruled_out
    with pytest.raises(UserError, match="at most 0"):
        order_by_information([Candidate("bad", 0.1, -1)])


def test_log_probabilities_of_a_program_put_its_labels_in_order(tmp_path):
    body = """
    given = [("objects", -0.7, -1.4), ("cats", -1.2, -4.6)]
    own = [dict(text=t, log_p=p, log_prior=q) for t, p, q in given]
    print(json.dumps({"unit": unit, "candidates": own if unit else [{"text": "x", "log_p": "?"}]}))
    """
    assert ask(tmp_path, program(tmp_path, body))[1].labels == ("cats", "objects")
    (tmp_path / "two").mkdir()
    found = ask(tmp_path / "two", program(tmp_path, body), weight=0)
    assert found[1].labels == ("objects", "cats") and found[0].status == "failed"


@pytest.mark.parametrize(
    ("text", "units", "broken"),
    [
        ('loading the model\n{"unit": 3, "labels": ["cat"]}\n{"unit": 4, "labels": ["a\u2028b"]}\n', [3, 4], 1),
        ("unit,description\n3,cat\n\u00b2,dog\n99999999999999999999,dog\n", [3], 2),
        ('unit,description\n3,cat\n4,"' + "x" * 140_000, [3], 1),
        ('{"unit": 3, "candidates": [{"text": "a", "log_p": ' + "1" * 400 + ', "log_prior": 0}]}\n', [], 1),
    ],
    ids=["a banner", "odd numbers", "an open quote", "a number beyond all"],
)
def test_what_a_program_left_is_read_as_far_as_it_goes(tmp_path, text, units, broken):
    (tmp_path / "output").write_text(text, encoding="utf-8")
    found = list(answers.read_file(tmp_path / "output", 0.2))
    assert [own.unit for own in found if isinstance(own, answers.Answer)] == units
    assert sum(isinstance(own, answers.Unreadable) for own in found) == broken


def test_a_command_that_is_a_script_changes_with_it(tmp_path):
    script = tmp_path / "describe.py"
    script.write_text("#!/bin/sh\n")
    before = digest_files([str(script), "sh"])
    script.write_text("#!/bin/sh\necho\n")
    assert before != digest_files([str(script), "sh"]) and set(before) == {str(script)}
