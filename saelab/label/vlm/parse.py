"""Answers of language models, read forgivingly: guided JSON, JSON within prose, half a JSON, and plain lists.

Nothing is made up: where no concept can be told from prose, the answer is unparsed and stays as it is.
"""

import json
import re
from dataclasses import dataclass
from typing import Any

CONCEPTS_SCHEMA: dict[str, Any] = {
    "type": "object",
    "properties": {
        "concepts": {"type": "array", "items": {"type": "string"}, "maxItems": 3},
        "evidence": {"type": "string"},
        "confidence": {"type": "number"},
        "none": {"type": "boolean"},
    },
    "required": ["concepts", "evidence", "confidence", "none"],
    "additionalProperties": False,
}
NOTHING = re.compile(
    r"^\W*(none|nothing|n/?a|(there (is|are) )?(nothing|no)( \w+)?"
    r" (in common|(common|shared) (concept|feature)s?))\W*$",
    re.IGNORECASE,
)
REFUSAL = re.compile(r"\b(I|I'm|I'll|we|you|sorry|cannot|can't|unable|please|image shows)\b", re.IGNORECASE)
MOST_IN_A_LIST = 6  # a longer list of short items is taken for prose or for a loop


@dataclass(frozen=True)
class Answer:
    """What an answer says."""

    concepts: tuple[str, ...] = ()  # as written, trimmed, no two alike, each short enough
    status: str = "unparsed"  # answered | none | unparsed
    evidence: str | None = None
    confidence: float | None = None  # 0..1


def concepts(text: str, most: int = 3, words: int = 4) -> Answer:
    """At most `most` concepts of at most `words` words each; longer ones are left out.

    Tried in order: a JSON object with "concepts" (alone, fenced, within prose), a JSON list, the list inside a JSON
    that was cut off, a bulleted, numbered or comma-separated list. "none": true, an empty list and phrases such as
    "nothing in common" mean that the images share nothing.
    """
    text = _last_thought(text)
    found = json_in(text)
    if isinstance(found, dict):
        return _from_object(found, most, words)
    if isinstance(found, list) and all(isinstance(item, str) for item in found):
        return _answer(found, most, words)
    if (items := _cut_off(text)) is not None:
        return _answer(items, most, words, empty_is_none=False)
    if NOTHING.match(text.strip()):
        return Answer(status="none")
    return _answer(_plain_list(text, words), most, words, empty_is_none=False)


def json_in(text: str) -> Any:
    """The first JSON object or list of strings within `text`; None where there is none."""
    decoder = json.JSONDecoder()
    for match in re.finditer(r"[{\[]", text):
        try:
            value, _ = decoder.raw_decode(text, match.start())
        except json.JSONDecodeError:
            continue
        if isinstance(value, dict | list):
            return value
    return None


def numbers(text: str, key: str, most: int) -> list[int] | None:
    """Whole numbers 1..most from `{"<key>": [..]}`, or from text that holds numbers and no other word; else None.

    An empty list is an answer; numbers out of range make the answer unusable.
    """
    text = _last_thought(text)
    found = json_in(text)
    value = found.get(key) if isinstance(found, dict) else found
    if isinstance(value, int) and not isinstance(value, bool):
        value = [value]
    if value is None and not re.search(r"[A-Za-z]{2,}", text) and (digits := re.findall(r"\d+", text)):
        value = [int(d) for d in digits]
    if value is None and NOTHING.match(text.strip()):
        value = []
    if not isinstance(value, list) or any(type(n) is not int or not 0 <= n <= most for n in value):
        return None
    return sorted({n for n in value if n > 0})


def _last_thought(text: str) -> str:
    """The text without what a reasoning model thought aloud before it."""
    return re.sub(r"<think>.*?(</think>|$)", "", text, flags=re.DOTALL)


def _from_object(found: dict[str, Any], most: int, words: int) -> Answer:
    lowered = {str(k).lower(): v for k, v in found.items()}
    evidence, confidence = lowered.get("evidence"), _confidence(lowered.get("confidence"))
    if not isinstance(evidence, str) or not evidence.strip():
        evidence = None
    if lowered.get("none") is True:
        return Answer((), "none", evidence, confidence)
    for key in ("concepts", "concept", "labels", "label"):
        value = lowered.get(key)
        if isinstance(value, str):
            value = value.split(",")
        if isinstance(value, list) and all(isinstance(item, str) for item in value):
            answer = _answer(value, most, words)
            return Answer(answer.concepts, answer.status, evidence, confidence)
    return Answer()


def _cut_off(text: str) -> list[str] | None:
    """The finished strings of a "concepts" list in a JSON that ends in the middle."""
    start = re.search(r'"concepts"\s*:\s*\[', text)
    if not start:
        return None
    return [json.loads(s) for s in re.findall(r'"(?:[^"\\\n]|\\.)*"', text[start.end() :].split("]")[0])]


def _plain_list(text: str, words: int) -> list[str]:
    """Items of a bulleted, numbered or comma-separated list; [] for prose and refusals."""
    lines = [line.strip() for line in text.strip().strip("`").splitlines() if line.strip()]
    if lines and lines[0].endswith(":") and len(lines) > 1:
        lines = lines[1:]  # "Concepts:"
    if len(lines) == 1:
        lines = re.sub(r"^\s*(concepts?|answer|labels?)\s*:\s*", "", lines[0], flags=re.IGNORECASE).split(",")
    items = [_trimmed(line) for line in lines]
    prose = any(len(item.split()) > words or re.search(r"[.!?:;]", item) or REFUSAL.search(item) for item in items)
    return [] if prose or not 0 < len(items) <= MOST_IN_A_LIST else items


def _answer(items: list[str], most: int, words: int, empty_is_none: bool = True) -> Answer:
    trimmed = [_trimmed(item) for item in items]
    if not any(trimmed):
        return Answer(status="none" if empty_is_none and not items else "unparsed")
    if all(NOTHING.match(item) for item in trimmed if item):
        return Answer(status="none")
    short: dict[str, str] = {}
    for item in trimmed:
        if _is_name(item) and len(item.split()) <= words and not NOTHING.match(item):
            short.setdefault(item.casefold(), item)
    kept = tuple(short.values())[:most]
    return Answer(kept, "answered" if kept else "unparsed")


def _is_name(item: str) -> bool:
    """Whether people could write it: some letter or digit, nothing that can't be printed or decoded."""
    return any(c.isalnum() for c in item) and item.isprintable() and "\ufffd" not in item


def _trimmed(item: str) -> str:
    """Without bullets, numbering, quotes, emphasis and closing punctuation; single spaces."""
    item = re.sub(r"^\s*(?:[-*•]|\(?\d{1,2}[.):])\s*", "", item)
    return " ".join(item.strip().strip("\"'`*_[](){}.,;").split())


def _confidence(value: Any) -> float | None:
    """A share of 1 from 0.8, "0.8", 80 or "80 %"."""
    if isinstance(value, str):
        match = re.fullmatch(r"\s*([\d.]+)\s*(%?)\s*", value)
        try:
            value = float(match[1]) / (100 if match[2] else 1) if match else None
        except ValueError:
            value = None
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value <= 100:
        return None
    return float(value / 100 if value > 1 else value)
