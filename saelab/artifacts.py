"""Artifacts: folders that say how they were made. Recipe -> hash -> folder; whole, half-written or damaged; reuse.

`ensure` is the only door: it returns the folder for a recipe and calls `build` when it is not there yet. A builder
works in `<folder>.partial`, which survives a kill, so that a builder that looks at what is already there resumes.
The folder gets its final name (an atomic rename) only when it is whole, together with `complete.json`, the sizes of
its files: a final folder whose files differ from that list is damaged, and is refused rather than reused.
"""

import dataclasses
import fcntl
import hashlib
import json
import logging
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from saelab.errors import UserError

log = logging.getLogger("saelab")
ADDED = "added"  # key in the metadata of a dataclass field; see `added`


@dataclasses.dataclass(frozen=True)
class Artifact:
    """A finished artifact on disk."""

    path: Path  # the folder
    recipe: dict[str, Any]  # what made it, as stored in its recipe.json
    reused: bool  # True if it was there before this call

    @property
    def digest(self) -> str:
        """The recipe's hash, to be named in the recipes of artifacts made from this one."""
        return digest(self.recipe)


def added(default: Any) -> Any:
    """A dataclass field that recipes leave out at its default, so that those from before it existed stay the same."""
    return dataclasses.field(default=default, metadata={ADDED: True})


