"""Seeded splits: `mine` (everything is fitted and mined here), `show` (a proposer's test), `test` (final metrics)."""

from collections.abc import Sequence

import numpy as np
from jaxtyping import Int

from saelab.errors import UserError

SPLITS = ("mine", "show", "test")
FRACTIONS = (0.6, 0.1, 0.3)


def assign(
    groups: Int[np.ndarray, "images"],
    strata: Sequence[str],
    keys: Sequence[str],
    seed: int = 0,
    fractions: Sequence[float] = FRACTIONS,
) -> np.ndarray:
    """The split of each image, [images] of "mine" | "show" | "test".

    A near-duplicate group goes to one split as a whole. Strata (an image's first class, say) are spread evenly. The
    answer depends on `keys` (content hashes), the seed and the fractions, not on the images' order or names.

    Groups are queued stratum by stratum in random order, and each goes to the split that is furthest behind its
    share, so that every stretch of the queue, hence every stratum, is divided in nearly the same proportions.
    """
    shares = _shares(fractions)
    members: dict[int, list[int]] = {}
    for image, group in enumerate(groups.tolist()):
        members.setdefault(group, []).append(image)
    blocks = sorted(members.values(), key=lambda ids: min(keys[i] for i in ids))
    rng = np.random.default_rng(seed)
    by_stratum: dict[str, list[list[int]]] = {}
    for block in blocks:
        by_stratum.setdefault(min(strata[i] for i in block), []).append(block)
    splits = np.empty(len(groups), dtype="<U4")
    filled, total = np.zeros(len(SPLITS)), 0
    names = sorted(by_stratum)
    for name in (names[i] for i in rng.permutation(len(names))):
        queue = by_stratum[name]
        for block in (queue[i] for i in rng.permutation(len(queue))):
            total += len(block)
            behind = np.where(shares > 0, shares * total - filled, -np.inf)
            chosen = int(np.argmax(behind))
            filled[chosen] += len(block)
            splits[block] = SPLITS[chosen]
    return splits


def _shares(fractions: Sequence[float]) -> np.ndarray:
    shares = np.asarray(list(fractions), dtype=np.float64)
    if shares.shape != (3,) or (shares < 0).any() or abs(shares.sum() - 1) > 1e-6 or shares[0] == 0:
        raise UserError(
            "images.fractions",
            list(fractions),
            "three shares for mine, show and test that sum to 1, the first above 0",
            "for example images.fractions=[0.6,0.1,0.3]",
        )
    return shares
