"""What a synthesised picture is worth: four numbers that a picture can't be shown without. Plain functions.

People predict units better from photos than from synthesised pictures (Borowski et al., ICLR 2021), and a picture can
excite a unit by a path that no photo takes (Geirhos et al., ICML 2024).
"""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import normalize


@dataclass(frozen=True)
class Reach:
    """The unit's activation on the picture beside those on photos."""

    activation: float
    largest: float  # on any photo for mining
    ratio: float | None  # of the two; None where no photo fires the unit
    percentile: float  # mid-rank among the photos, 0..1
    median: float  # over the unit's exemplars
    reached: bool  # activation >= median and above 0: else the picture is not the unit's face


def reach(activation: float, photos: Float[Tensor, "images"], exemplars: Float[Tensor, "k"]) -> Reach:
    """`photos`: the unit's activation on every photo for mining; `exemplars`: on those that fire it most."""
    largest, median = float(photos.max()), float(exemplars.median()) if len(exemplars) else 0.0
    below, equal = (photos < activation).double().mean(), (photos == activation).double().mean()
    ratio = activation / largest if largest > 0 else None
    return Reach(
        activation, largest, ratio, float(below + equal / 2), median, bool(activation > 0 and activation >= median)
    )


@dataclass(frozen=True)
class Path:
    """Does the picture go through the network as the unit's photos do? By earlier layer, in the order of running."""

    layers: dict[str, float]  # excess: rank correlation with exemplars, less that of exemplars with other photos
    ceiling: dict[str, float]  # the same excess of exemplars with one another

    @property
    def similarity(self) -> float | None:
        """Mean excess over layers; 0: no more like the unit's photos than any photo is. None without layers."""
        return float(np.mean(list(self.layers.values()))) if self.layers else None

    @property
    def most(self) -> float | None:
        """The same mean of the unit's photos among themselves: what a picture like them would have."""
        return float(np.mean(list(self.ceiling.values()))) if self.ceiling else None

    @property
    def share(self) -> float | None:
        """`similarity` as a share of `most`; None where that is not above 0."""
        return self.similarity / self.most if self.similarity is not None and self.most and self.most > 0 else None


def path(
    picture: Mapping[str, Float[Tensor, "d_in"]],
    exemplars: Mapping[str, Float[Tensor, "k d_in"]],
    others: Mapping[str, Float[Tensor, "images d_in"]],
) -> Path:
    """Spearman's correlation of mean-token vectors, layer by layer (after Geirhos et al., ICML 2024, section 4).

    Fewer than two exemplars: no layers.
    """
    layers, ceiling = {}, {}
    for name, own in exemplars.items():
        if len(own) < 2:
            continue
        base = float(rank_correlations(own, others[name]).mean())
        among = rank_correlations(own, own)
        layers[name] = float(rank_correlations(picture[name][None], own).mean()) - base
        ceiling[name] = float((among.sum() - among.diagonal().sum()) / (len(own) * (len(own) - 1))) - base
    return Path(layers, ceiling)


def rank_correlations(a: Float[Tensor, "n d_in"], b: Float[Tensor, "m d_in"]) -> Float[Tensor, "n m"]:
    """Spearman's correlation of every row of `a` with every row of `b`, float64; 0 with a constant row."""
    ranks = [_standard_ranks(x) for x in (a, b)]
    return ranks[0] @ ranks[1].T


def _standard_ranks(rows: Tensor) -> Tensor:
    from scipy.stats import rankdata

    ranks = torch.from_numpy(rankdata(rows.double().numpy(), axis=1))
    return normalize(ranks - ranks.mean(1, keepdim=True), dim=1)


@dataclass(frozen=True)
class Place:
    """Where one candidate stands among all by its cosine with a picture."""

    rank: int  # 1: the nearest (ties count as nearer)
    of: int
    percentile: float  # share of the others that are farther, ties half; chance .5


def place(picture: Float[Tensor, "d_text"], candidates: Float[Tensor, "candidates d_text"], own: int) -> Place | None:
    """The place of candidate `own`. Candidates with NaN don't stand; None where `own` does not, or stands alone.

    `candidates`: mean embeddings of every unit's exemplars (does an independent encoder find the unit again?), or
    vectors of every unit's label (does the picture show what the unit's own label says, rather than another's?).
    """
    cosine = normalize(candidates.double(), dim=1) @ normalize(picture.double(), dim=0)
    mine, rest = cosine[own], torch.cat([cosine[:own], cosine[own + 1 :]])
    rest = rest[~rest.isnan()]
    if mine.isnan() or not len(rest):
        return None
    farther = float((rest < mine).double().mean() + (rest == mine).double().mean() / 2)
    return Place(1 + int((rest >= mine).sum()), 1 + len(rest), farther)
