"""Answers of language models, read forgivingly: guided JSON, JSON within prose, half a JSON, and plain lists.

Nothing is made up: where prose names no clear concept, or where an answer contradicts itself, it is unparsed and
stays as it is. No text makes these functions raise.
"""

import math
import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from saelab.label.vlm import loose
from saelab.label.vlm.text import without_thoughts

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
    r" (in common|(common|shared) (concept|feature)s?)|无|無|没有(共同\w*)?|无共同\w*|なし)\W*$",
    re.IGNORECASE,
)
REFUSAL = re.compile(
    r"\b(I|I'm|I'll|we|you|sorry|cannot|can't|unable|please|image shows)\b"
    r"|抱歉|对不起|無法|无法|不能|申し訳|できません",
    re.IGNORECASE,
)
KEYS = ("concepts", "concept", "labels", "label")  # where an object holds the concepts, in this order
NAMES = ("name", "concept", "label", "title", "value")  # where an object that stands for a concept holds its name
MOST_IN_A_LIST = 6  # a longer list of short items is taken for prose or for a loop
LONGEST_NUMBER = 6  # digits of a photo's or a candidate's number
BULLET = re.compile(r"^\s*(?:[-*•·]|[(（]?\d{1,2}[.):）．、：])\s*")
NUMBERED = re.compile(r"(?:^|\s)[(（]?\d{1,2}[.)）．、]\s*")
SEPARATORS = (re.compile("[,，、،]"), re.compile("[;；]"))  # the first that occurs
PAIRS = dict(zip("(（[{「『《“‘", ")）]}」』》”’", strict=True))
EDGES = " \t\n\"'`*_.,;:。，、；：·"


@dataclass(frozen=True)
class Answer:
    """What an answer says."""

    concepts: tuple[str, ...] = ()  # as written, trimmed, no two alike, each short enough
    status: str = "unparsed"  # answered | none | unparsed
    evidence: str | None = None
    confidence: float | None = None  # 0..1


def concepts(text: str, most: int = 3, words: int = 4) -> Answer:
    """At most `most` concepts of at most `words` words each; longer ones are left out.

    Tried in order: a JSON object with "concepts" (alone, fenced, within prose, cut off), a JSON list, a bulleted,
    numbered or comma-separated list. Two Chinese characters or three kana count as a word. "none": true, an empty list
    and phrases such as "nothing in common" mean that the images share nothing. Objects that name different concepts
    make the answer unparsed.
    """
    text = without_thoughts(text)
    found = list(loose.values(text))
    answers = [_from_object(own, cut, most, words) for own, cut in _objects(found, KEYS)]
    if answers:
        first = answers[0]
        said = {(answer.status, answer.concepts) for answer in answers}
        return first if len(said) == 1 else Answer()
    if any(isinstance(own.value, dict) for own in found):
        return Answer()
    if lists := [own for own in found if own.value and not own.cut]:
        return _answer(_names(lists[0].value), most, words) if len(lists) == 1 else Answer()
    if found:
        bare = text.strip().strip("`").removeprefix("json").strip() == text[found[0].start : found[0].end]
        return Answer(status="none") if bare and not found[0].cut else Answer()
    if NOTHING.match(text.strip()):
        return Answer(status="none")
    return _answer(_plain_list(text, words), most, words, empty_is_none=False)


def numbers(text: str, key: str, most: int) -> list[int] | None:
    """Whole numbers 1..most from `{"<key>": [..]}`, or from text that holds numbers and no word; else None.

    An empty list is an answer. Numbers out of range, an answer that is cut off, and objects that disagree make it
    unusable.
    """
    text = without_thoughts(text)
    found = list(loose.values(text))
    if any(own.cut for own in found):
        return None
    if objects := [own for own, _ in _objects(found, (key,))]:
        said = [_whole_numbers(_member(own, (key,)), most) for own in objects]
        return said[0] if all(other == said[0] for other in said) else None
    if any(isinstance(own.value, dict) for own in found):
        return None
    if found:
        return _whole_numbers(found[0].value, most) if len(found) == 1 else None
    return [] if NOTHING.match(text.strip()) else _whole_numbers(text, most)


def _objects(found: list[loose.Found], keys: tuple[str, ...]) -> list[tuple[dict[str, Any], bool]]:
    """The objects that have one of the keys (or say "none": true), with whether they are cut off; wrapped ones too."""

    def within(value: Any) -> Iterator[dict[str, Any]]:
        if isinstance(value, dict) and _holds(value, keys):
            yield value
        elif isinstance(value, dict | list):
            for member in value.values() if isinstance(value, dict) else value:
                yield from within(member)

    return [(own, each.cut) for each in found for own in within(each.value)]


def _holds(value: dict[str, Any], keys: tuple[str, ...]) -> bool:
    return any(key.lower() in keys for key in value) or (keys is KEYS and _yes(_member(value, ("none",))))


def _member(found: dict[str, Any], keys: tuple[str, ...]) -> Any:
    """The value under the first of the keys that the object has, in whatever case; None without one."""
    lowered = {key.lower(): value for key, value in found.items()}
    return next((lowered[key] for key in keys if key in lowered), None)


def _yes(value: Any) -> bool:
    return value is True or (isinstance(value, str) and value.strip().lower() in ("true", "yes"))


def _from_object(found: dict[str, Any], cut: bool, most: int, words: int) -> Answer:
    evidence, confidence = _member(found, ("evidence",)), _confidence(_member(found, ("confidence",)))
    evidence = evidence if isinstance(evidence, str) and evidence.strip() else None
    if _yes(_member(found, ("none",))):
        return Answer((), "none", evidence, confidence)
    items = _names(_member(found, KEYS))
    if items is None:
        return Answer()
    answer = _answer(items, most, words, empty_is_none=not cut)
    return Answer(answer.concepts, answer.status, evidence, confidence)


