"""Answers of servers and models as people have really met them, for the fault server to send (`reshape`)."""

import json
from collections.abc import Callable
from typing import Any

from servers import Reply

FINAL = '{"concepts": ["wet fur"], "evidence": "x", "confidence": 0.8, "none": false}'


def with_message(**fields: Any) -> Callable[[Reply], Reply]:
    """Puts fields into the message of a completion."""

    def reshape(reply: Reply) -> Reply:
        choice = reply["choices"][0]
        return reply | {"choices": [choice | {"message": choice["message"] | fields}]}

    return reshape


def with_choice(**fields: Any) -> Callable[[Reply], Reply]:
    """Puts fields into the choice of a completion."""
    return lambda reply: reply | {"choices": [reply["choices"][0] | fields]}


def with_fields(**fields: Any) -> Callable[[Reply], Reply]:
    """Puts fields into a completion."""
    return lambda reply: reply | fields


ANSWERS: dict[str, Callable[[Reply], Reply | bytes]] = {  # shapes of answers that servers and models have really sent
    "bad escape": with_message(content='{"concepts": ["polka\\_dots", "it\\\'s wet"], "none": false}'),
    "control character": with_message(content='{"concepts": ["polka\tdots"], "none": false}'),
    "lone surrogate": with_message(content="dog \ud800, cat"),
    "escaped surrogate": with_message(content='{"concepts": ["dog"], "evidence": "\\ud83d"}'),
    "brackets": with_message(content="[" * 3000),
    "nested objects": with_message(content='{"a":' * 3000),
    "digits": with_message(content='{"concepts": ["cat"], "confidence": ' + "9" * 5000 + "}"),
    "NUL": with_message(content="\x00dog\x00"),
    "text parts": with_message(content=[{"type": "text", "text": FINAL[:30]}, {"type": "text", "text": FINAL[30:]}]),
    "object": with_message(content=json.loads(FINAL)),
    "number": with_message(content=5),
    "truth value": with_message(content=True),
    "null": with_message(content=None),
    "list of lists": with_message(content=[[1], [None]]),
    "reasoning": with_message(content=None, reasoning_content=FINAL),
    "reasoning list": with_message(content="", reasoning=[{"type": "text", "text": FINAL}]),
    "refusal": with_message(content=None, refusal="I can't help with that."),
    "tool call": with_message(content=None, tool_calls=[{"id": "1", "type": "function"}]),
    "message is text": with_choice(message=FINAL),
    "message is null": with_choice(message=None),
    "finish reason is a list": with_choice(finish_reason=["stop"]),
    "cut off": with_choice(finish_reason="length", message={"role": "assistant", "content": FINAL[:14]}),
    "usage is a list": with_fields(usage=[1, 2]),
    "usage is text": with_fields(usage="many"),
    "NaN tokens": with_fields(usage={"prompt_tokens": float("nan"), "completion_tokens": float("inf")}),
    "negative tokens": with_fields(usage={"prompt_tokens": -10, "completion_tokens": -1}),
    "tokens as text": with_fields(usage={"prompt_tokens": "12", "completion_tokens": [3]}),
    "true tokens": with_fields(usage={"prompt_tokens": True, "completion_tokens": False}),
    "huge tokens": lambda reply: (
        json.dumps(reply).replace('"completion_tokens": 7', '"completion_tokens": 1' + "0" * 5000).encode()
    ),
    "model is an object": with_fields(model={"id": "toy"}),
    "model with escapes": with_fields(model="toy\x1b[2J\n\ud800"),
    "no choices": with_fields(choices=[]),
    "choices is an object": with_fields(choices={"0": 1}),
    "choice is null": with_fields(choices=[None]),
    "an error with status 200": lambda _: {"error": {"message": "upstream failed", "code": 502}},
    "a list": lambda _: b"[1, 2]",
    "a number": lambda _: b"17",
    "a page": lambda _: b"<html><body>502 Bad Gateway</body></html>",
    "a stream": lambda reply: b"data: " + json.dumps(reply).encode() + b"\n\ndata: [DONE]\n\n",
    "byte-order mark": lambda reply: b"\xef\xbb\xbf" + json.dumps(reply).encode(),
    "bytes": lambda _: bytes(range(256)),
    "deep body": lambda _: b"[" * 100_000,
}
