"""What is kept of a model's answer: whatever a server sends, a `Completion` has fields of the right type and range.

Everything passes through here before it is cached, and again when it is read from the cache.
"""

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from saelab.files import added
from saelab.label.vlm import loose
from saelab.label.vlm.text import one_line, readable, without_thoughts

MOST_CALLS = 16  # tools that an answer may ask for; more is a model in a loop
LONGEST = 100_000  # characters of an answer; more is a model in a loop
MOST_TOKENS = 10**9  # a larger count is an error of the server's
THOUGHTS = ("thinking", "reasoning", "thought")  # types of parts that are no answer
CUT_OFF = ("length", "max_tokens")  # finish_reason of an answer that reached its limit


class Broken(Exception):
    """An answer that is no completion; its text says what it is instead."""


@dataclass(frozen=True)
class ToolCall:
    """A tool that a model asks for, as it wrote it: nothing here has been checked."""

    id: str  # by which the answer refers to it
    name: str
    arguments: str  # JSON, as a rule


@dataclass(frozen=True)
class Completion:
    """A model's answer. None = not known."""

    text: str  # the answer, verbatim; "" if there is none
    model: str | None = None  # as the server names it
    prompt_tokens: int | None = None  # 0 or more
    completion_tokens: int | None = None  # 0 or more
    finish_reason: str | None = None  # why the model stopped, as the server names it
    seconds: float | None = None  # from the first attempt to the answer
    attempts: int = 0  # times that the request was sent
    uncertain: int = 0  # attempts that ended without an answer and may have been charged
    name: str = ""  # of the request that bought it
    buyer: str = ""  # of the run that bought it
    calls: tuple[ToolCall, ...] = added(())  # tools that the model asks for
    likely: Mapping[str, float] | None = added(None)  # first tokens of the answer, with their log-probabilities


def read(body: str) -> Completion:
    """The completion in the body of a server's answer.

    Raises Broken for half of one, nothing, or another thing; for no body anything else.
    """
    try:
        found = json.loads(body.lstrip("\ufeff"), parse_int=_integer)
    except (ValueError, RecursionError):
        raise Broken(f"a broken answer ({one_line(body[:500], 60)!r})" if body.strip() else "an empty answer") from None
    choices = found.get("choices") if isinstance(found, dict) else None
    choice = choices[0] if isinstance(choices, list) and choices else None
    if not isinstance(choice, dict) or not ("message" in choice or "text" in choice):
        raise Broken(f"an answer that is no completion ({one_line(body[:500], 60)!r})")
    usage = found.get("usage") if isinstance(found.get("usage"), dict) else {}
    return Completion(
        _read_answer(choice),
        short_text(found.get("model")),
        count(usage.get("prompt_tokens")),
        count(usage.get("completion_tokens")),
        short_text(choice.get("finish_reason")),
        calls=_calls(choice.get("message")),
        likely=_likely(choice.get("logprobs")),
    )


def restore(row: Any) -> Completion | None:
    """The completion that a file of the cache holds, whichever version wrote it; None if it holds none."""
    if not isinstance(row, dict) or "text" not in row:
        return None
    return Completion(
        text_of(row["text"]),
        short_text(row.get("model")),
        count(row.get("prompt_tokens")),
        count(row.get("completion_tokens")),
        short_text(row.get("finish_reason")),
        amount(row.get("seconds")),
        count(row.get("attempts")) or 0,
        count(row.get("uncertain")) or 0,
        short_text(row.get("name")) or "",
        short_text(row.get("buyer")) or "",
        _read_calls(row.get("calls")),
        _log_probabilities(row.get("likely")),
    )


def _likely(found: Any) -> dict[str, float] | None:
    """The log-probabilities of an answer's first token and of those that might have stood there; None: not said."""
    tokens = found.get("content") if isinstance(found, dict) else None
    first = tokens[0] if isinstance(tokens, list) and tokens else None
    rows = first.get("top_logprobs") if isinstance(first, dict) else None
    named = [row for row in rows if isinstance(row, dict)] if isinstance(rows, list) else []
    return _log_probabilities({str(row.get("token")): row.get("logprob") for row in named})


def _log_probabilities(rows: Any) -> dict[str, float] | None:
    """Of tokens; numbers that are none, or above 0, are left out. None where nothing is left."""
    if not isinstance(rows, dict):
        return None
    numbers = {str(t)[:100]: p for t, p in rows.items() if isinstance(p, int | float) and not isinstance(p, bool)}
    return {token: float(p) for token, p in numbers.items() if p <= 0} or None


