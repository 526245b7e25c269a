"""Whether an artifact on disk is what was written: names, sizes and SHA-256 against its `complete.json`."""

import fcntl
import hashlib
import logging
import time
from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path
from typing import Any

from saelab.errors import UserError
from saelab.files import digest, file_digest, read_json, read_jsonl

log = logging.getLogger("saelab")
HASHED = 1 << 28  # bytes of an artifact whose contents are compared whenever it is opened: about 0.2 s
PER_FILE = 100_000  # bytes that could be hashed in the time that it takes to open one file
HEAD = 1 << 20  # first bytes of a larger file, which are compared always
FRESH = 2.0  # seconds after a write in which a file's time may not tell another write
# Stages whose folders grow and have no complete.json.
OPEN_ENDED = ("proposals", "verification", "effects", "ablation_scores", "synthesised")


def check_whole(path: Path) -> Any:
    """The recipe of the finished artifact in `path`. Raises UserError where it is missing, unfinished or damaged.

    Compared are the folder's name with its recipe, the size of every file, and contents: SHA-256 of the first 256 MB
    (top files before those in folders, small before large), of the first megabyte of larger files. `verify` reads all.
    """
    entries = _list_files(path)
    recipe = read_json(path / "recipe.json")
    if digest(recipe)[:10] != path.name.rpartition("-")[2]:
        raise damaged(path, "its recipe.json is not the one in its name")
    sizes = {name: _check_size(path, name, entry) for name, entry in entries.items()}
    left = HASHED
    for name in sorted(entries, key=lambda name: (name.count("/"), sizes[name])):
        left -= sizes[name] + PER_FILE
        if left >= 0 or sizes[name] > HEAD:
            _check_contents(path, name, entries[name], head=left < 0)
    return recipe


def check_file(path: Path) -> None:
    """Compare one file with the `complete.json` beside it, if there is one. Raises UserError where it is damaged."""
    if (path.parent / "complete.json").is_file():
        entry = _list_files(path.parent).get(path.name)
        if entry is not None:
            _check_size(path.parent, path.name, entry)
            _check_contents(path.parent, path.name, entry)


def verify(path: Path | str) -> list[str]:
    """Every file of an artifact, of all artifacts that a run's JSON names, or of all below a folder, read and compared.

    Returns what is wrong, a line each; nothing where all is as it was written. Files without a SHA-256 (of artifacts
    made before there was one) are compared by size. Raises UserError where there is nothing to verify.
    """
    path = Path(path)
    if path.is_file():
        folders = sorted({path.parent / name for name in _names(read_json(path))})
    elif (path / "recipe.json").is_file() or (path / "complete.json").is_file():
        folders = [path]
    else:
        folders = sorted(file.parent for file in path.rglob("recipe.json") if not _is_partial(file.parent))
    if not folders:
        raise UserError("path", path, "no artifact there", "give an artifact's folder, a run's JSON, or a root")
    return [problem for folder in folders for problem in _problems(folder)]


def _problems(folder: Path) -> list[str]:
    if not (folder / "complete.json").is_file() and folder.parent.name in OPEN_ENDED and folder.is_dir():
        return _problems_of_growing(folder)
    try:
        entries = _list_files(folder)
        check_whole(folder)
    except UserError as error:
        return [str(error)]
    found = []
    for name, entry in entries.items():
        try:
            _check_contents(folder, name, entry)
        except UserError as error:
            found.append(str(error))
    files = (str(file.relative_to(folder)) for file in sorted(folder.rglob("*")) if file.is_file())
    extra = [file for file in files if file not in entries and file != "complete.json"]
    return found + [f"artifact={folder}: {file} is not in complete.json" for file in extra]


def _problems_of_growing(folder: Path) -> list[str]:
    """Check what a folder to which lines are added can be held to: its recipe, and that each whole line can be read."""
    found, name = [], folder.name.rpartition("-")[2]
    try:
        recipe = read_json(folder / "recipe.json")
        if _is_hash(name) and digest(recipe)[:10] != name:
            found.append(str(damaged(folder, "its recipe.json is not the one in its name")))
    except UserError as error:
        found.append(str(error))
    for file in sorted(folder.rglob("*.jsonl")):
        try:
            read_jsonl(file)
        except UserError as error:
            found.append(str(error))
    return found


