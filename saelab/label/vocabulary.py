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
# Singulars that end as plurals do; theirs add "es".
ON_S = re.compile("lens|gas|canvas|atlas|bias|alias|pancreas|iris|thermos|rhinoceros|christmas")
# Plurals of words on "-ie", "-che" and "-use", which lose their "s" alone, and of those on "-o" that lose "es".
ON_E = re.compile(
    "((bow|neck)?t|(mag|pork|pot)?p|cook|mov|zomb|coll|bean|self|smooth|hood|bird|brown|gen|rook|talk|prair|aer|"
    "brasser|patisser|rotisser|menager|calor|pix|goal|dogg|food|budg|d|l)ies|"
    "((|head|tooth|stomach|belly|back|heart|ear|mo?ust|c|pan|gou|huar|ap)a|"
    "brio|ni|qui|cli|cre|clo|dou|avalan|pors|cartou|psy|microfi)ches|"
    "(|.*[ao]|.*f|m|r|cr|exc|recl|ab|cay|hypoten|masse|chartre|chante|berce)uses"
)
ON_O = re.compile(
    "(potat|tomat|her|mang|ech|volcan|mosquit|torped|buffal|domin|tornad|carg|zer|vet|embarg|ding|flaming|tuxed|hal|"
    "mott|grott|innuend|mulatt|desperad|mement|manifest|avocad)oes"
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

    The plural rule is the plain English one on the last word (`-ies`, `-es` after ss/us/x/z/ch/sh, `-s` but not `-ss`,
    `-us`, `-is`), with lists of words on `-ie`, `-che`, `-use`, `-o` and `-s` (ties, caches, houses, heroes, lens);
    irregular plurals stay apart, and so do those that mean something else (glasses, shorts, goods).
    """
    text = re.sub("[-\u2010-\u2015]", " ", fold(clean(label)))
    text = re.sub(r"^(a|an|the) ", "", text)
    head, _, last = text.rpartition(" ")
    return f"{head} {_singular(last)}".strip()


def _singular(word: str) -> str:
    """By the rules that `key` states."""
    if len(word) <= 3 or OWN_PLURALS.fullmatch(word) or ON_S.fullmatch(word):
        return word
    if word.endswith("es") and ON_S.fullmatch(word[:-2]):
        return word[:-2]
    if ON_E.fullmatch(word):
        return word[:-1]
    if word.endswith("ies"):
        return word[:-3] + "y"
    if ON_O.fullmatch(word) or re.search(r"(ss|us|x|z|ch|sh)es$", word):
        return word[:-2]
    return word[:-1] if word.endswith("s") and not word.endswith(("ss", "us", "is")) else word


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
