"""The search for the most similar candidate: among an image's nearest neighbours first, then among all images."""

import logging
from collections.abc import Iterator

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from saelab.label.mine.candidates import Candidates
from saelab.label.mine.cells import near_cells
from saelab.label.mine.rows import largest

log = logging.getLogger("saelab")

TABLE = 64  # neighbours looked up before an exact search over all images
FAR = torch.finfo(torch.float32).max  # what is subtracted from the score of an image that is no candidate
CHECKED = 500  # pairs whose contrast is searched exactly too, to say what an approximation misses


class Scores:
    """Rows of what is maximised: cosines to all images (or random numbers), -inf at the image's own group."""

    def __init__(self, space: Tensor, groups: Tensor | None, generator: torch.Generator | None) -> None:
        self.space, self.groups, self.generator = space, groups, generator
        if groups is not None:
            _, code, sizes = groups.unique(return_inverse=True, return_counts=True)
            self.groups, self.shares = code, sizes[code] > 1

    def strike(
        self, ids: Int[Tensor, "rows"], others: Int[Tensor, "some"], cosines: Float[Tensor, "rows some"]
    ) -> None:
        """Lower in place the image's own cosine, and those of its group, to -inf."""
        cosines[ids[:, None] == others] = -torch.inf
        if self.groups is not None and bool(self.shares[ids].any()):
            cosines[self.groups[ids, None] == self.groups[others]] = -torch.inf

    def rows(self, ids: Int[Tensor, "rows"]) -> Float[Tensor, "rows images"]:
        """Of these images to all."""
        if self.generator is None:
            out = self.space[ids] @ self.space.T
        else:
            out = torch.rand(len(ids), len(self.space), generator=self.generator, device=self.space.device)
        out[torch.arange(len(ids), device=out.device), ids] = -torch.inf
        if self.groups is not None:
            some = self.shares[ids].nonzero()[:, 0]
            if len(some):
                out[some] = out[some].masked_fill_(self.groups[ids[some], None] == self.groups, -torch.inf)
        return out


