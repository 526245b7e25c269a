"""Truth for labels: of which images is a label's text true, by what people wrote, not by what an encoder sees.

Captions and classes come with the photos; no vision model has a say here, so a label that is right by them is right
independently of the encoder that chose it. Photos are described briefly: that a caption doesn't mention a thing does
not prove it absent. Numbers against this truth are therefore low for right labels too, alike for every basis.
"""

import functools
import itertools
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from saelab.errors import UserError
from saelab.label.vocabulary import key
from saelab.text import is_unspaced, words

RULES = ("exact", "mention", "head")
LONGEST = 6  # words of a label that are looked for in captions
LONGEST_UNSPACED = 16  # characters of a label in a script without spaces


@dataclass(frozen=True)
class Truth:
    """Boolean truth of labels on images."""

    member: Bool[Tensor, "images concepts"]  # is the concept true of the image
    column: Mapping[str, int]  # label text -> concept; a label without truth is absent
    names: tuple[str, ...]  # what each concept is called
    known: Bool[Tensor, "images"]  # images that anybody described; the others say nothing
    rule: str  # how label texts were matched, for the record
    complete: bool = False  # whatever is true of an image is listed: a label that is no concept is true of none


@dataclass(frozen=True)
class Similarity:
    """A space that holds images and labels: the product of the two says how much of the label the image has.

    With an image-text encoder's vectors this is the judge of SCS. With a sentence encoder's vectors of the images'
    *captions* as `images` it is a truth in degrees, which has a value for every label.
    """

    name: str  # the encoder, as a person would cite it
    images: Float[Tensor, "images d_text"]  # unit length (rows of images that are not `known` are not read)
    labels: Float[Tensor, "labels d_text"]  # unit length
    row: Mapping[str, int]  # label text -> row of `labels`
    known: Bool[Tensor, "images"]  # images that have a vector

    @classmethod
    def of(
        cls, name: str, images: Tensor, texts: Sequence[str], labels: Tensor, known: Tensor | None = None
    ) -> "Similarity":
        """From label texts in the order of the rows of `labels`. Raises UserError where shapes don't fit."""
        if len(texts) != len(labels) or images.shape[1] != labels.shape[1]:
            shapes = f"{tuple(images.shape)} and {tuple(labels.shape)} for {len(texts)} texts"
            raise UserError("embeddings", name, f"don't fit: {shapes}", "embed images and labels with one encoder")
        known = torch.ones(len(images), dtype=torch.bool) if known is None else known
        return cls(name, images, labels, {text: i for i, text in enumerate(texts)}, known)


def from_descriptions(
    labels: Sequence[str], captions: Sequence[str | None], classes: Sequence[Sequence[str]], rule: str = "mention"
) -> Truth:
    """Which images are described by each label.

    `exact`: a class (or one of its comma-separated synonyms) or the whole caption is the label. `mention`: or the
    caption has the label's words in a row. `head`: or the caption or a class has the label's last word ("a robin" is
    then true of *American robin*; too generous for labels whose last word is broad). Words are compared without case,
    underscores, hyphens, leading article and plural ending (`vocabulary.key`). In scripts without spaces (Chinese,
    Japanese, Thai) a label is mentioned where its characters stand in a row, also within a longer word; such labels
    have no head. Folder names that are classes serve as hypernyms: a photo under animals/birds has both classes.

    Raises UserError for an unknown rule or lists of different length.
    """
    if rule not in RULES:
        raise UserError("truth", rule, "unknown rule", f"known: {', '.join(RULES)}")
    if len(captions) != len(classes):
        raise UserError(
            "truth", f"{len(captions)} captions", f"there are {len(classes)} lists of classes", "give one each"
        )
    wanted = {label: _list_phrases(label, rule) for label in dict.fromkeys(labels)}
    known = {phrase for phrases in wanted.values() for phrase in phrases}
    images_of: dict[str, list[int]] = {}
    for image, (caption, own) in enumerate(zip(captions, classes)):
        for phrase in _phrases(caption, own, rule) & known:
            images_of.setdefault(phrase, []).append(image)
    found = {label: there for label, keys in wanted.items() if (there := [k for k in keys if k in images_of])}
    concepts = sorted({tuple(hits) for hits in found.values()}, key=" / ".join)
    place = {hits: i for i, hits in enumerate(concepts)}
    member = torch.zeros(len(captions), len(concepts), dtype=torch.bool)
    for hits, i in place.items():
        member[sorted({image for part in hits for image in images_of[part]}), i] = True
    described = torch.tensor([bool(c) or bool(own) for c, own in zip(captions, classes)], dtype=torch.bool)
    column = {label: place[tuple(hits)] for label, hits in found.items()}
    names = tuple(" / ".join(map(_join, hits)) for hits in concepts)
    complete = (
        bool(classes) and all(classes) and not any(captions)
    )  # each picture has its class and no other description
    return Truth(member, column, names, described, f"captions and classes, {rule}", complete)


