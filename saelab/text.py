"""Text from outside, brought to one form: what looks alike is equal, and what can't be seen is gone."""

import functools
import re
import unicodedata

# Scripts written without spaces between words: Thai to Khmer, Chinese characters, Japanese syllables.
_UNSPACED = "\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3005-\u3007\u3041-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff"
_UNSPACED += "\U00020000-\U0003ffff"
_IS_UNSPACED = re.compile(f"[{_UNSPACED}]")
# A joiner shapes letters of these scripts (Arabic, Indic ...) and emoji; between any others it is only invisible.
_SHAPED = "\u0600-\u1fff\u2600-\u27bf\ufe0f\U0001f000-\U0001faff"
_JOINER = re.compile(f"(?<=[{_SHAPED}])[\u200c\u200d](?=[{_SHAPED}])")


def visible(text: str, joiners: bool = True) -> str:
    """`text` in Unicode's composed form (NFC) without characters that can't be seen.

    Removed: zero-width characters, byte-order marks, direction marks, soft hyphens (category Cf) and lone surrogates;
    control characters become spaces. `joiners` keeps the zero-width joiners that shape Arabic, Indic and emoji text.
    """
    if text.isascii() and text.isprintable():
        return text
    kept = []
    shaping = {match.start() for match in _JOINER.finditer(text)} if joiners else set()
    for place, char in enumerate(text):
        category = unicodedata.category(char)
        if category == "Cc":
            kept.append(" " if char not in "\t\n\r" else char)
        elif category not in ("Cf", "Cs") or place in shaping:
            kept.append(char)
    return unicodedata.normalize("NFC", "".join(kept))


def fold(text: str) -> str:
    """What spellings of one text share: no case, no width, no invisible character (Unicode's NFKC_Casefold)."""
    if text.isascii():
        return visible(text).casefold()
    text = unicodedata.normalize("NFKC", visible(text, joiners=False))
    return unicodedata.normalize("NFKC", unicodedata.normalize("NFD", text).casefold())


def words(text: str) -> list[str]:
    """The words of a text, in order. In scripts without spaces every character (with its marks) is a word."""
    return _word().findall(text)


def is_unspaced(word: str) -> bool:
    """Is it a word of a script without spaces, that is, a single character?"""
    return _IS_UNSPACED.match(word) is not None


@functools.lru_cache(maxsize=1)
def _word() -> re.Pattern[str]:
    """Letters and digits with their combining marks, which `\\w` leaves out."""
    marks = "".join(chr(c) for c in range(0x300, 0x1F000) if unicodedata.category(chr(c)).startswith("M"))
    marks = re.sub(r"[\[\]\\^-]", "", marks)
    return re.compile(f"[{_UNSPACED}][{marks}]*|[^\\W{_UNSPACED}](?:[^\\W{_UNSPACED}]|[{marks}])*")
