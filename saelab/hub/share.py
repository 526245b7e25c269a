"""From a run, or from one SAE, to a repository of the hub."""

from collections.abc import Sequence
from pathlib import Path

from saelab.hub.client import Pushed, require_token, upload
from saelab.hub.entries import Entry, read_entries
from saelab.hub.settings import PushSettings, check_push
from saelab.hub.stage import stage


def push_run(
    run_json: Path | str,
    repo: str,
    settings: PushSettings | None = None,
    names: Sequence[str] | None = None,
    out: Path | str | None = None,
    dry_run: bool = False,
) -> Pushed:
    """Share the SAEs of a finished run, all or those `names`, with an index page: one repository a run.

    `out`: where the files are put together; None: push/<name of the run> beside the run. `dry_run` ends there. Raises
    UserError before anything is sent where something is missing, and with one line for whatever the hub refuses.
    """
    settings = settings or PushSettings()
    check_push(repo, settings)
    if not dry_run:
        require_token()  # before the work
    path = Path(run_json)
    folder = path.parent / "push" / path.stem if out is None else Path(out)
    folder.parent.mkdir(parents=True, exist_ok=True)
    files = stage(read_entries(path, names), folder, repo, settings)
    return Pushed(folder, files, None, None) if dry_run else upload(folder, repo, settings)


def push(
    entry: Entry, repo: str, settings: PushSettings | None = None, *, out: Path | str, dry_run: bool = False
) -> Pushed:
    """Share one SAE in its folder of a repository (`entry.place`); what else is there stays as it is.

    `out`: where the files are put together. Raises UserError as `push_run` does.
    """
    settings = settings or PushSettings()
    check_push(repo, settings)
    if not dry_run:
        require_token()
    folder = Path(out)
    folder.parent.mkdir(parents=True, exist_ok=True)
    own = [(name, size) for name, size in stage([entry], folder, repo, settings) if "/" in name]  # not the index
    return Pushed(folder, own, None, None) if dry_run else upload(folder, repo, settings, own)
