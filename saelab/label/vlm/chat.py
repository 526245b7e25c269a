"""How a vision-language model is asked: a request of texts and pictures, and the reply, whatever the backend.

A backend is anything with `name`, `recipe`, `ask` and `estimate` (the protocol `Chat`). Proposals, the detection test
and the second look all ask through it.
"""

import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

from saelab.label.proposal import Estimate
from saelab.label.vlm.completion import ToolCall


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
class Turn:
    """What a model said in the middle of a request, and what its tools answered."""

    said: str  # beside its calls; often ""
    calls: tuple[ToolCall, ...]
    answers: tuple[str, ...]  # one a call
    shown: tuple[str | Picture, ...] = ()  # pictures that belong to the answers, each after a text with its name


@dataclass(frozen=True)
class Request:
    """One question to a model."""

    name: str  # what it is about: "propose/12", "detect/12", "choose/12"; answers from a file are found by it
    parts: tuple[str | Picture, ...]  # in reading order
    schema: dict[str, Any] | None = None  # JSON schema of the answer, for backends that can hold a model to it
    max_tokens: int = 300  # of the answer
    buyer: str = ""  # the run that asks: with the name it says whose an answer in the cache is; not in the digest
    turns: tuple[Turn, ...] = ()  # what was said since, where tools are on offer
    tools: tuple[dict[str, Any], ...] = ()  # `{"name", "description", "parameters"}` each; for backends that know them
    likely: bool = False  # how likely is each first word of the answer? For backends that say so
    answer_now: bool = False  # the tools are there to be read about, and may not be called any more

    @property
    def text(self) -> str:
        """The prompt as text, with `[name]` where a picture stands; turns are not part of it."""
        return "".join(part if isinstance(part, str) else f"[{part.name}]" for part in self.parts)

    @property
    def pictures(self) -> list[Picture]:
        """The pictures, in order, those of turns too."""
        own = [*self.parts, *(part for turn in self.turns for part in turn.shown)]
        return [part for part in own if isinstance(part, Picture)]

    @property
    def written(self) -> int:
        """Characters that the model has to read beside pictures."""
        turns = sum(len(turn.said) + sum(map(len, turn.answers)) for turn in self.turns)
        calls = sum(len(call.name) + len(call.arguments) for turn in self.turns for call in turn.calls)
        return len(self.text) + turns + calls + (len(json.dumps(self.tools)) if self.tools else 0)

    @property
    def digest(self) -> str:
        """SHA-256 of everything that the answer depends on; equal digests are the same question."""
        content: dict[str, Any] = {"parts": _digests(self.parts), "schema": self.schema, "max_tokens": self.max_tokens}
        if self.likely:
            content["likely"] = True
        if self.tools:
            turns = [
                [t.said, [[c.name, c.arguments] for c in t.calls], t.answers, _digests(t.shown)] for t in self.turns
            ]
            content |= {"turns": turns, "tools": self.tools, "answer_now": self.answer_now}
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
    calls: tuple[ToolCall, ...] = ()  # tools that it asks for instead of answering
    likely: Mapping[str, float] | None = None  # first words of the answer and their log-probabilities, where asked for

    @property
    def record(self) -> dict[str, Any]:
        """The fields that a proposal, a detection and a choice keep of it."""
        names = ("request", "model", "prompt_tokens", "completion_tokens", "cost", "cached", "attempts", "uncertain")
        return {name: getattr(self, name) for name in names} | {"seconds": self.seconds, "error": self.error}


def _digests(parts: Iterable[str | Picture]) -> list[Any]:
    return [part if isinstance(part, str) else {"picture": part.digest} for part in parts]


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
