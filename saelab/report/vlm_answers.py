"""Models' answers about a unit: proposals with the pictures that were sent, and verification."""

import dataclasses
from pathlib import Path
from typing import Any

from PIL import Image

from saelab import bars, verify
from saelab.artifacts import digest, file_digest, read_json, read_jsonl
from saelab.label.proposal import answers_digest

TESTS = {name: f"{file}.jsonl" for name, file in (("detect", "detection"), ("second_look", "second_look"))}
TESTS |= {name: f"{name}.jsonl" for name in ("fuzzing", "intruder", "embedding")}
OF_PROPOSAL = ("labels", "status", "proposer", "mode", "raw", "evidence", "confidence", "error")
OF_RECORD = ("model", "prompt_tokens", "completion_tokens", "cost", "cached", "attempts", "seconds", "error")
LONGEST = 1000  # characters of a tool's answer that a page shows
BUDGET = 50 * 2**20  # bytes that all sheets may take together
SIDES = {896: 92_000, 640: 53_000, 448: 29_000, 320: 17_000, 224: 9_500, 144: 5_000}  # side -> bytes of a 3x3 sheet

Rows = dict[int, list[dict[str, Any]]]  # unit -> rows


def proposals(labels: Path) -> Rows:
    """Proposals by unit, as kept beside the labels."""
    found: Rows = {}
    if (labels / "proposals.jsonl").is_file():
        for row in read_jsonl(labels / "proposals.jsonl"):
            found.setdefault(row["unit"], []).append(row)
    return found


def sheets(root: Path, labels: dict[str, Any]) -> Path | None:
    """The folder with the pictures that were sent, found by the recipe of the labels; None if it has been deleted."""
    wanted = labels.get("proposals")
    for file in sorted((root / "proposals").glob("*/proposals.jsonl")) if wanted else []:
        if (file.parent / "sheets").is_dir() and wanted in (answers_digest(file.parent), file_digest(file)):
            return file.parent
    return None


def transcript(folder: Path | None, unit: int) -> list[dict[str, Any]]:
    """An agent's talk about a unit as a page shows it, an entry a round; [] where there was none.

    `folder`: that of its proposals.
    """
    file = None if folder is None else folder / "transcripts" / f"unit-{unit:05d}.jsonl"
    if file is None or not file.is_file():
        return []
    rounds = []
    for line in read_jsonl(file):
        calls = [call | {"answer": call["answer"][:LONGEST]} for call in line.get("calls", [])]
        rounds.append({key: line[key] for key in ("said", "error") if line.get(key)} | {"calls": calls})
    return rounds


def verification(root: Path, labels: dict[str, Any]) -> Rows:
    """Results of verifying these labels, by unit; every row names its `test`."""
    found: Rows = {}
    for folder in find_verifications(root, labels):
        for test, name in TESTS.items():
            for row in read_jsonl(folder / name) if (folder / name).is_file() else []:
                found.setdefault(row["unit"], []).append({"test": test, "folder": folder.name, **row})
    return found


def find_verifications(root: Path, labels: dict[str, Any]) -> list[Path]:
    """The verification folders of the labels with this recipe."""
    recipes = sorted((root / "verification").glob("*/recipe.json"))
    return [path.parent for path in recipes if read_json(path).get("labels") == digest(labels)]


def shown(
    row: dict[str, Any], basis: int, kept: dict[str, str], prompts: dict[str, int], talk: list[dict[str, Any]]
) -> dict[str, Any]:
    """A proposal as a page shows it: its images are on its sheets, its prompt is a number in `prompts`.

    `talk`: an agent's `transcript`.
    """
    record = {key: row.get(key) for key in (*OF_PROPOSAL, *OF_RECORD)} | {"talk": talk}
    if row.get("prompt"):
        record["prompt"] = prompts.setdefault(row["prompt"], len(prompts))
    record["sheets"] = [kept[f"{basis}/{name}"] for name in row.get("sheets") or [] if f"{basis}/{name}" in kept]
    return {key: value for key, value in record.items() if value is not None and value is not False and value != []}


def of_unit(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """A unit's rows of verification as a page shows them; the intruder's trials of one model as one record."""
    shown = [_looked_again(row) for row in rows if row["test"] != "intruder"]
    by_folder: Rows = {}
    for row in rows:
        if row["test"] == "intruder":
            by_folder.setdefault(row["folder"], []).append(row)
    return shown + [_trials(own) for own in by_folder.values()]


def _looked_again(row: dict[str, Any]) -> dict[str, Any]:
    keep = ("test", "label", "status", "images", "boxes", "fires", "said", "balanced_accuracy", "f1", "candidates")
    record = {key: row.get(key) for key in (*keep, "raw", "trial", "intruder", "auroc", "typical", "silent")}
    record |= {key: (row.get("record") or {}).get(key) for key in OF_RECORD}
    return {key: value for key, value in record.items() if value is not None}


def _trials(rows: list[dict[str, Any]]) -> dict[str, Any]:
    """The trials of one unit: how often the intruder was found, beside chance, and each trial."""
    names = {field.name for field in dataclasses.fields(verify.Intrusion)}
    made = [verify.Intrusion(**{k: v for k, v in row.items() if k in names}) for row in rows]
    found = verify.intruder_accuracy(made)
    record: dict[str, Any] = {"test": "intruder", "rounds": [_looked_again(row) for row in rows]}
    record["images"] = sorted({image for row in rows for image in row["images"]})
    if found is not None:
        record |= {"correct": found.correct, "trials": found.trials, "chance": round(found.chance, 3)}
        record["interval"] = [round(bound, 3) for bound in found.interval]
    return record


def spent(proposed: Rows, verified: Rows) -> dict[str, float | int | None] | None:
    """Answers, tokens and dollars of all rows that came from a model; None if none did.

    The row that first asked pays for a cached answer; cost is None if that of any answer is unknown.
    """
    records = [row for rows in proposed.values() for row in rows if row.get("model")]
    looks = [row.get("record") or {} for rows in verified.values() for row in rows]
    records += [record for record in looks if record.get("model")]
    if not records:
        return None
    paid = [record for record in records if not record.get("cached")]
    costs = [record["cost"] for record in paid if record.get("cost") is not None]
    return {
        "answers": len(records),
        "cached": len(records) - len(paid),
        "prompt_tokens": sum(record.get("prompt_tokens") or 0 for record in paid),
        "completion_tokens": sum(record.get("completion_tokens") or 0 for record in paid),
        "cost": sum(costs) if len(costs) == len(paid) else None,
    }


def copy_sheets(wanted: list[tuple[int, Path, str]], out: Path) -> dict[str, str]:
    """Small copies of the sheets (number of the basis, folder, file): `basis/file` -> place in the report's folder."""
    side = next((side for side, size in SIDES.items() if len(wanted) * size <= BUDGET), min(SIDES))
    made = {}
    for basis, folder, name in bars.show(wanted, what="sheets", hidden=not wanted):
        place = f"sheets/{basis}/{Path(name).with_suffix('.webp').name}"
        made[f"{basis}/{name}"] = place
        if not (out / place).exists():
            (out / place).parent.mkdir(parents=True, exist_ok=True)
            with Image.open(folder / name) as sheet:
                sheet.thumbnail((side, side), Image.Resampling.LANCZOS)
                sheet.convert("RGB").save(out / place, "WEBP", quality=76)
    return made
