"""The real scripts, from a folder of pictures to the report: contracts, reuse, a kill in the middle, bad input."""

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

ROOT = Path(__file__).resolve().parents[2]
SMALL = (
    "layers=[_blocks.15]",
    "seeds=[0,1]",
    "sae.latents=160",
    "sae.train.epochs=3",
    "label.nulls=20",
    "label.mining.k=5",
    "label.vocabulary=[classes,captions]",
    "workers=0",
    "device=cpu",
)
SCORERS = {"contrast_evidence", "csp", "csp_0.5", "semanticlens", "pearson", "cos_cubed"}


def command(script: str, folder: Path, pictures: Path, *more: str) -> list[str]:
    """A script as a user starts it, its pictures and its artifacts in places of their own."""
    start = [sys.executable, str(ROOT / "scripts" / f"{script}.py"), "images=folder", f"images.root={pictures}"]
    return [*start, f"root={folder}", "name=small", *SMALL, *more]


def run(script: str, folder: Path, pictures: Path, *more: str, check: bool = True) -> subprocess.CompletedProcess:
    """That command, run to its end."""
    given = command(script, folder, pictures, *more)
    done = commands.run(given, cwd=folder.parent)
    assert not check or done.returncode == 0, done.stdout + done.stderr
    return done


@pytest.fixture(scope="module")
def pictures(tmp_path_factory, request) -> Path:
    """80 real photos where there are any, else noisy coloured squares; one file is empty, one is no picture."""
    folder = tmp_path_factory.mktemp("in") / "pictures"
    photos = Path(os.environ.get("SAELAB_SHARED", ROOT.parent / "shared")) / "images" / "imagenet-samples"
    if photos.is_dir():
        for i, photo in enumerate(sorted(photos.glob("*.jpg"))[::12]):
            target = folder / ("animals" if i < 34 else "things") / photo.name
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(photo, target)
            target.with_suffix(".txt").write_text(f"A {photo.stem.split('_', 1)[1].replace('_', ' ')}.")
    else:
        from small_images import coloured

        coloured(folder, 80, size=64)
    (folder / "empty.png").write_bytes(b"")
    (folder / "broken.jpg").write_bytes(b"\xff\xd8\xff\xe0 this is no picture")
    return folder


@pytest.fixture(scope="module")
def finished(pictures, tmp_path_factory) -> Path:
    """The artifacts of one whole run."""
    folder = tmp_path_factory.mktemp("out") / "runs"
    run("quickstart", folder, pictures)
    return folder


@pytest.mark.slow
def test_a_run_leaves_what_the_plan_promises(finished):
    facts = json.loads((finished / "small.json").read_text())
    assert [b["name"] for b in facts["bases"]] == ["neuron", "sae seed 0", "sae seed 1", "random rotation"]
    images = [json.loads(line) for line in (finished / facts["images"] / "images.jsonl").read_text().splitlines()]
    split = {row["id"]: row["split"] for row in images}
    skipped = dict(json.loads((finished / facts["images"] / "images.json").read_text())["skipped"])
    assert set(skipped) == {"empty.png", "broken.jpg"}
    vocabularies = set()
    for basis in facts["bases"]:
        folder = finished / basis["labels"]
        rows = [json.loads(line) for line in (folder / "labels.jsonl").read_text().splitlines()]
        words = json.loads((folder / "vocabulary.json").read_text())["labels"]
        vocabularies.add(tuple(words))
        assert [row["unit"] for row in rows] == list(range(len(rows)))
        for row in rows:
            assert len(row["positives"]) == len(row["contrasts"]) == 5
            assert {split[i] for i in row["positives"] if i >= 0} <= {"mine"}
            assert {split[i] for i in row["contrasts"] if i >= 0} <= {"mine"}
            assert not set(row["positives"]) & (set(row["contrasts"]) - {-1})
            assert set(row["scores"]) <= SCORERS
            if row["label"] is None:
                assert row["abstained"]
                continue
            final = row["scores"][row["final"]]
            assert row["label"] == final["label"] and final["rank"] == 1 and row["label"] in words
            assert row["abstained"] == (final["null_percentile"] < 0.95)
            for entry in row["scores"].values():
                assert entry["margin"] >= 0 and 0 <= entry["null_percentile"] <= 1
                assert (entry["rank"] == 1) == (entry["label"] == row["label"]) or entry["margin"] == 0
        evaluated = (finished / basis["evaluation"] / "evaluation.jsonl").read_text().splitlines()
        assert len(evaluated) == len(rows)
    assert len(vocabularies) == 1  # every basis chose from the same labels
    assert (finished / "report" / "small" / "index.html").is_file()
    assert json.loads((finished / facts["comparison"] / "comparison.json").read_text())["conclusion"]


@pytest.mark.slow
def test_the_same_run_again_makes_nothing_new(finished, pictures):
    before = {p: p.stat().st_mtime_ns for p in finished.rglob("*.safetensors")}
    again = run("quickstart", finished, pictures)
    assert "building" not in again.stderr and "reused" in again.stderr
    assert {p: p.stat().st_mtime_ns for p in finished.rglob("*.safetensors")} == before
    alone = run("compare", finished, pictures)
    assert "building" not in alone.stderr and "_blocks.15:" in alone.stdout


def killed_at(sign: str, given: list[str], folder: Path) -> None:
    """Start a command and kill it in the middle of a stage: when a file that this stage writes early is there."""
    going = commands.start(given, cwd=folder.parent)
    while not list(folder.glob(sign)):
        assert going.poll() is None, f"ended before it wrote {sign}"
        time.sleep(0.02)
    going.kill()
    assert list(folder.glob(sign)), f"the stage of {sign} was over before the kill"


