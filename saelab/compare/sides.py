"""One side of a difference: activations, what labels say of each image, and who shares which label."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from saelab.acts import Acts, blocks, columns, shape
from saelab.errors import UserError

BLOCK = 1 << 19  # numbers of a block of units held at once: in a processor's cache
Target = Tensor | Callable[[slice], Tensor]  # [images, units], or a function that gives a run of units' columns
Groups = Int[np.ndarray, "images"]


@dataclass(frozen=True)
class Side:
    """One basis on the test images, a list entry a seed.

    `acts` may be dense or CSR. `target`: the label's similarity (or its truth, as 0 and 1) image by image; a unit with
    a NaN there, or in its activations, is left out and counted. `labels`: units of equal label, over all seeds, are a
    cluster; a unit of label None is a cluster of its own. `target` may also be a function from a slice of units to
    their columns, for bases whose targets would not fit into memory.
    """

    acts: Sequence[Acts]  # [images, units]
    target: Sequence[Target]  # [images, units]
    labels: Sequence[Sequence[str | None]]

    @property
    def images(self) -> int:
        """Number of images."""
        return shape(columns(self.acts[0]))[0]


def check(side: Side, name: str, images: int) -> None:
    """Raise UserError unless a side has a seed or more, units in each, and lists and matrices that fit together."""
    n = len(side.acts)
    if n == 0 or not len(side.target) == len(side.labels) == n:
        given = f"{n} acts, {len(side.target)} target, {len(side.labels)} labels"
        raise UserError(name, given, "expected as many of each, one a seed", "wrap a single seed in a list")
    for seed, (acts, target, labels) in enumerate(zip(side.acts, side.target, side.labels)):
        size = shape(columns(acts))
        if size[1] == 0:
            raise UserError(name, f"seed {seed}", "has no units", "leave the seed out")
        if size[0] != images:
            expected = f"all activations must be on the same images ({images})"
            raise UserError(name, f"{size[0]} images in seed {seed}", expected, "take the same test images everywhere")
        if len(labels) != size[1]:
            raise UserError(name, f"{len(labels)} labels in seed {seed}", f"acts have {size[1]} units", "give one each")
        if not callable(target) and tuple(target.shape) != size:
            raise UserError(
                name, f"target {tuple(target.shape)} in seed {seed}", f"acts are {size}", "give a column each"
            )


def check_groups(groups: object, images: int) -> Groups:
    """Group numbers 0..G-1 of the images (each its own where `groups` is None).

    Raises UserError for a column of another length, with missing values (None, NaN, negative) or of other numbers than
    whole ones.
    """
    if groups is None:
        return np.arange(images)
    given = groups.numpy(force=True) if isinstance(groups, Tensor) else np.asarray(groups, dtype=object)
    if given.shape != (images,):
        raise UserError("groups", tuple(given.shape), f"expected a group for each of the {images} images")
    missing = [i for i, x in enumerate(given.tolist()) if x is None or x != x or (isinstance(x, int | float) and x < 0)]
    if missing:
        what = f"image {missing[0]} has no group ({given[missing[0]]}), {len(missing)} in all lack one"
        raise UserError("groups", "column", what, "give an image that belongs to no group a group of its own")
    if any(isinstance(x, float) and x != int(x) for x in given.tolist()):
        raise UserError("groups", "column", "expected whole numbers or texts", "number the groups")
    place: dict[object, int] = {}
    return np.array([place.setdefault(x, len(place)) for x in given.tolist()], dtype=np.int64)


def join_groups(*columns_: Sequence[object] | np.ndarray) -> Groups:
    """Groups of images that any column ties together: near-duplicates, one caption, one film. None ties nothing.

    Transitive: where A shares a caption with B and B is a near-duplicate of C, all three are one group.
    """
    from scipy.sparse import coo_array
    from scipy.sparse.csgraph import connected_components

    images = len(columns_[0])
    edges: list[tuple[int, int]] = []
    for column in columns_:
        first: dict[object, int] = {}
        values = column.tolist() if isinstance(column, np.ndarray) else column
        edges += [(first.setdefault(x, i), i) for i, x in enumerate(values) if x is not None]
    rows, cols = np.array(edges, dtype=np.int64).reshape(-1, 2).T
    graph = coo_array((np.ones(len(rows), dtype=np.int8), (rows, cols)), shape=(images, images))
    return connected_components(graph, directed=False)[1].astype(np.int64)


def pairs_of_blocks(
    acts: Acts, target: Target
) -> "Iterator[tuple[slice, Float[Tensor, 'images some'], Float[Tensor, 'images some'], Bool[Tensor, 'some']]]":
    """Runs of units: dense activations and targets in float64, centred; and which units have no NaN in either."""
    for block, part in blocks(acts, max(BLOCK, 16 * shape(acts)[0])):
        a, t = part.double(), _some(target, block)
        mean_a, mean_t = a.mean(0), t.mean(0)  # NaN and infinities show in the mean
        there = mean_a.isfinite() & mean_t.isfinite()
        if not bool(there.all()):
            a, t = (x.masked_fill(~there, 0.0) for x in (a, t))
            mean_a, mean_t = (x.masked_fill(~there, 0.0) for x in (mean_a, mean_t))
        yield block, a - mean_a, t - mean_t, there


def _some(target: Target, block: slice) -> Float[Tensor, "images some"]:
    return (target(block) if callable(target) else target[:, block]).double()


def clusters_of(side: Side, kept: Sequence[Bool[np.ndarray, "units"]]) -> tuple[Groups, Groups]:
    """Cluster and seed of every kept unit, seeds one after the other: by label, None by itself."""
    place: dict[object, int] = {}
    found, seeds = [], []
    for seed, (labels, keep) in enumerate(zip(side.labels, kept)):
        for u in np.flatnonzero(keep).tolist():
            name = labels[u] if labels[u] is not None else (seed, u)
            found.append(place.setdefault(name, len(place)))
            seeds.append(seed)
    return np.array(found, dtype=np.int64), np.array(seeds, dtype=np.int64)


def typical(side: Side) -> Float[Tensor, "images"]:
    """The mean over a side's labelled units, seeds weighing alike, of their centred target columns of length 1."""
    total = torch.zeros(side.images, dtype=torch.float64)
    seeds = 0
    for acts, target, labels in zip(side.acts, side.target, side.labels):
        named = torch.tensor([label is not None for label in labels])
        column, count = torch.zeros_like(total), 0
        for block, _, t, there in pairs_of_blocks(acts, target):
            length = t.norm(dim=0)
            use = there & named[block] & (length > 1e-12)
            column += t @ (use / length.masked_fill(~use, 1.0))
            count += int(use.sum())
        if count:
            total, seeds = total + column / count, seeds + 1
    return total / max(seeds, 1)
