"""The nearest images of each image, among the images of near cells only: for sets too large to compare all pairs.

k-means divides the images into cells; an image's neighbours are looked for in its own cell and in those whose centres
are nearest to that cell's. Comparing takes images x REACH products; finding the cells takes images x images / SIZE of
them, a square still, though a small one. What that misses is measured where it is used (`contrast_images` logs it).
"""

from collections.abc import Callable, Iterator

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn.functional import normalize

from saelab.label.mine.rows import largest

SIZE = 128  # images of a cell, in the mean
REACH = 8192  # images that each image is compared with, about
ROUNDS = 5  # of k-means
SAMPLE = 64  # images of a cell, in the mean, that the centres are found on
AT_ONCE = 1 << 22  # cosines held together

Excluded = Callable[[Int[Tensor, "rows"], Int[Tensor, "some"], Float[Tensor, "rows some"]], None]


def near_cells(
    space: Float[Tensor, "images d"], wanted: Int[Tensor, "wanted"], width: int, strike: Excluded, seed: int = 0
) -> tuple[Float[Tensor, "wanted width"], Int[Tensor, "wanted width"]]:
    """Cosines and ids of the `width` nearest images of each wanted image that cells hold; -inf and -1 beyond them.

    `space`: rows of unit length. `strike(ids, others, cosines)` lowers in place what may be no neighbour (the image
    itself, its duplicates) to -inf.
    """
    return Cells(space, seed).near(wanted, width, strike)


class Cells:
    """Images (rows of unit length) divided into cells, to be asked for neighbours any number of times."""

    def __init__(self, space: Float[Tensor, "images d"], seed: int = 0) -> None:
        self.space = space
        self.centres, self.cell = divide(space, max(1, len(space) // SIZE), seed)
        order = self.cell.argsort(stable=True)
        ends = torch.bincount(self.cell, minlength=len(self.centres)).cumsum(0).tolist()
        self.members = [order[first:last] for first, last in zip([0, *ends], ends)]

    def near(
        self, wanted: Int[Tensor, "wanted"], width: int, strike: Excluded
    ) -> tuple[Float[Tensor, "wanted width"], Int[Tensor, "wanted width"]]:
        """`near_cells` of these images."""
        space = self.space
        values = torch.full((len(wanted), width), -torch.inf, dtype=space.dtype, device=space.device)
        ids = torch.full((len(wanted), width), -1, device=space.device)
        for some, others in _together(self.cell[wanted], self.centres, self.members):
            image = wanted[some]
            cosines = space[image] @ space[others].T
            strike(image, others, cosines)
            found, place = largest(cosines, min(width, len(others)))
            values[some, : found.shape[1]] = found
            ids[some, : found.shape[1]] = others[place].masked_fill(found == -torch.inf, -1)
        return values, ids


def _together(
    cell: Int[Tensor, "wanted"], centres: Float[Tensor, "cells d"], members: list[Tensor]
) -> Iterator[tuple[Int[Tensor, "some"], Int[Tensor, "others"]]]:
    """Places among the wanted whose cells are one, and the images they are compared with."""
    by_cell = cell.argsort(stable=True)
    numbers, counts = cell[by_cell].unique_consecutive(return_counts=True)
    sizes = torch.tensor([len(images) for images in members], device=cell.device)
    rows = iter(by_cell.split(counts.tolist()))
    for own in numbers.split(max(1, AT_ONCE // len(centres))):
        nearest = (centres[own] @ centres.T).argsort(dim=1, descending=True)
        within = (sizes[nearest].cumsum(dim=1) < REACH).sum(dim=1).tolist()
        for order, few, some in zip(nearest, within, rows):  # `rows` last: a block's end must take none of them
            others = torch.cat([members[number] for number in order[: few + 1].tolist()]).sort().values
            for part in some.split(max(1, AT_ONCE // max(len(others), 1))):
                yield part, others


def divide(
    space: Float[Tensor, "images d"], cells: int, seed: int = 0
) -> tuple[Float[Tensor, "cells d"], Int[Tensor, "images"]]:
    """Centres by spherical k-means on a sample, and the cell of each image. The same seed gives the same cells."""
    generator = torch.Generator().manual_seed(seed)
    drawn = torch.randperm(len(space), generator=generator)[: cells * SAMPLE].to(space.device)
    sample = space[drawn]
    centres = sample[:cells].clone()
    for _ in range(ROUNDS):
        cell = _assign(sample, centres)
        sums = torch.zeros_like(centres).index_add_(0, cell, sample)
        empty = torch.bincount(cell, minlength=cells) == 0
        centres = torch.where(empty[:, None], centres, normalize(sums, dim=1))
    return centres, _assign(space, centres)


def _assign(rows: Tensor, centres: Tensor) -> Int[Tensor, "rows"]:
    return torch.cat([(some @ centres.T).argmax(dim=1) for some in rows.split(max(1, AT_ONCE // len(centres)))])
