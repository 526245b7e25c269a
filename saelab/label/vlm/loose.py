"""JSON as language models write it: a reader of a superset of JSON that never raises and never takes long.

Beyond JSON it reads: any escape (`\\_`), line breaks within strings, unescaped quotes within strings, Python's quotes
and constants, typographic quotes, full-width commas and colons, plain words as keys, missing and trailing commas, and
what is whole of a value that the end of the text cuts off.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from saelab.label.vlm.text import readable

DEEPEST = 40  # levels of nesting; what is deeper is a loop, not an answer
EFFORT = 20  # how often each character may be read on average before the search is given up
QUOTES = {'"': '"', "'": "'", "“": "”", "‘": "’", "「": "」", "『": "』"}
COMMAS, COLONS = ",，、", ":："
CONSTANTS = {"true": True, "false": False, "null": None, "none": None, "nan": float("nan"), "infinity": float("inf")}
ESCAPES = {"n": "\n", "t": "\t", "r": "\r", "b": "\b", "f": "\f"}
_NUMBER = re.compile(r"-?\d+(?:\.\d+)?(?:[eE][+-]?\d+)?(?![\w.])", re.ASCII)
_BRACKET = re.compile(r"[{\[]")
_WORD = re.compile(r"-?[A-Za-z_]\w*")
_ESCAPE = re.compile(r"\\(u[0-9a-fA-F]{4}|.)", re.DOTALL)
_AFTER_A_STRING = re.compile(rf"\s*(?:[{COMMAS}{COLONS}\]}}{''.join(QUOTES)}]|$)")
LONGEST_INTEGER = 100  # digits; Python refuses to read more than 4300, and longer ones are loops


@dataclass(frozen=True)
class Found:
    """An object or a list within a text."""

    value: dict[str, Any] | list[Any]
    start: int  # place of its bracket
    end: int  # place behind it
    cut: bool  # the text ends before it does: `value` holds what is whole


class _Unreadable(Exception):
    """No value here."""


class _TooDeep(Exception):
    """More levels than DEEPEST."""


def values(text: str) -> Iterator[Found]:
    """The outermost objects and lists within `text`, in order. Nothing that is nested too deeply is read."""
    at, effort = 0, EFFORT * len(text) + 1000
    while effort > 0 and (bracket := _BRACKET.search(text, at)):
        reader = _Reader(text, bracket.start())
        try:
            value = reader.value(0)
        except _TooDeep:
            return
        except _Unreadable:
            at = bracket.end()
        else:
            yield Found(value, bracket.start(), reader.at, reader.cut)
            at = reader.at if value or not reader.cut else bracket.end()  # a bracket in prose swallows nothing
        effort -= reader.at - bracket.start()


class _Reader:
    """Reads one value from `at` on; `cut` is set where the text ends within it."""

    def __init__(self, text: str, at: int) -> None:
        self.text, self.at, self.cut = text, at, False

    def value(self, depth: int) -> Any:
        if depth > DEEPEST:
            raise _TooDeep
        first = self.next()
        if first == "{":
            return self.object(depth)
        if first == "[":
            return self.list(depth)
        if first in QUOTES:
            return self.string()
        if number := _NUMBER.match(self.text, self.at):
            self.at = number.end()
            self.cut = self.at == len(self.text)  # more digits may have followed
            digits = number[0]
            whole = digits.lstrip("-").isdigit() and len(digits) <= LONGEST_INTEGER
            return int(digits) if whole else float(digits)
        word = _WORD.match(self.text, self.at)
        name = word[0].lower() if word else ""
        if word is None or name.lstrip("-") not in CONSTANTS:
            raise _Unreadable
        self.at = word.end()
        constant = CONSTANTS[name.lstrip("-")]
        return -constant if name.startswith("-") and isinstance(constant, float) else constant

    def object(self, depth: int) -> dict[str, Any]:
        self.at += 1
        found: dict[str, Any] = {}
        while not self.closed("}"):
            key = self.key()
            if self.cut or self.next() == "":
                self.cut = True
                break
            if self.text[self.at] not in COLONS:
                raise _Unreadable
            self.at += 1
            value = self.member(depth)
            if self.cut and not isinstance(value, dict | list):
                break
            found[key] = value
            if self.cut:
                break
        return found

    def list(self, depth: int) -> list[Any]:
        self.at += 1
        found: list[Any] = []
        while not self.closed("]"):
            value = self.member(depth)
            if not self.cut or isinstance(value, dict | list):
                found.append(value)
            if self.cut:
                break
        return found

    def member(self, depth: int) -> Any:
        """A value within another one; None with `cut` where the text ends before it."""
        if self.next() == "":
            self.cut = True
            return None
        return self.value(depth + 1)

    def closed(self, bracket: str) -> bool:
        """Whether the bracket closes here, behind a comma or not; the end of the text closes everything."""
        if self.next() in COMMAS and self.next():
            self.at += 1
        if (found := self.next()) == bracket:
            self.at += 1
        elif found == "":
            self.cut = True
        return found in ("", bracket)

    def key(self) -> str:
        if self.next() in QUOTES:
            return self.string()
        word = _WORD.match(self.text, self.at)
        if word is None:
            raise _Unreadable
        self.at = word.end()
        return word[0]

    def string(self) -> str:
        """A string; its quote closes where something follows that can follow a string."""
        close, start = QUOTES[self.text[self.at]], self.at + 1
        for mark in re.compile(rf"\\.|{re.escape(close)}", re.DOTALL).finditer(self.text, start):
            if mark[0] == close and _AFTER_A_STRING.match(self.text, mark.end()):
                self.at = mark.end()
                return readable(_ESCAPE.sub(_unescape, self.text[start : mark.start()]))
        self.at, self.cut = len(self.text), True
        return ""

    def next(self) -> str:
        """The next character that is no space; "" at the end of the text."""
        while self.at < len(self.text) and self.text[self.at].isspace():
            self.at += 1
        return self.text[self.at : self.at + 1]


def _unescape(match: re.Match[str]) -> str:
    kind = match[1]
    return chr(int(kind[1:], 16)) if len(kind) == 5 else ESCAPES.get(kind, kind)
