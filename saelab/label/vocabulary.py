"""Vocabularies: the labels that units may get, where each came from, and how spellings of one label become one.

A vocabulary is pooled from sources named in a list: `imagenet1k`, `imagenet21k`, `wordnet_nouns`, `classes` and
`captions` (of the images' own `mine` split), `file:PATH` or `file:PATH#COLUMN` (text, CSV, TSV, JSON), and whatever a
proposer adds.
"""

import logging
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from saelab.errors import UserError
from saelab.images import ImageSet
from saelab.label.label_files import read as read_file
from saelab.names import imagenet21k_names, imagenet_names
from saelab.text import fold, visible

log = logging.getLogger("saelab")

SOURCES = ("imagenet1k", "imagenet21k", "wordnet_nouns", "classes", "captions", "file:PATH")

# Plurals that name something else than their singular.
OWN_PLURALS = re.compile(
    "glasses|sunglasses|eyeglasses|spectacles|binoculars|goggles|goods|means|news|customs|works|trunks|briefs|shorts|"
    "tights|jeans|pants|slacks|scales|compasses|irons|woods|waters|stairs|physics|athletics|optics|graphics|ceramics|"
    "genetics|electronics|mathematics|politics|statistics|classics|headquarters"
)


@dataclass(frozen=True)
class Vocabulary:
    """Distinct labels in a fixed order, each with the sources that named it."""

    labels: tuple[str, ...]  # normalised, distinct
    sources: tuple[tuple[str, ...], ...]  # per label, in the order in which they were read

    def __len__(self) -> int:
        return len(self.labels)

    def plus(self, labels: Iterable[str], source: str, keep_underscores: bool = False) -> "Vocabulary":
        """This vocabulary with more labels from `source`; known ones (up to `key`) only gain the source."""
        return pool([*zip(self.labels, self.sources), *((x, (source,)) for x in labels)], keep_underscores)


def clean(label: str, keep_underscores: bool = False) -> str:
    """A label as it is embedded and shown: trimmed, single spaces, no quotes or full stop, underscores as spaces.

    Unicode's composed form (NFC), without characters that can't be seen. `keep_underscores`: the CSP authors embed
    `bicycle_wheel` as it stands (preset `csp_paper`).
    """
    text = visible(label) if keep_underscores else visible(label).replace("_", " ")
    return re.sub(r"\s+", " ", text).strip().strip("\"'`“”").rstrip(".").strip()


def key(label: str) -> str:
    """What two spellings of one label share: case, width, underscores, hyphens, a leading article, a plural ending.

    The plural rule is the plain English one on the last word (`-ies`, `-es` after s/x/z/ch/sh, `-s` but not `-ss`,
    `-us`, `-is`); irregular plurals stay apart, and so do those that mean something else (glasses, shorts, goods).
    """
    text = re.sub("[-\u2010-\u2015]", " ", fold(clean(label)))
    text = re.sub(r"^(a|an|the) ", "", text)
    head, _, last = text.rpartition(" ")
    if len(last) > 3 and not OWN_PLURALS.fullmatch(last):
        if last.endswith("ies"):
            last = last[:-3] + "y"
        elif re.search(r"(ss|x|z|ch|sh)es$", last):
            last = last[:-2]
        elif last.endswith("s") and not last.endswith(("ss", "us", "is")):
            last = last[:-1]
    return f"{head} {last}".strip()


def pool(entries: Iterable[tuple[str, tuple[str, ...]]], keep_underscores: bool = False) -> Vocabulary:
    """One vocabulary from (label, sources) pairs; the first spelling of a key wins, empty labels are passed over."""
    labels: dict[str, str] = {}
    sources: dict[str, dict[str, None]] = {}
    for label, origin in entries:
        text = clean(label, keep_underscores)
        if not text:
            continue
        k = key(text)
        labels.setdefault(k, text)
        sources.setdefault(k, {}).update(dict.fromkeys(origin))
    return Vocabulary(tuple(labels.values()), tuple(tuple(sources[k]) for k in labels))


def build(sources: Sequence[str], images: ImageSet | None = None, keep_underscores: bool = False) -> Vocabulary:
    """The vocabulary of these sources, in their order.

    Images without classes or captions add none (the log says so), so one list of sources serves all kinds of sets.
    Raises UserError for an unknown source, an unreadable or empty file, or where no source holds a label.
    """
    if not isinstance(keep_underscores, bool):
        raise UserError("label.keep_underscores", keep_underscores, "expected true or false")
    entries: list[tuple[str, tuple[str, ...]]] = []
    for source in sources:
        labels = _read(source, images)
        if not labels:
            log.info("vocabulary: the pictures have no %s", source)
        entries.extend((label, (source,)) for label in labels)
    found = pool(entries, keep_underscores)
    if not found.labels:
        remedy = f"add one that does: {', '.join(SOURCES)}"
        raise UserError("vocabulary", list(sources), "none of these sources holds a label", remedy)
    return found


def _read(source: str, images: ImageSet | None) -> Sequence[str]:
    if source == "imagenet1k":
        return imagenet_names()
    if source == "imagenet21k":
        return imagenet21k_names()
    if source == "wordnet_nouns":
        return wordnet_nouns()
    if source in ("classes", "captions"):
        if images is None:
            raise UserError("vocabulary", source, "needs an image set", "give `images`")
        mine = images.ids("mine")
        if source == "classes":
            return sorted({name for i in mine for name in images.classes[i]})
        return sorted({caption for i in mine if (caption := images.captions[i])})
    if source.startswith("file:"):
        return read_file(source.removeprefix("file:"))
    raise UserError("vocabulary", source, "unknown source", f"known: {', '.join(SOURCES)}")


def wordnet_nouns(folder: Path = Path("/usr/share/wordnet")) -> list[str]:
    """The 117,798 nouns and noun phrases of WordNet 3.0, in the order of its index (underscores for spaces).

    Taken from `folder` if WordNet lies there, else from Debian's package wordnet-base, fetched once without root into
    the user's cache. Raises UserError if neither works.
    """
    from saelab.images.demo import apt
    from saelab.images.user_cache import user_cache

    own = user_cache("wordnet")
    index = next((f for f in (folder / "index.noun", own / "usr/share/wordnet/index.noun") if f.is_file()), None)
    if index is None:
        try:
            apt.unpack(apt.fetch(["wordnet-base"], own)[0], own)
        except apt.FetchFailed as error:
            remedy = "install WordNet (Debian: wordnet-base), or use imagenet21k, whose names are its nouns too"
            raise UserError("vocabulary", "wordnet_nouns", f"can't be fetched ({error})", remedy) from None
        index = own / "usr/share/wordnet/index.noun"
    lines = index.read_text(encoding="utf-8").splitlines()
    return [line.split(" ", 1)[0] for line in lines if not line.startswith(" ")]  # the licence is indented