def _names(value: Any) -> list[str] | None:
    """The names in what stands for a list of concepts: text, strings, objects with a name or a score; else None."""
    if isinstance(value, str):
        return _separate(value)
    if isinstance(value, dict):
        if isinstance(named := _member(value, NAMES), str):
            return [named]
        if value and all(isinstance(own, str) for own in value.values()):
            return list(value.values())  # {"1": "cat", "2": "dog"}
        scores = all(isinstance(own, int | float) for own in value.values())
        return list(value) if value and scores else None  # {"cat": 0.9, "dog": 0.5}
    if not isinstance(value, list):
        return None
    items: list[str] = []
    for own in value:
        found = [own] if isinstance(own, str) else [] if own is None else _names(own)
        if found is None:
            return None
        items += found
    return items if items or not value else None


def _separate(text: str) -> list[str]:
    """The items of a list on one line."""
    if NUMBERED.match(text) and len(NUMBERED.findall(text)) > 1:
        return [item for item in NUMBERED.split(text) if item.strip()]
    return next((mark.split(text) for mark in SEPARATORS if mark.search(text)), [text])


def _plain_list(text: str, words: int) -> list[str]:
    """Items of a bulleted, numbered or comma-separated list; [] for prose and refusals."""
    lines = [line.strip() for line in text.strip().strip("`").splitlines() if line.strip()]
    if lines and lines[0].endswith((":", "：")) and len(lines) > 1:
        lines = lines[1:]  # "Concepts:"
    numbered = all(re.match(rf"{place}[.):]?\s", line) for place, line in enumerate(lines[:-1], 1))
    if len(lines) > 1 and numbered and re.fullmatch(rf"{len(lines)}[.):]?", lines[-1]):
        lines = lines[:-1]  # cut off after the number of the next item
    if len(lines) == 1:
        own = re.sub(r"^\s*(concepts?|answer|labels?|概念|标签|答案)\s*[:：]\s*", "", lines[0], flags=re.IGNORECASE)
        lines = _separate(own.rstrip(".。"))
    items = [_trim(line) for line in lines]
    prose = any(_words(item) > words or re.search(r"[.!?:;。！？：；]", item) or REFUSAL.search(item) for item in items)
    return [] if prose or not 0 < len(items) <= MOST_IN_A_LIST else items


def _answer(items: list[str] | None, most: int, words: int, empty_is_none: bool = True) -> Answer:
    if items is None:
        return Answer()
    trimmed = [_trim(item) for item in items]
    if not any(trimmed):
        return Answer(status="none" if empty_is_none and not items else "unparsed")
    if all(NOTHING.match(item) for item in trimmed if item):
        return Answer(status="none")
    short: dict[str, str] = {}
    for item in trimmed:
        if _is_name(item) and _words(item) <= words and not NOTHING.match(item):
            short.setdefault(item.casefold(), item)
    kept = tuple(short.values())[:most]
    return Answer(kept, "answered" if kept else "unparsed")


def _is_name(item: str) -> bool:
    """Whether people could write it: some letter or digit, no markup, nothing that can't be printed or decoded."""
    return any(c.isalnum() for c in item) and item.isprintable() and not re.search(r"[\ufffd<>{}\[\]|\\]", item)


def _words(item: str) -> int:
    """Words; Chinese and Japanese set none apart, so two characters or three kana count as one."""
    han, kana = re.findall("[㐀-鿿豈-﫿]", item), re.findall("[぀-ヿ]", item)
    rest = re.sub("[㐀-鿿豈-﫿぀-ヿ]", " ", item)
    return len(rest.split()) + math.ceil(len(han) / 2 + len(kana) / 3)


def _trim(item: str) -> str:
    """Without bullets, numbering, quotes, emphasis, closing punctuation and half a pair of brackets; single spaces."""
    item = BULLET.sub("", re.sub("[\u200b\u2060\ufeff]", "", item))
    while (shorter := _unwrap(item.strip(EDGES))) != item:
        item = shorter
    return " ".join(item.split())


def _unwrap(item: str) -> str:
    for left, right in PAIRS.items():
        if item.startswith(left) and item.endswith(right) and left not in item[1:] and len(item) > 1:
            return item[1:-1]
        if item.startswith(left) and right not in item:
            return item[1:]
        if item.endswith(right) and left not in item:
            return item[:-1]
    return item


def _whole_numbers(value: Any, most: int) -> list[int] | None:
    """The distinct numbers above 0, in order, of a number, a list of numbers, or text that holds nothing else."""
    if isinstance(value, str):
        value = re.split(r"[\s,，、;；]+", value.strip())
    items, said = value if isinstance(value, list) else [value], set()
    for item in items:
        if isinstance(item, str) and (digits := re.fullmatch(r"[#(]?(\d+)[.)]?", item, re.ASCII)):
            item = int(digits[1]) if len(digits[1]) <= LONGEST_NUMBER else None
        if isinstance(item, float) and item.is_integer():
            item = int(item)
        if type(item) is not int or not 0 <= item <= most:
            return None
        said.add(item)
    return sorted(said - {0})


def _confidence(value: Any) -> float | None:
    """A share of 1 from 0.8, "0.8", 80 or "80 %"."""
    if isinstance(value, str):
        match = re.fullmatch(r"\s*([\d.]+)\s*([%％]?)\s*", value[:40])
        try:
            value = float(match[1]) / (100 if match[2] else 1) if match else None
        except ValueError:
            value = None
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value <= 100:
        return None
    return float(value / 100 if value > 1 else value)
