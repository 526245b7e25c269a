"""How SAEs are shared: who may see them, under which licence, with or without pictures."""

import re
from dataclasses import dataclass

from saelab.errors import UserError
from saelab.settings import check

_REPO = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*", re.ASCII)
_LICENSE = re.compile(r"[a-z0-9][a-z0-9.+-]*")


@dataclass(frozen=True)
class PushSettings:
    """Settings of a push; `check_push` says what fits together."""

    private: bool = True  # only its owners see the repository
    license: str | None = None  # the hub's word for the licence that you choose, such as apache-2.0 or cc-by-4.0
    pictures: bool = False  # the strongest pictures of every labelled unit, small, with their credits
    base_model: str | None = None  # the host on the hub (org/name); None: where its name in the run says so
    revision: str | None = None  # a branch that is there already; None: main
    message: str | None = None  # of the commit


def check_push(repo: str, settings: PushSettings) -> None:
    """Raise UserError for a repository or settings that the hub would refuse, or that say too little."""
    check(settings, "", {})
    if not isinstance(repo, str) or not _REPO.fullmatch(repo) or len(repo) > 96 or ".." in repo or "--" in repo:
        raise UserError("repo", repo, "is no name of a repository", "give repo=org/name")
    if settings.license is not None and not _LICENSE.fullmatch(settings.license):
        remedy = "the hub's words are at https://huggingface.co/docs/hub/repositories-licenses; other fits the rest"
        raise UserError("license", settings.license, "is no licence of the hub", remedy)
    if settings.license is None and not settings.private:
        remedy = "name yours, for example license=apache-2.0, or leave private=true"
        raise UserError("license", None, "what everybody sees needs one; nobody else can choose it for you", remedy)
    if settings.base_model is not None and not _REPO.fullmatch(settings.base_model):
        raise UserError("base_model", settings.base_model, "is no name of a model on the hub", "give org/name")
