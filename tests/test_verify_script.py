"""scripts/verify.py on a finished run: what it asks, what it keeps, what it prints, and what it refuses."""

import json
import os
import re
import shutil
import subprocess
import sys
import time
from pathlib import Path

import commands
import pytest
import torch
from report_fixture import World, crops, write_run
from safetensors.torch import save_file
from servers import FaultServer

from saelab import artifacts, integrity
from saelab.label.selection import choose
from saelab.report import reading
from saelab.units import UnitActivations

ROOT = Path(__file__).resolve().parents[1]
ANSWER = '{"fits": [1, 4, 5], "choice": 2}'  # to either question


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> Path:
    """A small run whose labels say, as real ones do, in which embeddings they were made."""
    path = write_run(tmp_path_factory.mktemp("run"))

    def build(folder: Path) -> None:
        save_file({"images": World.of(crops()).e}, str(folder / "embeddings.safetensors"))

    made = artifacts.ensure(path.parent, "embeddings", "crops-pixels", {"of": "fixture"}, build)
    facts = path.read_text()
    for folder in sorted((path.parent / "labels").iterdir()):
        if folder.is_dir():  # made again under the name of a recipe that names the embeddings
            recipe = artifacts.read_json(folder / "recipe.json") | {"encoder": made.digest}
            listed = set(artifacts.read_json(folder / "complete.json")) - {"recipe.json"}

            def copy(to: Path, folder: Path = folder, listed: set[str] = listed) -> None:
                for name in listed:
                    (to / name).parent.mkdir(parents=True, exist_ok=True)
                    shutil.copy(folder / name, to / name)

            again = artifacts.ensure(path.parent, "labels", folder.name.rpartition("-")[0], recipe, copy)
            facts = facts.replace(f"labels/{folder.name}", f"labels/{again.path.name}")
    path.write_text(facts)
    return path


def command(run: Path, *more: str) -> list[str]:
    return [sys.executable, str(ROOT / "scripts" / "verify.py"), f"run={run}", *more]


def openai(server: FaultServer, *more: str) -> tuple[str, ...]:
    return "proposer=openai", f"proposer.base_url={server.url}", "proposer.model=toy", "proposer.backoff=0.01", *more


def verify(run: Path, *more: str) -> subprocess.CompletedProcess:
    env = {**os.environ, "OPENAI_API_KEY": "sk-very-secret", "OMP_NUM_THREADS": "1"}
    return commands.run(command(run, *more), env=env)


def rows(run: Path, basis: str, test: str, proposer: str = "openai") -> list[dict]:
    (file,) = (run.parent / "verification").glob(f"{basis}-{proposer}-*/{test}.jsonl")
    return [json.loads(line) for line in file.read_text().splitlines()]


def forget(run: Path) -> None:
    for folder in ("verification", "answers"):
        shutil.rmtree(run.parent / folder, ignore_errors=True)


