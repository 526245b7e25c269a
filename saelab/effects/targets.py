"""Targets: which outputs of a host a label means, so that what a unit does can be held against what it is called."""

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from jaxtyping import Float
from torch import Tensor

from saelab.effects import wordnet
from saelab.errors import UserError
from saelab.label.vocabulary import clean, key
from saelab.settings import nearest

RULES = ("exact", "hypernym", "text")
TEMPERATURE = 0.05  # of the softmax over cosines, rule `text`
LEAST_COSINE = 0.5  # of a label and its best output, rule `text`
LEAST_WEIGHT = 1e-3  # smaller shares of a label's outputs are dropped
Embed = Callable[[Sequence[str]], Float[Tensor, "texts d_text"]]  # to vectors of length 1


@dataclass(frozen=True)
class Outputs:
    """The outputs of a host, with what is known of each."""

    names: tuple[str, ...]
    synonyms: tuple[tuple[str, ...], ...] = ()  # further names of each; empty: none
    synsets: tuple[str, ...] = ()  # WordNet's id of each; empty: unknown
    definitions: tuple[str, ...] = ()  # of each; empty: unknown

    def __len__(self) -> int:
        return len(self.names)

    @cached_property
    def by_name(self) -> dict[str, list[int]]:
        """Key of a name -> the outputs that have it."""
        found: dict[str, list[int]] = {}
        for place, name in enumerate(self.names):
            found.setdefault(key(name), []).append(place)
        return found

    @cached_property
    def by_synonym(self) -> dict[str, list[int]]:
        """Key of a synonym -> the outputs that have it."""
        found: dict[str, list[int]] = {}
        for place, names in enumerate(self.synonyms):
            for name in dict.fromkeys(map(key, names)):
                found.setdefault(name, []).append(place)
        return found

    @cached_property
    def texts(self) -> list[str]:
        """Each output as a sentence encoder reads it: "name: definition"."""
        return [f"{n}: {d}" for n, d in zip(self.names, self.definitions)] if self.definitions else list(self.names)


def imagenet_outputs() -> Outputs:
    """The 1000 classes of ILSVRC-2012, with WordNet's synonyms, ids and definitions."""
    from saelab import names

    lemmas = names.imagenet_lemmas()
    return Outputs(names.imagenet_names(), lemmas, names.imagenet_synsets(), names.imagenet_definitions())


@dataclass(frozen=True)
class Targets:
    """What each label means: a distribution over the outputs, or nothing."""

    weights: Mapping[str, tuple[np.ndarray, np.ndarray]]  # label -> (outputs, int64, ascending; shares, sum 1)
    how: Mapping[str, str]  # label -> exact | hypernym | text | none
    outputs: int

    def __contains__(self, label: object) -> bool:
        return label in self.weights

    @property
    def counts(self) -> dict[str, int]:
        """How many labels each rule found outputs for, and how many have none."""
        return dict(Counter(self.how.values()))

    def matrix(self, labels: Sequence[str]) -> Any:
        """CSR weights [labels, outputs], float64; rows sum to 1, those of labels without outputs to 0."""
        from scipy.sparse import csr_array

        none = (np.zeros(0, np.int64), np.zeros(0))
        rows = [self.weights.get(label, none) for label in labels]
        starts = np.concatenate([[0], np.cumsum([len(places) for places, _ in rows])]).astype(np.int64)
        places, shares = (np.concatenate([row[i] for row in rows] or [none[i]]) for i in (0, 1))
        return csr_array((shares, places, starts), shape=(len(labels), self.outputs))


def find_targets(
    labels: Sequence[str], outputs: Outputs, rules: Sequence[str] = RULES, embed: Embed | None = None
) -> Targets:
    """Which outputs each label means, by the first rule that finds any.

    `exact`: the label is an output's name or synonym (`vocabulary.key`). `hypernym`: it is a WordNet noun and outputs
    lie below its most frequent sense that has any; skipped where WordNet is not installed. `text`: outputs by the
    cosine of the label and "name: definition" under `embed`, softmax at TEMPERATURE, where the best is LEAST_COSINE;
    skipped without `embed`. A label that no rule finds outputs for is about something that the host has no word for.
    Raises UserError for an unknown rule.
    """
    for rule in rules:
        if rule not in RULES:
            raise UserError("targets", rule, "unknown", f"{nearest(rule, RULES)}known: {', '.join(RULES)}")
    distinct = list(dict.fromkeys(labels))
    weights: dict[str, tuple[np.ndarray, np.ndarray]] = {}
    how = dict.fromkeys(distinct, "none")
    for rule in rules:
        left = [label for label in distinct if label not in weights]
        for label, found in _FIND[rule](left, outputs, embed).items():
            weights[label], how[label] = found, rule
    return Targets(weights, how, len(outputs))


Found = dict[str, tuple[np.ndarray, np.ndarray]]


def _exact(labels: Sequence[str], outputs: Outputs, embed: Embed | None) -> Found:
    found = {label: outputs.by_name.get(key(label)) or outputs.by_synonym.get(key(label)) for label in labels}
    return {label: _evenly(places) for label, places in found.items() if places}


def _hypernym(labels: Sequence[str], outputs: Outputs, embed: Embed | None) -> Found:
    place = wordnet.folder()
    if place is None or not outputs.synsets:
        return {}
    below: dict[str, list[int]] = {}
    for output, synset in enumerate(outputs.synsets):
        for above in wordnet.ancestors(synset, place):
            below.setdefault(above, []).append(output)
    found = {}
    for label in labels:
        lemmas = dict.fromkeys(text.lower().replace(" ", "_") for text in (clean(label), key(label)))
        senses = [sense for lemma in lemmas for sense in wordnet.senses(place).get(lemma, ())]
        covered = next((below[sense] for sense in senses if sense in below), None)
        if covered:
            found[label] = _evenly(covered)
    return found


def _text(labels: Sequence[str], outputs: Outputs, embed: Embed | None) -> Found:
    if embed is None or not labels:
        return {}
    cosines = embed(list(labels)).double() @ embed(outputs.texts).double().T
    shares = (cosines / TEMPERATURE).softmax(1)
    found = {}
    for label, near, share in zip(labels, cosines.max(1).values.tolist(), shares.numpy()):
        if near >= LEAST_COSINE:
            places = np.flatnonzero(share >= LEAST_WEIGHT)
            found[label] = (places, share[places] / share[places].sum())
    return found


def _evenly(places: Sequence[int]) -> tuple[np.ndarray, np.ndarray]:
    return np.array(sorted(places), np.int64), np.full(len(places), 1 / len(places))


_FIND = {"exact": _exact, "hypernym": _hypernym, "text": _text}