def from_concepts(labels: Sequence[str], names: Sequence[str], member: Bool[Tensor, "images concepts"]) -> Truth:
    """Truth from a table of concepts, every image looked at for every concept; names match as in `vocabulary.key`.

    A name may list synonyms ("Cardigan, Cardigan Welsh corgi"); a concept of a whole name goes before a synonym of it.

    Raises UserError where `member` has another number of columns than `names`.
    """
    if member.ndim != 2 or member.shape[1] != len(names):
        raise UserError("truth", tuple(member.shape), f"expected [images, {len(names)}] for {len(names)} concepts")
    place: dict[str, int] = {}
    whole = [[k] if (k := _key(name)) else [] for name in names]
    for keys in (whole, map(_synonyms, names)):
        for i, own in enumerate(keys):
            for one in own:
                place.setdefault(one, i)
    column = {label: place[_key(label)] for label in labels if _key(label) in place}
    known = torch.ones(len(member), dtype=torch.bool)
    return Truth(member.bool(), column, tuple(names), known, "concept table, exact", True)


def _key(text: str) -> str:
    """The words of `text`, each without case and plural ending, without a leading article."""
    return " ".join(_word_key(word) for word in words(key(text).replace("_", " ")))


@functools.lru_cache(maxsize=1 << 16)
def _word_key(word: str) -> str:
    return key(word) or word


def _join(phrase: str) -> str:
    """A key as people write it: without spaces between the characters of a script that has none."""
    parts = phrase.split()
    gaps = ["" if is_unspaced(a) and is_unspaced(b) else " " for a, b in itertools.pairwise(parts)]
    return "".join(part + gap for part, gap in zip(parts, [*gaps, ""]))


def _synonyms(name: str) -> list[str]:
    return list(dict.fromkeys(k for k in [_key(name), *map(_key, name.split(","))] if k))


def _list_phrases(label: str, rule: str) -> list[str]:
    """The phrases of which any makes a label true."""
    whole = _key(label)
    parts = whole.split()
    heads = _whole_words(parts[-1:]) if rule == "head" else []
    return list(dict.fromkeys(k for k in [whole, *heads] if k))


def _whole_words(parts: Iterable[str]) -> list[str]:
    """Without the characters of scripts without spaces: one alone is rarely a word."""
    return [part for part in parts if not is_unspaced(part)]


def _phrases(caption: str | None, classes: Sequence[str], rule: str) -> set[str]:
    """Everything that an image's description says in the sense of `rule`."""
    phrases = {synonym for name in classes for synonym in _synonyms(name)}
    if rule == "head":
        phrases |= {word for phrase in phrases for word in _whole_words(phrase.split())}
    parts = _key(caption).split() if caption else []
    if parts:
        phrases.add(" ".join(parts))
    if rule != "exact":
        phrases.update(_spans(parts))
    return phrases


def _spans(parts: list[str]) -> Iterator[str]:
    """Words in a row: up to LONGEST, or up to LONGEST_UNSPACED characters of a script without spaces."""
    for start, first in enumerate(parts):
        most = LONGEST_UNSPACED if is_unspaced(first) else LONGEST
        for stop in range(start + 1, min(start + most, len(parts)) + 1):
            yield " ".join(parts[start:stop])
