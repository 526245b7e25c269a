"""An image set without pictures: rows of arrays, with the splits and the truth that every stage asks for."""

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from saelab.errors import UserError
from saelab.images import splits
from saelab.images.imageset import ImageSet


def rows(
    count: int,
    captions: Sequence[str | None] | None = None,
    classes: Sequence[str | Sequence[str]] | None = None,
    groups: Sequence[int] | None = None,
    seed: int = 0,
    fractions: Sequence[float] = splits.FRACTIONS,
    name: str = "arrays",
) -> ImageSet:
    """`count` rows that stand for images that are not there: labels and numbers work, pages need the pictures.

    `classes`: one or several a row. `groups`: equal numbers mark rows of one picture, which share a split. Raises
    UserError where a list has another length.
    """
    for setting, given in (("captions", captions), ("classes", classes), ("groups", groups)):
        if given is not None and len(given) != count:
            raise UserError(setting, f"{len(given)} entries", f"the arrays have {count} rows", "give one for each row")
    own = tuple((c,) if isinstance(c, str) else tuple(c) for c in classes) if classes is not None else ((),) * count
    said = tuple(captions) if captions is not None else (None,) * count
    grouped = np.arange(count) if groups is None else np.asarray(groups, dtype=np.int64)
    files = tuple(f"row {i:07d}" for i in range(count))
    split = splits.assign(grouped, [c[0] if c else "" for c in own], files, seed, fractions)
    facts = json.dumps([count, said, own, grouped.tolist(), split.tolist()])
    fingerprint = hashlib.sha256(facts.encode()).hexdigest()
    return ImageSet(name, Path(), files, said, own, split, grouped, fingerprint)