def test_both_tests_are_asked_scored_and_kept_by_unit(run):
    from sklearn.metrics import balanced_accuracy_score, f1_score

    forget(run)
    with FaultServer(answer=lambda question: ANSWER, key="sk-very-secret") as server:
        done = verify(run, *openai(server, "bases=[neuron]", "proposer.prices.input=2", "proposer.prices.output=10"))
        assert done.returncode == 0, done.stderr
        asked = len(server.asked)
        assert set(server.paid.values()) == {1}
    found = reading.read(run)
    basis, ids = found.bases[0], found.images.ids("show")
    acts = torch.as_tensor(UnitActivations.load(basis.units).rows(ids).numpy())
    detections, choices = rows(run, "neuron", "detection"), rows(run, "neuron", "second_look")
    labelled = [row["unit"] for row in basis.labels if row["label"] is not None]
    fires = [unit for unit in labelled if acts[:, unit].max() > 0]
    assert [row["unit"] for row in detections] == fires and asked == len(detections) + len(choices)
    for row in detections:
        strongest = ids[acts[:, row["unit"]].argsort(descending=True, stable=True).numpy()[:4]]
        assert row["label"] == basis.labels[row["unit"]]["label"]
        assert {i for i, on in zip(row["images"], row["fires"]) if on} <= set(strongest.tolist())
        assert set(row["images"]) <= set(ids.tolist()) and row["said"] == [1, 4, 5]
        said = [number in (1, 4, 5) for number in range(1, len(row["images"]) + 1)]
        assert row["balanced_accuracy"] == pytest.approx(balanced_accuracy_score(row["fires"], said))
        assert row["f1"] == pytest.approx(f1_score(row["fires"], said))
        tokens = 20 + 100 * len(row["images"])  # what the server counts
        assert row["record"]["prompt_tokens"] == tokens
        assert row["record"]["cost"] == pytest.approx((2 * tokens + 10 * 7) / 1e6)
    for row in choices:
        csp = basis.labels[row["unit"]]["scores"]["csp"]
        best = [csp["label"], *(label for label, _ in csp["runners_up"])][:5]
        assert sorted(row["candidates"]) == sorted(best) and row["label"] == row["candidates"][1]
        assert row["positives"] and set(row["positives"]) <= set(found.images.ids("mine").tolist())
    mean = sum(row["balanced_accuracy"] for row in detections) / len(detections)
    line = next(line for line in done.stdout.splitlines() if line.startswith("neuron  detect"))
    assert f" {mean:.3f} " in line and f" {len(detections)} " in line and "$" in line
    for file in (run.parent / "verification").rglob("*"):
        assert not file.is_file() or b"sk-very-secret" not in file.read_bytes()
    assert "sk-very-secret" not in done.stdout + done.stderr
    shown = detections[0]["record"]["request"]
    assert any(shown in file.name for file in (run.parent / "answers").rglob("*.json"))


def test_more_units_are_added_and_a_kill_costs_nothing_that_was_answered(run):
    forget(run)
    with FaultServer(answer=lambda question: ANSWER, faults=lambda n: ("hang",) if n == 12 else ()) as server:
        given = openai(server, "bases=[neuron]", "proposer.concurrency=1")
        few = verify(run, *given, "proposer.units=top:4")
        assert few.returncode == 0 and len(server.asked) == 8
        first = commands.start(command(run, *given))
        deadline = time.monotonic() + 600
        while len(server.asked) < 13 and time.monotonic() < deadline and first.poll() is None:
            time.sleep(0.05)
        first.kill()
        before = sum(server.paid.values())
        assert before == 12
        server.faults = lambda n: ()
        server.left.clear()
        done = verify(run, *given)
        assert done.returncode == 0, done.stderr
        assert set(server.paid.values()) == {1}
        detections, choices = rows(run, "neuron", "detection"), rows(run, "neuron", "second_look")
        assert sum(server.paid.values()) == len(detections) + len(choices) > 20
        again = verify(run, *given)
        assert again.stdout == done.stdout and sum(server.paid.values()) == len(detections) + len(choices)


@pytest.mark.slow
def test_one_budget_for_all_bases_and_a_dry_run_that_sends_nothing(run):
    forget(run)
    with FaultServer(answer=lambda question: ANSWER) as server:
        two = "bases=[neuron,'random rotation']"
        dry = verify(run, *openai(server, "proposer.dry_run=true", two))
        assert dry.returncode == 0 and not server.bodies and not (run.parent / "verification").exists()
        told = re.findall(r"^(.+)  (detect|second_look): (\d+) requests, about (\d+)", dry.stdout, re.MULTILINE)
        assert len(told) == 2 * 2 and all(int(n) > 0 and int(tokens) > 0 for _, _, n, tokens in told)
        taken = int(told[0][3]) // 2  # the server counts fewer tokens than the estimate
        some = verify(run, *openai(server, f"proposer.units='tokens:{taken}'", "proposer.concurrency=1", two))
        assert some.returncode == 0, some.stderr
        spent = sum(usage["prompt_tokens"] + usage["completion_tokens"] for usage in of(run))
        assert 0 < spent <= taken
        table = [
            re.split(r"  +", line) for line in some.stdout.splitlines() if re.match(r".+  (detect|second_look) ", line)
        ]
        wanted, answered, not_sent = (sum(int(line[i]) for line in table) for i in (2, 3, 7))
        assert len(table) == 4 and not_sent == wanted - answered > 0 and answered == len(of(run))
        assert int(table[-1][7]) > int(table[0][7]) == 0  # the first went first, little is left for the last