@pytest.mark.slow
def test_a_run_killed_again_and_again_ends_with_the_same_labels(finished, pictures, tmp_path):
    folder = tmp_path / "runs"
    for sign in ("activations/*.partial/tokens.h5", "sae/*.partial/metrics.jsonl", "labels/*.partial/recipe.json"):
        killed_at(sign, command("quickstart", folder, pictures), folder)
    run("quickstart", folder, pictures)
    facts, ours = (json.loads((f / "small.json").read_text()) for f in (finished, folder))
    for a, b in zip(facts["bases"], ours["bases"], strict=True):
        for file in ("labels.jsonl", "exemplars.safetensors"):
            assert (finished / a["labels"] / file).read_bytes() == (folder / b["labels"] / file).read_bytes(), a["name"]
        assert (
            a["sae"] is None
            or sorted((finished / a["sae"]).glob("sae.safetensors"))[0].read_bytes()
            == (folder / b["sae"] / "sae.safetensors").read_bytes()
        )


BAD = {
    "unknown layer": (["layers=[_blocks.99]"], r"_blocks\.99.*_blocks\.9"),
    "k above the latents": (["sae.latents=10", "sae.k=11"], r"k=11.*10"),
    "a policy that the layer can't give": (["policy=cls"], r"policy=cls"),
    "fewer images than k": (["label.mining.k=500"], r"k=500.*mine split"),
    "unknown pooling": (["pool=median"], r"pool=median.*max"),
    "unknown scorer of ours": (["label.final=invert"], r"final=invert.*not among"),
    "a missing vocabulary": (["label.vocabulary=[file:nowhere.txt]"], r"nowhere\.txt.*no such file"),
    "an unknown encoder": (["encoder.name=clip"], r"encoder=clip.*conse"),
    "an unknown device": (["device=tpu"], r"device=tpu"),
}


@pytest.mark.slow
@pytest.mark.parametrize("case", BAD, ids=lambda case: case.replace(" ", "_"))
def test_bad_settings_get_one_line_and_leave_artifacts_alone(finished, pictures, case):
    before = set(finished.rglob("complete.json"))
    settings, words = BAD[case]
    done = run("label", finished, pictures, *settings, check=False)
    assert done.returncode == 2, done.stderr
    told = [line for line in done.stderr.splitlines() if line.startswith("saelab: ")]
    assert len(told) == 1 and re.search(words, told[0]), done.stderr
    assert "Traceback" not in done.stderr
    assert before <= set(finished.rglob("complete.json"))


@pytest.mark.slow
def test_an_empty_folder_and_a_damaged_artifact_are_told_with_the_remedy(finished, pictures, tmp_path):
    (tmp_path / "none").mkdir()
    done = run("quickstart", tmp_path / "runs", tmp_path / "none", check=False)
    assert done.returncode == 2 and "Traceback" not in done.stderr and str(tmp_path / "none") in done.stderr
    copy = tmp_path / "copied"
    shutil.copytree(finished, copy)
    facts = json.loads((copy / "small.json").read_text())
    cut = next(copy.glob("activations/*/tokens.h5"))
    os.truncate(cut, cut.stat().st_size - 1000)
    done = run("quickstart", copy, pictures, check=False)
    assert done.returncode == 2 and "damaged: tokens.h5" in done.stderr and "delete" in done.stderr
    shutil.rmtree(cut.parent)
    sae = copy / facts["bases"][1]["sae"] / "sae.safetensors"
    os.truncate(sae, 100)
    done = run("quickstart", copy, pictures, check=False)
    assert done.returncode == 2 and "sae.safetensors" in done.stderr and "Traceback" not in done.stderr


# A disk of its own, in a name space of its own: a memory file system on which only some pages are left.
FULL_DISK = """
set -e
mount -t tmpfs -o size=1g none "$1"
cd "$1"
cp -r "$2" runs
rm -rf "runs/$3"
head -c $(( ($(df --output=avail -k . | tail -1) - 40) * 1024 )) /dev/zero > filler
shift 3
"$@" || status=$?
find . -name complete.json | sort
exit $status
"""


@pytest.mark.slow
@pytest.mark.parametrize("stage", ["sae", "labels", "comparison"])
def test_a_full_disk_is_one_line_and_finished_work_stays(finished, pictures, tmp_path, stage):
    own = ["unshare", "--user", "--map-root-user", "--mount"]
    if (
        not shutil.which("unshare")
        or subprocess.run([*own, "mount", "-t", "tmpfs", "none", tmp_path], check=False).returncode
    ):
        pytest.skip("needs a file system of its own: Linux with user name spaces")
    given = command("quickstart", tmp_path / "runs", pictures)
    shell = [*own, "sh", "-c", FULL_DISK, "sh", str(tmp_path), str(finished), stage, *given]
    done = subprocess.run(shell, cwd=tmp_path, capture_output=True, text=True, check=False)
    told = [line for line in done.stderr.splitlines() if line.startswith("saelab: ")]
    assert done.returncode == 2 and len(told) == 1 and "disk full" in told[0], done.stderr
    assert "Traceback" not in done.stderr
    kept = {str(p.parent.relative_to(finished)) for p in finished.rglob("complete.json")}
    left = {line.removeprefix("./runs/").removesuffix("/complete.json") for line in done.stdout.splitlines()}
    assert {p for p in kept if not p.startswith(stage)} <= left
