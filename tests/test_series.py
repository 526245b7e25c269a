"""Which images move and are drawn together: near-duplicates, and images of one caption that tells images apart."""

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from saelab.images import ImageSet
from saelab.label.series import group_images, group_mined


def photos(groups: list[int], captions: list[str | None]) -> ImageSet:
    n = len(groups)
    files = tuple(f"{i}.png" for i in range(n))
    return ImageSet("a", Path(), files, tuple(captions), ((),) * n, np.full(n, "mine"), np.array(groups), "0")


def partition(groups) -> set[frozenset[int]]:
    return {frozenset(np.flatnonzero(groups == g).tolist()) for g in np.unique(groups)}


@given(st.lists(st.tuples(st.integers(0, 5), st.sampled_from([None, "", "a dog", "A dog ", "two cats"])), min_size=1))
def test_images_are_together_that_a_chain_of_groups_and_captions_links(pairs):
    made = photos([g for g, _ in pairs], [c for _, c in pairs])
    text = [(c or "").strip().lower() for _, c in pairs]
    n = len(pairs)
    alike = [[pairs[i][0] == pairs[j][0] or "" != text[i] == text[j] for j in range(n)] for i in range(n)]
    reach = np.linalg.matrix_power(np.array(alike, dtype=object), n) > 0
    assert partition(group_images(made)) == {frozenset(np.flatnonzero(row).tolist()) for row in reach}


@pytest.mark.parametrize(
    ("captions", "apart"),
    [
        (["one dog", "one dog", "a cat", "a red car", "a tree"], False),  # 2 of 5 share theirs: the two are a series
        (["dog", "dog", "cat", "cat", "tree"], True),  # 4 of 5: names of classes
        (["dog", "dog", "cat", "tree"], False),  # half, and no more
        (["dog", "dog", None, None, None, None], True),  # of those that have one
        ([None] * 4, False),  # no captions: the groups as they are
    ],
)
def test_captions_that_most_images_share_name_classes_not_series(captions, apart):
    """Moved as one, a class could never stand out from other classes, and no label of a class would ever pass."""
    groups = list(range(len(captions)))
    groups[-1] = groups[-2]  # near-duplicates stay together either way
    made = photos(groups, captions)
    whole = made.groups if apart else group_images(made)
    assert partition(group_mined(made)) == partition(whole)
    assert (group_mined(made)[0] == group_mined(made)[1]) == (not apart and captions[0] is not None)