def of(run: Path) -> list[dict]:
    files = (run.parent / "verification").rglob("*.jsonl")
    return [json.loads(line)["record"] for file in files for line in file.read_text().splitlines()]


def test_tests_without_labels_and_framed_regions_run_resume_and_stand_beside_the_others(run):
    from saelab.report import vlm_answers

    forget(run)
    answer = '{"intruder": 1, "fits": [1, 2]}'
    with FaultServer(answer=lambda question: answer) as server:
        given = openai(server, "bases=[neuron]", "proposer.units=top:6", "tests=[intruder,fuzzing,embedding]")
        dry = verify(run, *given, "proposer.dry_run=true")
        assert dry.returncode == 0 and not server.bodies, dry.stderr
        planned = {test: int(n) for test, n in re.findall(r"^neuron  (\w+): (\d+) requests", dry.stdout, re.MULTILINE)}
        done = verify(run, *given)
        assert done.returncode == 0, done.stderr
        trials, frames = rows(run, "neuron", "intruder"), rows(run, "neuron", "fuzzing")
        assert planned == {"intruder": len(trials), "fuzzing": len(frames), "embedding": 0} and trials
        assert len(server.paid) == len(trials) + len(frames) and set(server.paid.values()) == {1}
        more = verify(run, *given, "trials=6")
        assert more.returncode == 0, more.stderr
        again = rows(run, "neuron", "intruder")
        assert [row for row in again if row["trial"] < 5] == trials
        assert len(server.paid) == len(again) + len(frames) and set(server.paid.values()) == {1}
    basis = reading.read(run).bases[0]
    for row in again:
        silent = row["images"][row["intruder"] - 1]
        mined = basis.exemplars["positives"][row["unit"]].tolist()
        assert silent in basis.exemplars["contrasts"][row["unit"]] and silent not in mined
        assert set(row["images"]) - {silent} <= set(mined) and row["correct"] == (row["intruder"] == 1)
    share = sum(row["correct"] for row in trials) / len(trials)
    line = next(line for line in done.stdout.splitlines() if line.startswith("neuron  intruder"))
    assert f" {share:.3f} [" in line and ", chance 0.200, encoder " in line
    scored = rows(run, "neuron", "embedding")
    assert [row["unit"] for row in scored] == list(range(len(basis.labels)))  # units without a label too
    assert any(row["auroc"] is not None for row in scored)
    page = {record["test"]: record for record in vlm_answers.of_unit(basis.verified[again[0]["unit"]])}
    own = [row for row in again if row["unit"] == again[0]["unit"]]
    assert page["intruder"]["correct"] == sum(row["correct"] for row in own) and page["intruder"]["trials"] == len(own)
    assert page["embedding"].get("auroc") == scored[own[0]["unit"]]["auroc"]
    free = verify(run, "proposer=none", "tests=[embedding]", "bases=[neuron]")
    assert free.returncode == 0 and rows(run, "neuron", "embedding", "none") == scored, free.stderr


