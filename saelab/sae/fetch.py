"""Folders of SAEs by name: on this machine, or on the Hugging Face hub with the commit that they are of."""

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from saelab.errors import UserError


class Fetched(NamedTuple):
    """A folder, and where it was fetched from. Whoever asked looks whether the files are there."""

    folder: Path
    source: dict[str, str]  # hub, path, commit; empty for a folder on this machine


def fetch(repo: str, path: str, files: Sequence[str], revision: str | None = None) -> Fetched:
    """Some `files` of the folder `path` of a repository of the hub ("org/name"), or of a folder on this machine.

    Nothing else is downloaded; what is in the hub's own cache is not downloaded again. Raises UserError where the hub
    has no such repository or can't be asked.
    """
    place = Path(repo).expanduser()
    if place.is_dir():
        return Fetched(place / path, {})
    folder, commit = download(repo, path, files, revision)
    return Fetched(folder, {"hub": repo, "path": path, "commit": commit})


def download(repo: str, path: str = "", files: Sequence[str] = ("*",), revision: str | None = None) -> tuple[Path, str]:
    """Where the hub's cache holds the folder `path` of "org/name", and the commit. Raises UserError as `fetch` does."""
    from huggingface_hub import snapshot_download

    name = "/".join(part for part in (repo, path) if part)
    only = None if files == ("*",) and not path else [f"{path}/{file}".lstrip("/") for file in files]
    try:
        root = Path(snapshot_download(repo, revision=revision, allow_patterns=only))
    except Exception as error:  # the client's transport has classes of its own, other ones in each of its versions
        what = (str(error).splitlines() or [type(error).__name__])[0][:120]
        raise UserError("sae", name, f"no such path here, and the hub has none ({what})") from None
    return root / path, root.name