def _calls(message: Any) -> tuple[ToolCall, ...]:
    """The tools that a message asks for, as far as they can be read."""
    asked = message.get("tool_calls") if isinstance(message, dict) else None
    named = [own for own in asked if isinstance(own, dict)] if isinstance(asked, list) else []
    rows = [own["function"] | {"id": own.get("id")} for own in named if isinstance(own.get("function"), dict)]
    return _read_calls(rows)


def _read_calls(rows: Any) -> tuple[ToolCall, ...]:
    """Calls from rows `{"id", "name", "arguments"}` of any shape. Ids are made where there are none, or one twice."""
    found: list[ToolCall] = []
    for row in rows[:MOST_CALLS] if isinstance(rows, list) else ():
        name = short_text(row.get("name")) if isinstance(row, dict) else None
        if name is None:
            continue
        own = short_text(row.get("id"))
        taken = own is None or any(call.id == own for call in found)
        written = row.get("arguments")
        found.append(
            ToolCall(f"call-{len(found)}" if taken else str(own), name, text_of("{}" if written is None else written))
        )
    return tuple(found)


def unfinished(finish_reason: str | None, max_tokens: int) -> str | None:
    """Why an answer stopped before its end, and what to do about it; None if it didn't, as far as is known."""
    reason = (finish_reason or "").lower()
    if reason in CUT_OFF:
        return f"cut off at {max_tokens} tokens: raise proposer.max_tokens, or turn the model's thinking off"
    return "withheld by the server's content filter" if reason == "content_filter" else None


def count(value: Any) -> int | None:
    """A whole number from 0 to MOST_TOKENS, or None for anything else (NaN, a negative number, a truth value, text)."""
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    return value if type(value) is int and 0 <= value <= MOST_TOKENS else None


def amount(value: Any) -> float | None:
    """A finite number of at least 0, or None for anything else."""
    number = isinstance(value, int | float) and not isinstance(value, bool)
    return value if number and 0 <= value <= MOST_TOKENS and math.isfinite(value) else None


def short_text(value: Any) -> str | None:
    """A short text on one line, or None for anything else."""
    return (one_line(value, 200) or None) if isinstance(value, str) else None


def text_of(content: Any) -> str:
    """The text of a message's content, which may be a string, a list of parts, or the answer as JSON itself."""
    if content is None:
        return ""
    if isinstance(content, list) and all(isinstance(part, str) for part in content):
        content = "\n".join(content)
    elif isinstance(content, list | dict) and (parts := _parts(content)) is not None:
        content = "".join(parts)
    if not isinstance(content, str):
        try:
            content = json.dumps(content, ensure_ascii=False)
        except (ValueError, RecursionError):
            content = ""
    return readable(content[:LONGEST])


def _parts(content: list[Any] | dict[str, Any]) -> list[str] | None:
    """The texts of a message's parts, those of thoughts left out; None for what is no list of parts."""
    parts = [part for part in (content if isinstance(content, list) else [content]) if isinstance(part, dict)]
    if not any("type" in part or "text" in part for part in parts):
        return None
    texts = []
    for part in parts:
        if str(part.get("type")) not in THOUGHTS:
            own = part.get("text", part.get("refusal"))
            own = own.get("value") if isinstance(own, dict) else own
            texts += [own] if isinstance(own, str) else []
    return texts


def _read_answer(choice: dict[str, Any]) -> str:
    """The answer in a choice.

    Some servers put the whole answer where a reasoning model's thoughts belong and leave the content empty: if the
    model has finished, the last JSON in there is the answer. Thoughts without one are kept, marked as what they are.
    """
    message = choice.get("message", choice.get("text"))
    if not isinstance(message, dict):
        return text_of(message)
    for place in ("content", "refusal"):
        if (text := text_of(message.get(place))).strip():
            return text
    thought = text_of(message.get("reasoning_content") or message.get("reasoning"))
    if not thought.strip():
        return ""
    ended = str(choice.get("finish_reason")).lower() not in CUT_OFF
    said = without_thoughts(thought)
    answers = [found for found in loose.values(said) if ended and not found.cut and isinstance(found.value, dict)]
    return said[answers[-1].start : answers[-1].end] if answers else f"<think>{thought}"


def _integer(digits: str) -> int | float:
    return int(digits) if len(digits) <= loose.LONGEST_INTEGER else math.inf
