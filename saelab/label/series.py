"""Which images belong together, so that chance has to draw or move them as one."""

from collections import Counter

import numpy as np
from jaxtyping import Int

from saelab.images import ImageSet
from saelab.label.vocabulary import key


def group_images(images: ImageSet) -> Int[np.ndarray, "images"]:
    """Which images belong together, for chance draws them as one: near-duplicates and series, images of one caption."""
    from scipy.sparse import coo_array
    from scipy.sparse.csgraph import connected_components

    count = len(images)
    captions = [key(caption or "") for caption in images.captions]
    series = [("group", group) for group in images.groups.tolist()]
    node = {name: count + i for i, name in enumerate(dict.fromkeys([*series, *captions]))}
    links = [(i, node[name]) for i, name in enumerate(series)] + [(i, node[c]) for i, c in enumerate(captions) if c]
    rows, ends = np.array(links).T
    size = count + len(node)
    graph = coo_array((np.ones(len(links)), (rows, ends)), shape=(size, size))
    return np.asarray(connected_components(graph, directed=False)[1][:count])


def group_mined(images: ImageSet) -> Int[np.ndarray, "images"]:
    """The series that permutations move whole: as `group_images`, by caption only where captions tell images apart.

    Where most images share their caption with another, captions are names of classes. An image of a class isn't a shot
    of a series: moved as one, a class could never stand out from other classes.
    """
    shared = Counter(key(caption) for caption in images.captions if caption)
    common = sum(n for n in shared.values() if n > 1)
    return images.groups if 2 * common > shared.total() else group_images(images)
