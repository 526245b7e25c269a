"""Folders of SAEs by name: on this machine, or on the Hugging Face hub with the commit that they are of."""

from pathlib import Path
from typing import NamedTuple

from saelab.errors import UserError


class Fetched(NamedTuple):
    """A folder that holds an SAE, and where it was fetched from."""

    folder: Path
    source: dict[str, str]  # hub, path, commit; empty for a folder on this machine


def fetch(repo: str, path: str = "", revision: str | None = None) -> Fetched:
    """The folder `path` of a repository of the hub ("org/name"), or of a folder on this machine.

    Only that folder is downloaded, into the hub's own cache. Raises UserError where there is no such folder, or the hub
    has none or can't be asked.
    """
    place = Path(repo).expanduser()
    if place.is_dir():
        if not (place / path).is_dir():
            raise UserError("path", path, f"{place} has no such folder", "see its README.md")
        return Fetched(place / path, {})
    folder, commit = download(repo, path, revision)
    if not folder.is_dir():
        raise UserError("path", path, f"{repo} has no such folder at {commit[:10]}", "see its README.md")
    return Fetched(folder, {"hub": repo, "path": path, "commit": commit})


def download(repo: str, path: str = "", revision: str | None = None) -> tuple[Path, str]:
    """Where the hub's cache holds the folder `path` of "org/name", and the commit. Raises UserError as `fetch` does."""
    from huggingface_hub import snapshot_download

    only = [f"{path}/*"] if path else None
    try:
        root = Path(snapshot_download(repo, revision=revision, allow_patterns=only))
    except Exception as error:  # the client's transport has classes of its own, other ones in each of its versions
        what = (str(error).splitlines() or [type(error).__name__])[0][:120]
        name = "/".join(part for part in (repo, path) if part)
        raise UserError("sae", name, f"no such path here, and the hub has none ({what})") from None
    return root / path, root.name
