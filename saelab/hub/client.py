"""One commit to the Hugging Face hub. The token is the hub client's own; it is written nowhere."""

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

from saelab.errors import UserError
from saelab.hub.settings import PushSettings
from saelab.hub.stage import Files, list_files

log = logging.getLogger("saelab")
MESSAGE = "SAEs with their labels, by saelab"


class Pushed(NamedTuple):
    """What a push did, or would do."""

    folder: Path  # what was uploaded
    files: Files  # path in the repository, bytes
    url: str | None  # of the commit; None for a dry run
    commit: str | None  # its hash


def require_token() -> str:
    """The token of HF_TOKEN or `hf auth login`. Raises UserError where there is none."""
    from huggingface_hub import get_token

    token = get_token()
    if not token:
        remedy = "set HF_TOKEN, or run `hf auth login`; dry_run=true needs none"
        raise UserError("token", "none", "the hub asks who you are", remedy)
    return token


def upload(folder: Path, repo: str, settings: PushSettings, files: Files | None = None) -> Pushed:
    """Make the repository if it isn't there, and put a folder's files (all, or these) there in one commit.

    Files that are there already are not sent again, so an interrupted upload goes on with the same call; nothing is
    deleted, and a repository that is there stays as visible as it is. Raises UserError without a token, without the
    right to write there, and where the hub can't be reached.
    """
    from huggingface_hub import CommitOperationAdd, HfApi

    files, token = list_files(folder) if files is None else files, require_token()
    api = HfApi(token=token)
    adds = [CommitOperationAdd(path_in_repo=name, path_or_fileobj=folder / name) for name, _ in files]
    with _one_line(repo, token):
        api.create_repo(repo, private=settings.private, exist_ok=True)
        hidden = api.model_info(repo).private
        if settings.private and not hidden:
            remedy = "give private=false with a licence, or another repository"
            raise UserError("private", True, f"{repo} is there already, and everybody sees it", remedy)
        if hidden and not settings.private:
            log.warning("%s was there already, and stays private: its settings on the hub make it public", repo)
        # Not upload_folder: it cuts a large folder into several commits.
        made = api.create_commit(repo, adds, commit_message=settings.message or MESSAGE, revision=settings.revision)
    return Pushed(folder, files, str(made.commit_url), made.oid)


@contextmanager
def _one_line(repo: str, token: str) -> Iterator[None]:
    """The hub's refusals as a UserError that never repeats the token."""
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError

    try:
        yield
    except HfHubHTTPError as error:
        status = None if error.response is None else error.response.status_code
        raise _refused(repo, status, _say(error, token)) from None
    except HFValidationError as error:
        raise UserError("repo", repo, f"the hub takes no such name ({_say(error, token)})", "give org/name") from None
    except UserError:
        raise
    except Exception as error:  # the client's transport has classes of its own, other ones in each of its versions
        remedy = "run the same command again: what has arrived is not sent twice"
        raise UserError("repo", repo, f"the upload was interrupted ({_say(error, token)})", remedy) from None


def _refused(repo: str, status: int | None, said: str) -> UserError:
    if status == 401:
        return UserError("token", "yours", "the hub does not know it", "make one that may write, and set HF_TOKEN")
    if status == 403:
        return UserError(
            "repo", repo, "you may not write there", "give a repository of yours and a token that may write"
        )
    if status == 404:
        return UserError("repo", repo, f"not found ({said})", "check its name and the branch (revision)")
    return UserError("repo", repo, f"the hub refused ({said})", "mend it and run the same command again")


def _say(error: BaseException, token: str) -> str:
    """What the hub itself says, else the innermost cause, in one line and without the token."""
    said = getattr(error, "server_message", None)
    while not said and error.__cause__ is not None:
        error = error.__cause__
    lines = [line.strip() for line in str(said or error).splitlines() if line.strip()]
    return (lines or [type(error).__name__])[0].replace(token, "***")[:200]
