"""Any text at all: what is JSON is read as JSON, nothing raises, nothing takes long, no label is unfit to print."""

import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from saelab.label.vlm import loose, parse


@pytest.mark.parametrize(
    "text", ["[" * 5000, '{"a":' * 3000, '[{"a": ' * 30_000, "{" * 90_000, '{"a": "' + '{"' * 40_000, "['" * 40_000]
)
def test_loops_are_unparsed_and_soon_given_up(text):
    assert parse.concepts(text) == parse.Answer() and parse.numbers(text, "fits", 8) is None


@settings(max_examples=100)
@given(
    st.recursive(
        st.none() | st.booleans() | st.integers(-(10**20), 10**20) | st.floats(allow_nan=False) | st.text(max_size=20),
        lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=9), inner, max_size=4),
        max_leaves=15,
    ).filter(lambda value: isinstance(value, list | dict)),
    st.booleans(),
    st.sampled_from([None, 2]),
)
def test_valid_json_is_read_as_json_reads_it(value, ascii_only, indent):
    text = json.dumps(value, ensure_ascii=ascii_only, indent=indent)
    (found,) = loose.values(f"So: {text} End.")
    assert found.value == value and not found.cut and (found.start, found.end) == (4, 4 + len(text))
    for end in range(len(text)):  # cut off anywhere: what is read is a part of the whole
        for part in loose.values(text[:end]):
            json.dumps(part.value).encode()


PIECES = [
    '{"concepts": [',
    '"cat"',
    "'",
    '"',
    ",",
    "，",
    "]",
    "}",
    "{",
    "[",
    ":",
    "\\",
    "\\u12",
    "\ud800",
    "9" * 30,
    "none",
]
PIECES += [
    "<think>",
    "</think>",
    "\n",
    " ",
    "1. ",
    "(",
    "）",
    "true",
    "NaN",
    "-",
    "e5",
    "狗",
    "\u200b",
    '{"fits": [1, ',
    "```",
    "*",
]


@settings(max_examples=300)
@given(st.text(st.characters(exclude_categories=())) | st.lists(st.sampled_from(PIECES), max_size=25).map("".join))
def test_no_text_raises_and_no_label_is_unfit_to_print(text):
    answer = parse.concepts(text)
    assert (answer.status == "answered") == bool(answer.concepts) and len(answer.concepts) <= 3
    for label in answer.concepts:
        assert label.isprintable() and len(label.split()) <= 4 and label == " ".join(label.split())
        label.encode()
    (answer.evidence or "").encode()
    assert answer.confidence is None or 0 <= answer.confidence <= 1
    said = parse.numbers(text, "fits", 8)
    assert said is None or said == sorted({n for n in said if 1 <= n <= 8})
