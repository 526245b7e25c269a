"""Pictures dealt out anew in whole series: the null where images are no independent draws.

Near-duplicates, bursts and frames of one film go together in what a unit does and in what labels say, so single images
of a series can't stand for chance. Here a whole series of pictures takes the place of another, for all units at once:
the activations stay as they are, and what is seen on the images moves.
"""

from dataclasses import dataclass

import torch
from jaxtyping import Int
from torch import Tensor

from saelab.acts import Columns
from saelab.label.mine.contrast import MASK_ELEMENTS, choose_contrasts
from saelab.label.mine.neighbours import Neighbours
from saelab.label.scorers.evidence import Evidence
from saelab.label.scorers.frame import by_rank
from saelab.label.scorers.products import Products

FEWEST = 5  # series that change places with each other, at least: 120 orders of them


@dataclass(frozen=True)
class Series:
    """Which images belong together, and which series may change places: those of one size, where enough have it."""

    members: Int[Tensor, "images"]  # image ids, series by series
    starts: Int[Tensor, "series"]  # where each begins in `members`
    sizes: Int[Tensor, "series"]
    of: Int[Tensor, "images"]  # series of each image
    pool: Int[Tensor, "series"]  # series of one pool change places

    @classmethod
    def of_groups(cls, groups: Int[Tensor, "images"]) -> "Series":
        """From the group of each image.

        From the largest size down, sizes join a pool until it holds `FEWEST` series. What is left over at the end
        joins the pool before.
        """
        of, sizes = groups.unique(return_inverse=True, return_counts=True)[1:]
        members = of.argsort(stable=True)
        pool, held, number = torch.zeros_like(sizes), 0, 0
        for size in sizes.unique().flip(0).tolist():
            here = sizes == size
            pool[here] = number
            held += int(here.sum())
            number, held = (number + 1, 0) if held >= FEWEST else (number, held)
        if held:
            pool[pool == number] = max(number - 1, 0)
        return cls(members, sizes.cumsum(0) - sizes, sizes, of, pool)

    def deal(self, generator: torch.Generator) -> Int[Tensor, "images"]:
        """The picture that each image gets: series change places within pools, pictures within their series.

        Where sizes are equal this is a permutation of the images. A longer series loses pictures at random in the
        place of a shorter one; a shorter one shows its pictures again, about equally often.
        """
        device = self.of.device
        within = torch.rand(len(self.of), generator=generator).to(device)
        order = self.members[(self.of[self.members] + within.double() * 0.5).argsort()]
        rank = torch.empty_like(order).scatter_(0, order, torch.arange(len(order), device=device))
        place = rank - self.starts[self.of]  # of each image in its series
        drawn = torch.rand(len(self.sizes), generator=generator).double().to(device)
        source = torch.empty_like(self.pool)
        source[self.pool.argsort(stable=True)] = (self.pool + drawn * 0.5).argsort()
        new = source[self.of]
        return order[self.starts[new] + place % self.sizes[new]]


def series_of(evidence: Evidence) -> Series | None:
    """The evidence's series (its near-duplicates, where no series are given); None where every image is its own."""
    groups = evidence.groups if evidence.series is None else evidence.series
    if groups is None or len(groups.unique()) == len(groups):
        return None
    return Series.of_groups(groups)


class Moving:
    """Evidence whose pictures change places; what stays where it is is computed once."""

    def __init__(self, evidence: Evidence, contrasts: bool = True) -> None:
        self.evidence, self.contrasts = evidence, contrasts
        e = evidence
        small = isinstance(e.acts, Columns) or e.n_units * e.n_images <= MASK_ELEMENTS
        quick = contrasts and by_rank(e) and small
        self.near = Neighbours(e.acts, e.image_emb, e.positive_ids, e.rule, e.groups) if quick else None

    def move(self, source: Int[Tensor, "images"]) -> Evidence:
        """The evidence with the picture `source[i]` on image i, contrasts mined again (where anyone asks for them).

        Activations and positives stay; embeddings, near-duplicates and concepts go with the picture.
        """
        e = self.evidence
        fields = {name: getattr(e, name) for name in ("image_emb", "groups", "series", "host_emb", "concepts")}
        seen: dict[str, Tensor | None] = {name: None if x is None else x[source] for name, x in fields.items()}
        if self.near is not None:
            seen["contrast_ids"] = self.near.contrasts(source)
        elif self.contrasts:
            groups = source if e.groups is None else seen["groups"]  # a picture is no contrast of itself
            given = (e.acts, e.image_emb[source], e.positive_ids, e.rule, groups, seen["host_emb"])
            seen["contrast_ids"] = choose_contrasts(*given, apart=True, check=False)[0]
        moved = e.but(**seen)
        if not isinstance(e.looked_at, Products):
            moved.__dict__["sims"] = e.sims[source]  # the cached property: no product anew
        return moved
