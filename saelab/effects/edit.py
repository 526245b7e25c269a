"""Concept editing: take out the units named as a concept, and see what a classifier does on each group of pictures.

Pictures have a class and a group (what else they show: a background, a hospital). A classifier may lean on the group.
If labels are right, taking out the units that are *named* as the group helps where the two disagree. Random units of
equal effect on the classifier say how much of that any edit of this size does. Plain functions.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float, Int
from torch import Tensor

from saelab.effects.ablate import Active, Tokens, centred
from saelab.effects.targets import LEAST_COSINE, Embed
from saelab.label.vocabulary import key
from saelab.text import words

DRAWS = 20  # random sets of units
RESAMPLES = 1000  # of pictures, for intervals
TINY = 1e-9  # an interval as narrow as this has no width


@dataclass(frozen=True)
class Named:
    """A unit whose label names a concept."""

    unit: int
    label: str
    concept: str
    how: str  # words: the label has the concept's words | text: a sentence encoder puts them near


def find_named(
    labels: Sequence[str | None], concepts: Sequence[str], embed: Embed | None = None, exact: bool = False
) -> list[Named]:
    """Units whose label names one of the concepts, in order.

    By `words`: the label has the concept's words in a row, without case and plural ending ("bridge" in "arch bridges").
    By `text`, with `embed`, for the other labels: the cosine of label and nearest concept is LEAST_COSINE or more.
    `exact`: only labels that are a concept.
    """
    distinct = list(dict.fromkeys(label for label in labels if label is not None))
    found: dict[str, tuple[str, str]] = {}
    for label in distinct:
        own = next((c for c in concepts if (key(label) == key(c) if exact else _within(c, label))), None)
        if own is not None:
            found[label] = (own, "words")
    left = [label for label in distinct if label not in found]
    if embed is not None and left and not exact:
        cosines = embed(left).double() @ embed(list(concepts)).double().T
        for label, near, place in zip(left, *(x.tolist() for x in cosines.max(1))):
            if near >= LEAST_COSINE:
                found[label] = (concepts[place], "text")
    return [Named(u, label, *found[label]) for u, label in enumerate(labels) if label is not None and label in found]


def without_all(active: Active, writes: Float[Tensor, "units d_in"], units: Sequence[int]) -> Tokens:
    """The tokens without the parts of these units, taken out together."""
    own = list(units)
    return active.tokens - (active.acts[..., own] * active.scale) @ writes[own]


def matched_sets(
    effect: Callable[[Sequence[Sequence[int]]], Float[np.ndarray, "sets"]],
    target: float,
    pool: Sequence[int],
    draws: int = DRAWS,
    seed: int = 0,
) -> list[list[int]]:
    """Random sets of units from `pool` that change the outputs about as much as `target`.

    Each draw is an order of the pool; how many of its first units come nearest is found by bisection, for all draws at
    once. `effect`: how much outputs change without each set. Where even all units change less, a set is the whole pool.
    """
    rng = np.random.default_rng(seed)
    orders = [rng.permutation(np.asarray(pool)).tolist() for _ in range(draws)]
    low, high = np.ones(draws, int), np.full(draws, len(pool))
    while (low < high).any():
        middle = (low + high) // 2
        enough = effect([order[:m] for order, m in zip(orders, middle)]) >= target
        high = np.where(enough, middle, high)
        low = np.where(enough | (low >= high), low, middle + 1)
    below = np.maximum(low - 1, 1)
    gaps = [np.abs(effect([order[:m] for order, m in zip(orders, sizes)]) - target) for sizes in (below, low)]
    sizes = np.where(gaps[0] < gaps[1], below, low)
    return [order[:m] for order, m in zip(orders, sizes)]


def size_of(
    before: Float[Tensor, "images outputs"], after: Float[Tensor, "sets images outputs"]
) -> Float[np.ndarray, "sets"]:
    """How much outputs change: mean over pictures of the length of the change in centred outputs."""
    change: np.ndarray = (centred(after) - centred(before)).norm(dim=-1).mean(-1).numpy()
    return change


@dataclass(frozen=True)
class Groups:
    """Test pictures with what is known of them."""

    classes: Int[np.ndarray, "images"]  # output that is right
    groups: Int[np.ndarray, "images"]  # class and context together, numbered

    def accuracy(self, predicted: Int[np.ndarray, "*sets images"]) -> Float[np.ndarray, "*sets groups"]:
        """Accuracy in each group."""
        right = predicted == self.classes
        return np.stack([right[..., self.groups == g].mean(-1) for g in range(self.groups.max() + 1)], axis=-1)

    def resample(self, rng: np.random.Generator) -> Int[np.ndarray, "images"]:
        """Places of pictures drawn anew within each group."""
        members = [np.flatnonzero(self.groups == g) for g in range(self.groups.max() + 1)]
        return np.concatenate([rng.choice(own, len(own)) for own in members])


class Change(NamedTuple):
    """How much an accuracy changes, with its 95 % interval over pictures, and how many random sets do as much.

    There is no interval where resampling can't show a spread: where nothing varies, or where all pictures of a group
    that counts change from wrong to right, or all from right to wrong.
    """

    change: float
    low: float | None
    high: float | None
    p: float  # share of random sets after which it is as high or higher, the edit among them
    p_harm: float  # as low or lower


@dataclass(frozen=True)
class Edited:
    """What an edit did to accuracy: over groups, before and after, beside random sets of equal effect."""

    before: Float[np.ndarray, "groups"]
    after: Float[np.ndarray, "groups"]
    random: Float[np.ndarray, "draws groups"]
    worst: Change  # of the worst group's accuracy
    average: Change  # of the mean over groups


def judge(
    groups: Groups,
    before: Int[np.ndarray, "images"],
    after: Int[np.ndarray, "images"],
    random: Int[np.ndarray, "draws images"],
    seed: int = 0,
) -> Edited:
    """Accuracies by group and what the edit changed. Arguments: what is predicted with each edit.

    The worst group is found anew before and after, and in every resample: it need not be the same one.
    """
    rng = np.random.default_rng(seed)
    both = np.stack([before, after])
    own, others = groups.accuracy(both), groups.accuracy(random)
    drawn = []
    for _ in range(RESAMPLES):
        at = groups.resample(rng)
        drawn.append(Groups(groups.classes[at], groups.groups[at]).accuracy(both[:, at]))
    turned = np.abs(own[1] - own[0]) == 1  # groups all of whose pictures change
    hidden = any(turned[side == side.min()].all() for side in own)
    worst = _change(np.min, own, others, None if hidden else np.stack(drawn))
    average = _change(np.mean, own, others, None if turned.any() else np.stack(drawn))
    return Edited(own[0], own[1], others, worst, average)


def _change(
    over: Callable[..., Any],
    own: Float[np.ndarray, "2 groups"],
    others: Float[np.ndarray, "draws groups"],
    drawn: Float[np.ndarray, "resamples 2 groups"] | None,
) -> Change:
    """What `over` makes of groups, before and after; without an interval where there is none of resamples."""
    after, random = float(over(own[1])), over(others, axis=-1)
    low = high = None
    if drawn is not None:
        values = over(drawn[:, 1], axis=-1) - over(drawn[:, 0], axis=-1)
        low, high = np.quantile(values, [0.025, 0.975]).tolist()
        low, high = (low, high) if high - low > TINY else (None, None)
    p = [float((1 + as_much.sum()) / (1 + len(random))) for as_much in (random >= after, random <= after)]
    return Change(after - float(over(own[0])), low, high, *p)


def _within(concept: str, label: str) -> bool:
    """Are the concept's words in the label, in a row?"""
    wanted, own = ([key(word) for word in words(text)] for text in (concept, label))
    return bool(wanted) and any(own[i : i + len(wanted)] == wanted for i in range(len(own) - len(wanted) + 1))