def _is_partial(folder: Path) -> bool:
    return any(part.endswith(".partial") for part in folder.parts)


def _names(value: Any) -> Iterator[str]:
    """The folders (`<stage>/<name>-<10 hex digits>`) that a run's JSON names."""
    if isinstance(value, str):
        tail = value.rpartition("-")[2]
        if value.count("/") == 1 and _is_hash(tail):
            yield value
    elif isinstance(value, dict | list):
        for each in value.values() if isinstance(value, dict) else value:
            yield from _names(each)


def _is_hash(tail: str) -> bool:
    return len(tail) == 10 and set(tail) <= set("0123456789abcdef")


def entry(path: Path) -> dict[str, Any]:
    """What complete.json keeps of a file."""
    size = path.stat().st_size
    head = {"head": _hash(path, HEAD)} if size > HEAD else {}
    return {"bytes": size, "sha256": file_digest(path)} | head


def _list_files(path: Path) -> dict[str, Any]:
    """What complete.json says of each file: `{"bytes", "sha256", "head"}`, or the size alone (older artifacts)."""
    if not path.is_dir():
        raise UserError("artifact", path, "there is no such folder", "run the stage that makes it first")
    if not (path / "complete.json").is_file():
        raise UserError("artifact", path, "not a finished artifact (no complete.json)", "run its stage again")
    found = read_json(path / "complete.json")
    found = found if isinstance(found, dict) else {}
    sound = all(isinstance(v, int) for v in found.values()) or all(_is_entry(v) for v in found.values())
    if "recipe.json" not in found or not sound or any(".." in Path(name).parts for name in found):
        raise damaged(path, "complete.json is not what was written")
    return {name: {"bytes": value} if isinstance(value, int) else value for name, value in found.items()}


def _is_entry(value: Any) -> bool:
    """Is it what `entry` gives? A name that is missing or misspelt would leave out a comparison."""
    if not isinstance(value, dict) or not isinstance(value.get("bytes"), int):
        return False
    return set(value) == {"bytes", "sha256"} | ({"head"} if value["bytes"] > HEAD else set())


def _check_size(path: Path, name: str, entry: dict[str, Any]) -> int:
    file = path / name
    found = file.stat().st_size if file.is_file() else None
    if found is None:
        raise damaged(path, f"{name} is missing")
    if found != entry["bytes"]:
        raise damaged(path, f"{name} has {found} bytes, expected {entry['bytes']}")
    return found


def _check_contents(path: Path, name: str, entry: dict[str, Any], head: bool = False) -> None:
    expected = entry.get("head") if head else entry.get("sha256")
    if expected is None or _known_hash(path / name, HEAD if head else None) == expected:
        return
    if _is_locked(path / name):  # HDF5 marks a file while it is open for writing: what it holds can't be judged now
        log.warning("%s is open in another program; its contents are compared once it is closed", path / name)
        return
    raise damaged(path, f"the contents of {name} are not what was written (SHA-256)")


def _is_locked(path: Path) -> bool:
    """Does another program hold a lock on the file, as HDF5 does while it writes?"""
    with path.open("rb") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except OSError:
            return True
    return False


def damaged(path: Path, what: str) -> UserError:
    """The refusal of a folder, with the remedy."""
    return UserError("artifact", path, f"damaged: {what}", "delete this folder to have it made again")


def _known_hash(path: Path, limit: int | None) -> str:
    """The file's SHA-256, computed once in a process for a file that nobody has written to since."""
    state = path.stat()
    if abs(time.time() - state.st_mtime) < FRESH:
        return _hash(path, limit)
    return _remember_hash(path, limit, state.st_ino, state.st_size, state.st_mtime_ns, state.st_ctime_ns)


@lru_cache(maxsize=4096)
def _remember_hash(path: Path, limit: int | None, *state: int) -> str:
    return _hash(path, limit)


def _hash(path: Path, limit: int | None) -> str:
    if limit is None:
        return file_digest(path)
    with path.open("rb") as file:
        return hashlib.sha256(file.read(limit)).hexdigest()
