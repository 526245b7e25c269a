"""What a label is worth on photos that nobody looked at when it was given: hits, misses and false alarms of a unit."""

from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np
import torch
from jaxtyping import Int

from saelab import metrics, truth
from saelab.acts import firing_threshold
from saelab.report.pictures import few_of_each
from saelab.report.reading import ReadBasis, Run

SHOWN = 6  # photos of each sort
STRONGEST = 12  # photos of a unit whose label nobody's words confirm
BLOCK = 512  # units held as dense columns at once


def of_basis(run: Run, basis: ReadBasis) -> Iterator[dict[str, Any] | None]:
    """Per unit the test photos that fire it beside those of which its label is true; None without a test split.

    Where people's words confirm the label on some test photo: `counts` [hits, misses, false alarms, neither] over the
    described test photos, and up to 6 of `hits` and `alarms`, strongest first, and of `misses`, most silent first, as
    [image, activation]. A unit fires where it reaches the `threshold` that is best for F1 on the mined photos (None:
    where it is above zero). Otherwise the 12 `strongest` test photos alone.
    """
    test = run.images.ids("test")
    if not len(test):
        yield from [None] * len(basis.labels)
        return
    rule = basis.recipes["evaluation"].get("truth", "mention")
    labels = [row["label"] for row in basis.labels]
    stated = truth.from_descriptions(
        [label for label in labels if label is not None], run.images.captions, run.images.classes, rule
    )
    tested = Tested(test, run.images.groups[test])
    thresholds = _thresholds(basis, labels, stated, run.images.ids("mine"))
    known = stated.known[torch.as_tensor(test)].numpy()
    place = np.full(len(run.images), -1)
    place[test] = np.arange(len(test))
    for u, label in enumerate(labels):
        ids, entries = basis.column(u)
        values = np.zeros(len(test), entries.dtype)
        values[place[ids[place[ids] >= 0]]] = entries[place[ids] >= 0]
        true = None
        if label is not None and label in stated.column:
            true = stated.member[torch.as_tensor(test), stated.column[label]].numpy() & known
        if true is None or not true.any():
            yield {"strongest": _strongest(tested, values, values > firing_threshold(values.max()), STRONGEST)}
        else:
            yield _split(tested, values, true, known, float(thresholds[u]))


class Tested(NamedTuple):
    """The test images."""

    ids: Int[np.ndarray, "test"]
    groups: Int[np.ndarray, "test"]  # near-duplicates, and photos of one series: the strongest of each is shown


def _split(test: Tested, values: np.ndarray, true: np.ndarray, known: np.ndarray, threshold: float) -> dict[str, Any]:
    """Hits, misses and false alarms of one unit."""
    usable = threshold > 0  # NaN is not
    fires = known & ((values >= threshold) if usable else (values > firing_threshold(values.max())))
    hits, misses, alarms = true & fires, true & ~fires, known & fires & ~true
    counts = [int(hits.sum()), int(misses.sum()), int(alarms.sum())]
    return {
        "counts": [*counts, int(known.sum()) - sum(counts)],
        "threshold": threshold if usable else None,
        "hits": _strongest(test, values, hits, SHOWN),
        "misses": _strongest(test, -values, misses, SHOWN, sign=-1),
        "alarms": _strongest(test, values, alarms, SHOWN),
    }


def _strongest(test: Tested, values: np.ndarray, among: np.ndarray, count: int, sign: int = 1) -> list[list[Any]]:
    """[image, activation] of the largest values among some images, few of each group, equal ones in any order."""
    places = np.random.default_rng(0).permutation(np.flatnonzero(among))  # ids follow folders
    places = places[np.argsort(-values[places], kind="stable")]
    places = places[few_of_each(test.groups[places], count)]
    return [[int(test.ids[i]), float(sign * values[i])] for i in places]


def _thresholds(basis: ReadBasis, labels: list[str | None], stated: truth.Truth, mine: np.ndarray) -> np.ndarray:
    """Per unit the activation from which calling its label gives the best F1 on mined photos; NaN without truth."""
    known = stated.known[torch.as_tensor(mine)].numpy()
    member, acts = stated.member[torch.as_tensor(mine[known])], basis.acts[mine[known]]
    found = np.full(len(labels), np.nan)
    places = [(u, stated.column[text]) for u, text in enumerate(labels) if text is not None and text in stated.column]
    for start in range(0, len(places), BLOCK):
        some, columns = map(list, zip(*places[start : start + BLOCK], strict=True))
        dense = torch.from_numpy(acts[:, some].toarray())
        found[some] = metrics.best_f1_threshold(dense, member[:, columns]).numpy()
    return found
