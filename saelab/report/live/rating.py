"""Blind rating: which units of all bases are shown, in which order, under which names that give nothing away.

Some items are attention checks: a unit's pictures under the label of another unit that is silent on them, a label that
shares no word with any scorer's or person's description of the pictures. A rater who calls it fitting did not look.
"""

import hashlib
from dataclasses import dataclass

import numpy as np

from saelab import artifacts
from saelab.errors import UserError
from saelab.report.reading import ReadBasis, Run
from saelab.text import fold, is_unspaced, words


@dataclass(frozen=True)
class StudySettings:
    """What is asked."""

    per_basis: int = 20  # units drawn from each basis, at random among those with a label
    checks: int = 6  # attention checks in all
    shown: int = 9  # strongest images of each item; units that fire on fewer are not drawn
    seed: int = 0  # of every draw


@dataclass(frozen=True)
class Item:
    """One question: how well does `label` describe what `images` share?"""

    code: str  # what raters see and answers name: a digest that does not tell the basis
    basis: str
    unit: int
    label: str  # as shown
    own: str  # the unit's label: another one where `check`
    images: tuple[int, ...]  # strongest first
    check: bool  # is it an attention check?
    abstained: bool  # does the run itself doubt the label?


@dataclass(frozen=True)
class Study:
    """All questions of one study."""

    name: str  # a digest of the questions: answers name it
    settings: StudySettings
    items: tuple[Item, ...]

    def order(self, rater: str) -> list[Item]:
        """The items as this rater gets them: shuffled, in the same order whenever the rater comes back."""
        return sorted(self.items, key=lambda item: _digest(self.name, self.settings.seed, rater, item.code))


@dataclass(frozen=True)
class Answer:
    """A rater's answer to one item."""

    rater: str
    code: str  # of the item
    rating: int | None  # 1 (not at all) to 5 (exactly); None: can't say


def draw(run: Run, settings: StudySettings) -> Study:
    """Draw the study of a run: the same for the same run and settings. Raises UserError if no unit can be shown."""
    rng = np.random.default_rng(settings.seed)
    may = {basis.name: _showable(basis, settings.shown) for basis in run.bases}
    items, left = [], []
    for basis in run.bases:
        mixed = rng.permutation(np.array(may[basis.name], dtype=int)).tolist()
        items += [_item(basis, unit, settings) for unit in mixed[: settings.per_basis]]
        left += [(basis, unit) for unit in mixed[settings.per_basis :] if not basis.labels[unit]["abstained"]]
    if not items:
        raise UserError("shown", settings.shown, "no unit with a label fires on as many images", "show fewer")
    found: list[Item] = []
    for place in rng.permutation(len(left)):
        if len(found) == settings.checks:
            break
        basis, unit = left[place]
        found += _check(run, basis, unit, may[basis.name], settings)
    items += found
    name = artifacts.digest([artifacts.plain(item) for item in items])[:10]
    return Study(name, settings, tuple(items))


def _showable(basis: ReadBasis, shown: int) -> list[int]:
    """Units with a label that fire on `shown` mined images at least."""
    enough = ((basis.exemplars["positives"] >= 0) & (basis.exemplars["activations"] > 0)).sum(1) >= shown
    return [unit for unit, row in enumerate(basis.labels) if row["label"] is not None and enough[unit]]


def _item(basis: ReadBasis, unit: int, settings: StudySettings, label: str | None = None) -> Item:
    row = basis.labels[unit]
    images = tuple(basis.exemplars["positives"][unit, : settings.shown].tolist())
    text = row["label"] if label is None else label
    code = "q" + _digest(settings.seed, basis.units.name, unit, text)[:8]  # a letter first: spreadsheets mend numbers
    return Item(code, basis.name, unit, text, row["label"], images, label is not None, row["abstained"])


def _check(run: Run, basis: ReadBasis, unit: int, may: list[int], settings: StudySettings) -> list[Item]:
    """The unit under the label of one that fires least on its pictures; nothing where every label shares a word."""
    item = _item(basis, unit, settings)
    described = _words(*_labels_of(basis.labels[unit]))
    for i in item.images:
        described |= _words(run.images.captions[i] or "", *run.images.classes[i])
    sure = [u for u in may if not basis.labels[u]["abstained"]]
    donors = [u for u in sure if not described & _words(basis.labels[u]["label"])]
    if not donors:
        return []
    columns = basis.acts[:, donors]
    there = columns[list(item.images)].toarray().mean(0) / np.maximum(columns.max(0).toarray().ravel(), 1e-12)
    donor = donors[int(there.argmin())]
    return [_item(basis, unit, settings, basis.labels[donor]["label"])]


def _labels_of(row: dict) -> list[str]:
    """Every label that any scorer had among its best for a unit."""
    best = [s["label"] for s in row["scores"].values()] + [row["label"]]
    return [b for b in best if b] + [name for s in row["scores"].values() for name, _ in s.get("runners_up") or []]


def _words(*texts: str) -> set[str]:
    """Words of three letters or more, and characters of scripts without spaces."""
    found = [word for text in texts for word in words(fold(text).replace("_", " "))]
    return {word.rstrip("s") for word in found if len(word) > 2 or is_unspaced(word)}


def _digest(*parts: object) -> str:
    return hashlib.sha256("/".join(map(str, parts)).encode()).hexdigest()
