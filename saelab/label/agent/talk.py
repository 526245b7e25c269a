"""One unit's talk with a model: rounds of tool calls within bounds, until it answers or is made to."""

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

from saelab.errors import UserError
from saelab.label.proposal import Estimate
from saelab.label.tools import Answer, Toolbox
from saelab.label.vlm.chat import Picture, Reply, Request, ToolCall, Turn
from saelab.label.vlm.text import one_line

CALLS = 3  # answered in a round; further ones are refused
LONGEST = 4000  # characters of what a tool answers
NOW = "This was your last call. Answer now, with the JSON object alone."


@dataclass(frozen=True)
class Bounds:
    """Where a talk ends at the latest."""

    rounds: int = 12  # answers of the model, the last of which has to be a label
    unit_tokens: int = 100_000  # prompt and completion of one unit, all its rounds together
    max_tokens: int = 600  # of each answer

    def __post_init__(self) -> None:
        """Raise UserError for bounds within which no model could answer."""
        for name, least in (("rounds", 2), ("max_tokens", 1), ("unit_tokens", 2 * self.max_tokens)):
            value = getattr(self, name)
            if type(value) is not int or value < least:
                raise UserError(f"proposer.{name}", value, f"expected a whole number of at least {least}")


class Talk:
    """What was said of one unit. `request` is what to ask next; `ended` says why there is no next."""

    def __init__(self, request: Request, box: Toolbox, bounds: Bounds, estimate: Callable[[Request], Estimate]) -> None:
        self.request, self.box, self.bounds, self.estimate = request, box, bounds, estimate
        self.about = request.name
        self.replies: list[Reply] = []
        self.lines: list[dict[str, Any]] = []  # the transcript, one entry a round
        self.pictures: list[Picture] = list(request.pictures)
        self.ended: str | None = None  # "answered", or what went wrong, in a line
        self.failed = False  # through no fault of the model's: to be asked again
        self._asked: set[tuple[str, str]] = set()
        self._spent = 0
        self._name_round()

    def hear(self, reply: Reply) -> None:
        """Take a reply: run the tools that it asks for and set the next request, or end the talk.

        Wrong calls are answered with what is wrong; anything but UserError that a tool raises is for the caller.
        """
        planned = self.estimate(self.request).tokens
        counts = (reply.prompt_tokens, reply.completion_tokens)
        self._spent += planned if None in counts else sum(count or 0 for count in counts)
        self.replies.append(reply)
        line = {"round": len(self.replies), "request": reply.request, "said": reply.text, "error": reply.error}
        self.lines.append(line | {"prompt_tokens": reply.prompt_tokens, "completion_tokens": reply.completion_tokens})
        if reply.text is None:
            self.fail(str(reply.error))
        elif not reply.calls:
            self.ended = "answered" if reply.text.strip() else reply.unfinished or "the model answered nothing"
        elif self.request.answer_now:
            self.ended = f"the model called {one_line(reply.calls[0].name, 40)} where it had to answer"
        else:
            self._go_on(reply)

    def fail(self, why: str) -> None:
        """End the talk, in the round that was heard last, for a reason that is not the model's."""
        self.ended, self.failed = why, True
        self.lines[-1]["error"] = why

    def _go_on(self, reply: Reply) -> None:
        found = [self._answer(call, place) for place, call in enumerate(reply.calls)]
        texts = tuple(text for text, _ in found)
        shown = [picture for _, pictures in found for picture in pictures]
        self.pictures += shown
        self.lines[-1] |= {
            "calls": [
                {"tool": c.name, "arguments": c.arguments, "answer": text}
                for c, text in zip(reply.calls, texts, strict=True)
            ],
            "pictures": [picture.name for picture in shown],
        }
        parts = [part for picture in shown for part in (f"{picture.name}:", picture)]
        turn = Turn(reply.text or "", reply.calls, texts, tuple(parts))
        self.request = replace(self.request, turns=(*self.request.turns, turn))
        self._name_round()
        largest = self.estimate(replace(self.request, turns=(turn,))).tokens  # what a round may add
        planned = self.estimate(self.request).tokens
        last = len(self.replies) + 1 >= self.bounds.rounds
        if last or self._spent + 2 * planned + largest > self.bounds.unit_tokens:
            said = replace(turn, shown=(*turn.shown, NOW))
            self.request = replace(self.request, turns=(*self.request.turns[:-1], said), answer_now=True)
        if self._spent + self.estimate(self.request).tokens > self.bounds.unit_tokens:
            self.ended = f"cut at proposer.unit_tokens={self.bounds.unit_tokens}, after {self._spent} tokens"

    def _answer(self, call: ToolCall, place: int) -> tuple[str, Sequence[Picture]]:
        """What a call gets: the tool's facts as JSON, or one line that says what is wrong with it."""
        if place >= CALLS:
            return _error(f"only {CALLS} calls are answered at a time"), ()
        asked = (call.name, call.arguments)
        if asked in self._asked:
            return _error("you asked this before: its answer stands above"), ()
        self._asked.add(asked)
        try:
            given = json.loads(call.arguments or "{}")
        except (ValueError, RecursionError):
            return _error("arguments are one JSON object"), ()
        try:
            answer: Answer = self.box.call(call.name, given)
        except UserError as error:
            return _error(str(error)), ()
        return json.dumps(answer.facts, ensure_ascii=False)[:LONGEST], answer.pictures

    def _name_round(self) -> None:
        self.request = replace(self.request, name=f"{self.about}/{len(self.replies) + 1}")


def _error(text: str) -> str:
    return json.dumps({"error": one_line(text, 300)}, ensure_ascii=False)