@pytest.mark.slow
def test_recorded_answers_of_another_run_give_the_same_rows(run, tmp_path):
    forget(run)
    with FaultServer(answer=lambda question: ANSWER) as server:
        assert verify(run, *openai(server, "bases=['sae seed 0']", "proposer.units=top:6")).returncode == 0
    first = {test: rows(run, "sae_seed_0", test) for test in ("detection", "second_look")}
    answers = tmp_path / "answers.jsonl"
    answers.write_text("".join(json.dumps(row) + "\n" for test in first.values() for row in test))
    more = ("proposer=recorded", f"proposer.answers={answers}", "proposer.units=top:6")
    done = verify(run, *more, "bases=['sae seed 0']")
    assert done.returncode == 0, done.stderr
    for test, before in first.items():
        now = rows(run, "sae_seed_0", test, "recorded")
        assert [{**row, "record": None} for row in now] == [{**row, "record": None} for row in before]
    several = verify(run, *more)
    assert several.returncode == 2 and "recorded answers are those of one basis" in several.stderr


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        (["bases=[neurons]"], "bases=neurons: is not in this run; did you mean neuron"),
        (["bases=[]"], "bases=[]: at least one is needed"),
        (
            ["proposer=tagger"],
            "proposer=tagger: answers no questions about labels; use one of openai, transformers, recorded",
        ),
        (["labels_of=csb"], "labels_of=csb: unknown"),
        (["labels_of=pearson"], "labels_of=pearson: did not label this run; it has csp, csp_0.5, semanticlens"),
        (["per_side=50"], "per_side=50: needs 100 images, the split has"),
        (["proposer.units=everything"], "units=everything: is not a term"),
        (["proposer.base_url=http://127.0.0.1:9/v1"], "no server answers there"),
    ],
)
def test_a_mistake_is_one_line(run, settings, says, tmp_path):
    model = [] if "proposer=tagger" in settings else ["proposer.model=toy"]
    done = verify(run, *model, "bases=[neuron]", *settings)
    assert done.returncode == 2 and says in done.stderr
    told = [line for line in done.stderr.splitlines() if line.startswith("saelab: ")]
    assert len(told) == 1 and "Traceback" not in done.stderr


@pytest.mark.slow
def test_a_unit_that_the_scorer_can_not_judge_is_left_out_of_the_second_look(run, tmp_path):
    """A unit without a contrast has a label by a scorer of all images, and none by CSP."""
    shutil.copytree(run.parent, tmp_path / "runs")
    copy = tmp_path / "runs" / run.name
    basis = reading.read(copy).bases[0]
    tables = (copy.parent / "labels").glob("*/labels.jsonl")
    file = next(table for table in tables if artifacts.read_jsonl(table) == basis.labels)
    found = artifacts.read_jsonl(file)
    unit = next(row["unit"] for row in found if row["label"] is not None)
    del found[unit]["scores"]["csp"]
    found[unit]["final"] = next(iter(found[unit]["scores"]))
    artifacts.write_jsonl(file, found)
    sizes = artifacts.read_json(file.with_name("complete.json"))
    artifacts.write_json(file.with_name("complete.json"), sizes | {"labels.jsonl": integrity.entry(file)})
    with FaultServer(answer=lambda question: ANSWER) as server:
        done = verify(copy, *openai(server, "bases=[neuron]", "tests=[second_look]"))
    assert done.returncode == 0, done.stderr
    asked = {row["unit"] for row in rows(copy, "neuron", "second_look")}
    assert asked and unit not in asked


def test_units_are_sent_in_the_order_of_the_choice(run):
    forget(run)
    with FaultServer(answer=lambda question: ANSWER) as server:
        given = ("bases=[neuron]", "proposer.units=top:5", "tests=[detect]", "proposer.concurrency=1")
        assert verify(run, *openai(server, *given)).returncode == 0
        told = [re.search(r"show this: (.+)\?", body["messages"][0]["content"][-1]["text"]) for body in server.bodies]
    basis = reading.read(run).bases[0]
    strength = basis.exemplars["activations"].mean(1).tolist()
    units, _ = choose("top:5", len(basis.labels), strength=strength)
    asked = [match[1] for match in told if match]
    assert sorted(row["unit"] for row in rows(run, "neuron", "detection")) == sorted(units)
    assert asked[-1] == basis.labels[units[-1]]["label"]
