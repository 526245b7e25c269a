"""How a vision-language model is asked: a request of texts and pictures, and the reply, whatever the backend.

A backend is anything with `name`, `recipe`, `ask` and `estimate` (the protocol `Chat`). Proposals, the detection test
and the second look all ask through it.
"""

import hashlib
import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any, Protocol

from saelab.label.proposal import Estimate


@dataclass(frozen=True)
class Picture:
    """A picture within a request."""

    jpeg: bytes  # as it is sent and kept
    size: tuple[int, int]  # width, height in pixels
    name: str  # marks its place in the prompt's record, and names its file

    @property
    def digest(self) -> str:
        """SHA-256 of the bytes."""
        return hashlib.sha256(self.jpeg).hexdigest()


@dataclass(frozen=True)
class Request:
    """One question to a model."""

    name: str  # what it is about: "propose/12", "detect/12", "choose/12"; answers from a file are found by it
    parts: tuple[str | Picture, ...]  # in reading order
    schema: dict[str, Any] | None = None  # JSON schema of the answer, for backends that can hold a model to it
    max_tokens: int = 300  # of the answer
    buyer: str = ""  # the run that asks: with the name it says whose an answer in the cache is; not in the digest

    @property
    def text(self) -> str:
        """The prompt as text, with `[name]` where a picture stands."""
        return "".join(part if isinstance(part, str) else f"[{part.name}]" for part in self.parts)

    @property
    def pictures(self) -> list[Picture]:
        """The pictures, in order."""
        return [part for part in self.parts if isinstance(part, Picture)]

    @property
    def digest(self) -> str:
        """SHA-256 of everything that the answer depends on; equal digests are the same question."""
        parts = [part if isinstance(part, str) else {"picture": part.digest} for part in self.parts]
        content = {"parts": parts, "schema": self.schema, "max_tokens": self.max_tokens}
        return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


@dataclass(frozen=True)
class Reply:
    """What came back. Without `text` the request failed, and `error` says why. None = not known."""

    text: str | None  # the answer, verbatim
    error: str | None = None
    request: str = ""  # digest: what the reply is kept under
    model: str | None = None  # as the backend names it
    prompt_tokens: int | None = None
    completion_tokens: int | None = None
    cost: float | None = None  # US dollars
    cached: bool = False  # bought before, by another unit or another run
    attempts: int = 0  # times that it was sent
    uncertain: int = 0  # attempts without an answer that may have been charged
    seconds: float | None = None
    unfinished: str | None = None  # why the model stopped before the answer's end, if it did

    @property
    def record(self) -> dict[str, Any]:
        """The fields that a proposal, a detection and a choice keep of it."""
        names = ("request", "model", "prompt_tokens", "completion_tokens", "cost", "cached", "attempts", "uncertain")
        return {name: getattr(self, name) for name in names} | {"seconds": self.seconds, "error": self.error}


class Chat(Protocol):
    """A backend."""

    name: str
    recipe: dict[str, Any]  # all that its answers depend on, as plain values; never a key

    def ask(self, requests: Iterable[Request]) -> Iterator[tuple[Request, Reply]]:
        """Every request with its reply, in any order, as they come.

        Takes requests no faster than it can work on them. Raises UserError for what every request would meet.
        """
        ...

    def estimate(self, request: Request) -> Estimate:
        """What asking would take; sends nothing."""
        ...
