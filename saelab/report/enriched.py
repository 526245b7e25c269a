"""Classes that are over-represented among a unit's strongest pictures, one picture of each series."""

import dataclasses
from typing import Any

import numpy as np
from jaxtyping import Bool, Float, Int

from saelab.acts import firing_threshold
from saelab.images import ImageSet

ALPHA = 0.05  # chance below which a class is shown
MOST = 8  # classes shown


@dataclasses.dataclass(frozen=True)
class Draw:
    """What a unit's strongest pictures could have been drawn from: one picture of each group of the mined ones.

    Pictures of one group (near-duplicates, a series) share their classes and their activations, so they count once. A
    group's picture is chosen before any activation is looked at: among those that are strongest of their group, large
    groups would come first, whatever they show.
    """

    names: list[str]  # of classes
    holds: Any  # scipy csr_array [groups, classes] int: which classes hold on each group's picture
    counts: Int[np.ndarray, "classes"]  # groups by class
    place: Int[np.ndarray, "images"]  # the group that a picture stands for; -1 for none


def draw_of(images: ImageSet) -> Draw:
    """The first picture of each group of the `mine` split, with its classes."""
    names, table = images.truth()
    return of_classes(list(names), table, images.groups, images.ids("mine"))


def of_classes(
    names: list[str],
    table: Bool[np.ndarray, "images classes"],
    groups: Int[np.ndarray, "images"],
    mined: Int[np.ndarray, "mine"],
) -> Draw:
    """The same of images whose classes are the true columns of `table`."""
    from scipy.sparse import csr_array

    _, first = np.unique(groups[mined], return_index=True)
    chosen = mined[np.sort(first)]
    place = np.full(len(table), -1, dtype=np.int64)
    place[chosen] = np.arange(len(chosen))
    return Draw(names, csr_array(table[chosen].astype(np.int32)), table[chosen].sum(0), place)


def classes(
    ids: Int[np.ndarray, "some"], values: Float[np.ndarray, "some"], count: int, known: Draw
) -> list[list[Any]]:
    """[class, among the strongest, of how many, among all, of how many, p] of over-represented classes, best first.

    ids, values: the images with an activation, and it. The strongest are the `count` groups whose picture fires the
    unit most, with those that are as strong as the last: which of equals come first may hang on the order of classes.
    p: the chance of as many in a random draw of groups, times the number of classes; below 0.05.
    """
    from scipy.stats import hypergeom

    fires = (known.place[ids] >= 0) & (values > firing_threshold(values.max(initial=0.0)))
    groups, own = known.place[ids[fires]], values[fires]
    if not len(own) or not count or not known.names:
        return []
    last = np.partition(own, -count)[-count] if len(own) > count else own.min()
    strongest = np.sort(groups[own >= last])
    rows = (slice(*known.holds.indptr[g : g + 2]) for g in strongest)
    among = np.bincount(np.concatenate([known.holds.indices[row] for row in rows]), minlength=len(known.names))
    tried = np.flatnonzero(among >= 2)
    every, drawn = known.holds.shape[0], len(strongest)
    p = hypergeom.sf(among[tried] - 1, every, known.counts[tried], drawn) * len(known.names)
    best = [j for j in np.argsort(p, kind="stable") if p[j] < ALPHA][:MOST]
    return [
        [known.names[tried[j]], int(among[tried[j]]), drawn, int(known.counts[tried[j]]), every, float(p[j])]
        for j in best
    ]