def plain(value: Any) -> Any:
    """`value` as JSON's own types: dataclasses and mappings to dicts, sequences to lists, paths to strings.

    Fields made by `added` are left out at their default. Raises TypeError for anything whose text would not be the same
    in the next process (an object, a tensor).
    """
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        pairs = [(field, getattr(value, field.name)) for field in dataclasses.fields(value)]
        return {f.name: plain(own) for f, own in pairs if not (ADDED in f.metadata and own == f.default)}
    if isinstance(value, dict):
        return {str(k): plain(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [plain(v) for v in value]
    if isinstance(value, Path):
        return str(value)
    if value is None or isinstance(value, bool | int | float | str):
        return value
    raise TypeError(f"a recipe can't hold a {type(value).__name__}: {value!r}")


def digest(recipe: Any) -> str:
    """SHA-256 (64 hex digits) of the recipe's canonical JSON; equal recipes give equal digests in every process."""
    text = json.dumps(plain(recipe), sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    return hashlib.sha256(text.encode()).hexdigest()


def file_digest(path: Path) -> str:
    """SHA-256 (64 hex digits) of a file's bytes."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def folder(root: Path | str, stage: str, name: str, recipe: Any) -> Path:
    """Where the artifact of this recipe belongs: `<root>/<stage>/<name>-<first 10 digits of the digest>`."""
    safe = "".join(c if c.isalnum() or c in "-_." else "_" for c in name).strip("._") or "unnamed"
    return Path(root) / stage / f"{safe[:60]}-{digest(recipe)[:10]}"


def ensure(root: Path | str, stage: str, name: str, recipe: Any, build: Callable[[Path], None]) -> Artifact:
    """The artifact of `recipe`, built by `build(partial folder)` unless it is there and whole.

    Two processes that want the same artifact take turns: the second finds it made. What is there is reused without
    writing anything, so a root that can only be read serves too. Raises UserError if the folder is there but damaged
    (a file lost or of another size), and whatever `build` raises; the partial folder then stays for the next try to
    resume from.
    """
    recipe = plain(recipe)
    final = folder(root, stage, name, recipe)
    if final.exists():
        return _reused(final, recipe)
    partial = final.with_name(final.name + ".partial")
    final.parent.mkdir(parents=True, exist_ok=True)
    with locked(final.with_name(final.name + ".lock")):
        if final.exists():
            return _reused(final, recipe)
        log.info("%s %s", "resuming" if partial.exists() else "building", final)
        partial.mkdir(exist_ok=True)
        write_json(partial / "recipe.json", recipe)
        build(partial)
        files = [path for path in sorted(partial.rglob("*")) if path.is_file()]
        for path in files:
            if path.suffix in (".h5", ".safetensors"):
                _to_disk(path)  # a power cut must not leave a folder that calls itself complete over empty files
        write_json(partial / "complete.json", {str(path.relative_to(partial)): path.stat().st_size for path in files})
        partial.rename(final)
    return Artifact(final, recipe, reused=False)


def ensure_all(
    root: Path | str, stage: str, wanted: Sequence[tuple[str, Any]], build: Callable[[dict[int, Path]], None]
) -> list[Artifact]:
    """Like `ensure` for several artifacts that one pass makes: `wanted` holds (name, recipe) of each.

    `build` is called once, with the partial folders of those that are not there yet, by their position in `wanted`.
    """
    folders = [folder(root, stage, *each) for each in wanted]
    # One order for every process, so that two never wait for each other's locks; a recipe that is named twice, once.
    order = sorted({own: position for position, own in reversed(list(enumerate(folders)))}.items())
    missing: dict[int, Path] = {}
    made: dict[Path, Artifact] = {}

    def collect(step: int) -> None:
        if step == len(order):
            if missing:
                build(dict(sorted(missing.items())))
            return
        own, position = order[step]

        def postpone(partial: Path) -> None:
            missing[position] = partial
            collect(step + 1)

        made[own] = ensure(root, stage, *wanted[position], postpone)
        if position not in missing:
            collect(step + 1)

    collect(0)
    return [made[own] for own in folders]


def _reused(final: Path, recipe: Any) -> Artifact:
    check_whole(final)
    log.info("reused  %s", final)
    return Artifact(final, recipe, reused=True)


def opened(path: Path | str) -> Artifact:
    """An artifact by its folder. Raises UserError if it is missing, unfinished or damaged."""
    path = Path(path)
    check_whole(path)
    return Artifact(path, read_json(path / "recipe.json"), reused=True)


def check_whole(path: Path) -> None:
    """Raise UserError unless `path` holds a finished artifact whose files have the sizes they were written with."""
    if not path.is_dir():
        raise UserError("artifact", path, "there is no such folder", "run the stage that makes it first")
    if not (path / "complete.json").is_file():
        raise UserError("artifact", path, "not a finished artifact (no complete.json)", "run its stage again")
    sizes = read_json(path / "complete.json")
    for name, size in sizes.items():
        file = path / name
        found = file.stat().st_size if file.is_file() else None
        if found != size:
            what = "is missing" if found is None else f"has {found} bytes, written were {size}"
            raise UserError("artifact", path, f"damaged: {name} {what}", "delete this folder to have it made again")


def write_json(path: Path, value: Any) -> None:
    """Write `value` as JSON, atomically: the file holds either the old text or all of the new."""
    with atomic(path) as temporary:
        temporary.write_text(json.dumps(plain(value), indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


def read_json(path: Path) -> Any:
    """Read a JSON file. Raises UserError (with the file's name) where it is missing or not JSON."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UserError("file", path, "missing", "run the stage that makes it again") from None
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise UserError("file", path, f"not JSON ({error})", "delete its folder to have it made again") from None


def write_jsonl(path: Path, rows: list[Any]) -> None:
    """Write one JSON object a line, atomically. NaN and infinities become null (JSON has no word for them)."""
    with atomic(path) as temporary, temporary.open("w", encoding="utf-8") as file:
        for row in rows:
            file.write(json.dumps(_finite(plain(row)), ensure_ascii=False) + "\n")


def read_jsonl(path: Path) -> list[Any]:
    """All whole lines of a JSONL file; a last line that a kill cut off is passed over. Missing file: UserError."""
    try:
        lines = path.read_bytes().splitlines(keepends=True)  # a text would also be cut at U+2028 within a string
    except FileNotFoundError:
        raise UserError("file", path, "missing", "run the stage that makes it again") from None
    rows = []
    for i, line in enumerate(lines):
        try:
            rows.append(json.loads(line))
        except ValueError as error:  # no JSON, or a character that was cut in two
            if i + 1 == len(lines) and not line.endswith(b"\n"):
                break
            raise UserError("file", path, f"line {i + 1} is not JSON ({error})", "delete its folder") from None
    return rows


@contextmanager
def atomic(path: Path) -> Iterator[Path]:
    """A temporary file beside `path` that replaces it when the block ends well and is removed when it does not."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        yield temporary
        _to_disk(temporary)
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


@contextmanager
def locked(path: Path) -> Iterator[None]:
    """Hold the lock of this file: others who want it, in this process or another, wait until the block ends."""
    with path.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)  # released by the system when the process ends, however it ends
        yield


def _to_disk(path: Path) -> None:
    with path.open("rb") as file:
        os.fsync(file.fileno())


def _finite(value: Any) -> Any:
    if isinstance(value, float) and (value != value or value in (float("inf"), float("-inf"))):
        return None
    if isinstance(value, dict):
        return {k: _finite(v) for k, v in value.items()}
    return [_finite(v) for v in value] if isinstance(value, list) else value
