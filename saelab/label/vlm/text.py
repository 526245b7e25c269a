"""Text that comes from outside: made writable, put on one line, and freed from what a model thought aloud."""

import re

_NAMES = r"(?:seed:)?(?:think(?:ing)?|thoughts?|reason(?:ing)?|reflection|analysis|scratchpad)"
_START = re.compile(
    rf"<\s*{_NAMES}\s*>|\[\s*{_NAMES}\s*\]|◁\s*{_NAMES}\s*▷|<\|(?:start|begin)_(?:of_)?{_NAMES}\|>"
    r"|<\|channel\|>\s*analysis\s*<\|message\|>",
    re.IGNORECASE,
)
_END = re.compile(
    rf"<\s*/\s*{_NAMES}\s*>|\[\s*/\s*{_NAMES}\s*\]|◁\s*/\s*{_NAMES}\s*▷|<\|end_(?:of_)?{_NAMES}\|>"
    r"|<\|channel\|>\s*final\s*<\|message\|>",
    re.IGNORECASE,
)
_FRAME = re.compile(r"<\|[\w ]{1,40}\|>|<\s*/?\s*(?:answer|final|output|response)\s*>", re.IGNORECASE)


def readable(text: str) -> str:
    """The text as UTF-8 can hold it: halves of a surrogate pair joined, lone surrogates replaced by U+FFFD."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
    return text


def one_line(text: str, longest: int) -> str:
    """At most `longest` characters on one line, nothing unprintable: fit for a terminal, a log and a row."""
    visible = "".join(c if c.isprintable() else " " for c in readable(text))
    return " ".join(visible.split())[:longest]


def without_thoughts(text: str) -> str:
    """What a reasoning model says in the end: all that follows the last end mark, whether or not it was opened.

    Chat templates often write the opening mark into the prompt. A thought that never ends is dropped with all that
    follows. Marks around the answer (`<answer>`, `<|begin_of_box|>`) are dropped too.
    """
    start, ends = _START.search(text), list(_END.finditer(text))
    said = text[ends[-1].end() :] if ends else text
    if not said.strip() and start:
        said = text[: start.start()]  # the answer came first
    elif unended := _START.search(said):
        said = said[: unended.start()]
    return _FRAME.sub("", said)