def search_shared(scores: Scores, candidates: Candidates, positives: Tensor) -> Tensor:
    """Contrasts with reuse: a positive that several units share needs its cosines, and its neighbour table, once."""
    found = torch.full((positives.numel(),), -1, dtype=torch.long, device=positives.device)
    flat, order = positives.flatten().sort(stable=True)
    order, flat = order[flat >= 0], flat[flat >= 0]
    unit = order // positives.shape[1]
    image, row, counts = flat.unique_consecutive(return_inverse=True, return_counts=True)
    ends = torch.cat([counts.new_zeros(1), counts.cumsum(0)]).tolist()
    for rows, (first, last) in _chunks(len(image), max(1, (1 << 23) // len(scores.space))):
        table = scores.rows(image[rows])
        pairs = slice(ends[first], ends[last])
        found[order[pairs]] = _resolve(table, candidates, row[pairs] - first, unit[pairs])
    return found.view(positives.shape)


def _resolve(
    table: Float[Tensor, "rows images"], candidates: Candidates, row: Tensor, unit: Tensor
) -> Int[Tensor, "pairs"]:
    """The best candidate of each (row, unit) pair: from the row's nearest neighbours, else from all images."""
    found, left = torch.full_like(row, -1), torch.arange(len(row), device=row.device)
    if table.shape[1] > TABLE:
        values, near = largest(table, TABLE)
        # A neighbour equal to the table's last may have been chosen over one of lower id: left to the exact search.
        found, left = look_up(near, values > values[:, -1:], candidates, row, unit)
    for part, _ in _chunks(len(left), max(1, (1 << 18) // table.shape[1])):
        pairs = left[part]
        found[pairs] = best_of_all(table[row[pairs]], candidates.rows(unit[pairs]))
    return found


def look_up(
    near: Int[Tensor, "rows width"],
    usable: Bool[Tensor, "rows width"],
    candidates: Candidates,
    row: Int[Tensor, "pairs"],
    unit: Int[Tensor, "pairs"],
) -> tuple[Int[Tensor, "pairs"], Int[Tensor, "left"]]:
    """The nearest usable neighbour of each row that is a candidate of the unit, -1 where none is; and which these are.

    A few neighbours are looked at first: they settle most pairs.
    """
    found, left = torch.full_like(row, -1), torch.arange(len(row), device=row.device)
    for width in (4, 16, near.shape[1]):
        ids = near[row[left], :width]
        hit = candidates.of(unit[left, None].expand(ids.shape), ids.clamp(min=0)) & usable[row[left], :width]
        first = hit.int().argmax(dim=1)
        hits = hit.any(dim=1)
        found[left[hits]] = ids[hits].gather(1, first[hits, None])[:, 0]
        left = left[~hits]
    return found, left


def best_of_all(cosines: Float[Tensor, "rows images"], mask: Bool[Tensor, "rows images"]) -> Int[Tensor, "rows"]:
    """The candidate of largest cosine, the lowest of equals; -1 where there is none. Changes `cosines`."""
    # Adding takes a third of the time of masked_fill_; a cosine is as good as nothing beside FAR.
    best, index = cosines.add_((~mask).to(cosines.dtype), alpha=-FAR).max(dim=1)
    return index.masked_fill_(best < -FAR / 2, -1)


def search_each(scores: Scores, candidates: Candidates, positives: Tensor, reuse: bool) -> Tensor:
    """Contrasts unit by unit: needed where a unit's earlier choices bind its later ones, or where chance chooses."""
    images, k = len(scores.space), positives.shape[1]
    found = torch.full_like(positives, -1)
    every = torch.arange(len(positives), device=positives.device)
    for rows, _ in _chunks(len(positives), max(1, (1 << 22) // (images * k))):
        ids = positives[rows]
        table = scores.rows(ids.clamp(min=0).flatten()).view(len(ids), k, images)
        table.masked_fill_(~candidates.rows(every[rows])[:, None, :] | (ids < 0)[:, :, None], -torch.inf)
        for i in range(k):
            best, index = table[:, i].max(dim=1)
            none = best == -torch.inf
            found[rows, i] = index.masked_fill(none, -1)
            if not reuse:
                taken = ~none
                table[taken, :, index[taken]] = -torch.inf
    return found


class CellTable:
    """Neighbours of all positives from near cells; what they don't settle is searched among all images."""

    def __init__(self, scores: Scores, positives: Int[Tensor, "units k"], seed: int, check: bool = True) -> None:
        self.image, self.check = positives[positives >= 0].unique(), check
        values, self.near = near_cells(scores.space, self.image, TABLE, scores.strike, seed)
        self.usable = (self.near >= 0) & values.isfinite()
        self.pairs = self.settled = self.checked = self.same = 0
        self.lost = 0.0
        self.generator = torch.Generator().manual_seed(seed)

    def search(self, scores: Scores, candidates: Candidates, positives: Int[Tensor, "some k"]) -> Tensor:
        """A contrast of each positive, -1 where it has none. With `check`, counts what an exact search gives."""
        unit, place = (positives >= 0).nonzero(as_tuple=True)
        image = positives[unit, place]
        found, left = look_up(self.near, self.usable, candidates, torch.searchsorted(self.image, image), unit)
        self.pairs, self.settled = self.pairs + len(image), self.settled + len(image) - len(left)
        if self.check:
            self._count(scores, candidates, image, unit, found)
        rest = torch.full_like(positives, -1)
        rest[unit[left], place[left]] = image[left]
        contrasts = search_shared(scores, candidates, rest)
        contrasts[unit, place] = torch.maximum(contrasts[unit, place], found)  # one of the two is -1
        return contrasts

    def _count(self, scores: Scores, candidates: Candidates, image: Tensor, unit: Tensor, found: Tensor) -> None:
        drawn = torch.randperm(len(image), generator=self.generator)[:CHECKED].to(image.device)
        drawn = drawn[found[drawn] >= 0]
        exact = self._exact(scores, candidates, image[drawn], unit[drawn])
        own, best = (
            (scores.space[image[drawn]] * scores.space[ids]).sum(dim=1) for ids in (found[drawn], exact.clamp(min=0))
        )
        self.checked, self.same = self.checked + len(drawn), self.same + int((exact == found[drawn]).sum())
        self.lost += float((best - own).sum())

    def _exact(self, scores: Scores, candidates: Candidates, image: Tensor, unit: Tensor) -> Int[Tensor, "pairs"]:
        found = torch.full_like(image, -1)
        for part, _ in _chunks(len(image), max(1, (1 << 22) // len(scores.space))):
            found[part] = best_of_all(scores.rows(image[part]), candidates.rows(unit[part]))
        return found

    def tell(self) -> None:
        """Say in the log what the approximation costs."""
        log.info(
            "contrasts of %d pairs: %.4f found in cells, the others among all images; of %d looked up both ways %.3f "
            "are the same, and the cosine is lower by %.4f in the mean (label.mining.exact_below)",
            self.pairs,
            self.settled / max(self.pairs, 1),
            self.checked,
            self.same / max(self.checked, 1),
            self.lost / max(self.checked, 1),
        )


def _chunks(total: int, size: int) -> Iterator[tuple[slice, tuple[int, int]]]:
    for first in range(0, total, size):
        last = min(first + size, total)
        yield slice(first, last), (first, last)
