"""Artifacts: folders that say how they were made. Recipe -> hash -> folder; whole, half-written or damaged; reuse.

`ensure` is the only door: it returns the folder for a recipe and calls `build` when it is not there yet. A builder
works in `<folder>.partial`, which survives a kill, so that a builder that looks at what is already there resumes.
The folder gets its final name (an atomic rename) only when it is whole, together with `complete.json`, the size and
SHA-256 of its files: a final folder whose files differ from that list is damaged, and is refused rather than reused.
"""

import dataclasses
import logging
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from saelab.files import (
    added,
    atomic,
    digest,
    file_digest,
    folder_name,
    locked,
    plain,
    read_json,
    read_jsonl,
    to_disk,
    write_csv,
    write_json,
    write_jsonl,
)
from saelab.integrity import check_file, check_whole, damaged, entry, verify

__all__ = [
    "Artifact",
    "added",
    "atomic",
    "check_file",
    "check_whole",
    "clear_temporary",
    "digest",
    "ensure",
    "ensure_all",
    "file_digest",
    "folder",
    "locked",
    "open_artifact",
    "plain",
    "read_json",
    "read_jsonl",
    "verify",
    "write_csv",
    "write_json",
    "write_jsonl",
]

log = logging.getLogger("saelab")


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


def folder(root: Path | str, stage: str, name: str, recipe: Any) -> Path:
    """Where the artifact of this recipe belongs: `<root>/<stage>/<name>-<first 10 digits of the digest>`."""
    return Path(root) / stage / f"{folder_name(name)}-{digest(recipe)[:10]}"


def ensure(root: Path | str, stage: str, name: str, recipe: Any, build: Callable[[Path], None]) -> Artifact:
    """The artifact of `recipe`, built by `build(partial folder)` unless it is there and whole.

    Two processes that want the same artifact take turns: the second finds it made. What is there is reused without
    writing anything, so a root that can only be read serves too. Raises UserError if the folder is there but damaged
    (`check_whole`), and whatever `build` raises; the partial folder then stays for the next try to resume from.
    """
    recipe = plain(recipe)
    final = folder(root, stage, name, recipe)
    if final.exists():
        return _reuse(final, recipe)
    partial = final.with_name(final.name + ".partial")
    final.parent.mkdir(parents=True, exist_ok=True)
    with locked(final.with_name(final.name + ".lock")):
        if final.exists():
            return _reuse(final, recipe)
        log.info("%s %s", "resuming" if partial.exists() else "building", final)
        partial.mkdir(exist_ok=True)
        clear_temporary(partial)
        write_json(partial / "recipe.json", recipe)
        build(partial)
        (partial / "complete.json").unlink(missing_ok=True)  # of a try that was killed before the rename
        files = [path for path in sorted(partial.rglob("*")) if path.is_file()]
        for path in files:
            if path.suffix in (".h5", ".safetensors"):
                to_disk(path)  # a power cut must not leave a folder that calls itself complete over empty files
        write_json(partial / "complete.json", {str(path.relative_to(partial)): entry(path) for path in files})
        partial.rename(final)
        to_disk(final.parent)
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


def clear_temporary(folder: Path) -> None:
    """Remove the temporary files (`.NAME.tmp`) that a killed process left; for who holds the folder's lock."""
    for path in folder.rglob(".*.tmp"):
        if path.is_file():
            path.unlink()


def _reuse(final: Path, recipe: Any) -> Artifact:
    if digest(check_whole(final)) != digest(recipe):
        raise damaged(final, "recipe.json is another's")
    log.info("reused  %s", final)
    return Artifact(final, recipe, reused=True)


def open_artifact(path: Path | str) -> Artifact:
    """An artifact by its folder. Raises UserError if it is missing, unfinished or damaged."""
    path = Path(path)
    return Artifact(path, check_whole(path), reused=True)
