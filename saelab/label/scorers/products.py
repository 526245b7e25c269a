"""Similarities of images and labels that are computed when somebody looks at them, some labels or images at a time."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from jaxtyping import Float, Int
from torch import Tensor

AT_ONCE = 1 << 25  # numbers of a matrix of images x labels that are looked at together


@dataclass(frozen=True)
class Products:
    """P = E T' that is nowhere held whole: indexed like a matrix, by images and a run of labels."""

    image_emb: Float[Tensor, "images d_text"]
    label_emb: Float[Tensor, "labels d_text"]

    @property
    def shape(self) -> tuple[int, int]:
        """(images, labels)."""
        return len(self.image_emb), len(self.label_emb)

    @property
    def dtype(self) -> torch.dtype:
        """The embeddings' own, float32 at least."""
        return torch.promote_types(self.image_emb.dtype, torch.float32)

    @property
    def device(self) -> torch.device:
        """Where the embeddings lie."""
        return self.image_emb.device

    def __len__(self) -> int:
        return len(self.image_emb)

    def __getitem__(self, at: tuple[slice | Tensor, slice]) -> Float[Tensor, "some labels"]:
        images, labels = at
        return self.image_emb[images].to(self.dtype) @ self.label_emb[labels].to(self.dtype).T


Sims = Tensor | Products  # [images, labels]


def label_parts(images: int, labels: int, at_once: int | None = None) -> list[slice]:
    """Runs of labels that are looked at together, where so many images are."""
    at_once = AT_ONCE if at_once is None else at_once
    width = labels if images * labels <= 2 * at_once else max(1, at_once // images)
    return [slice(first, min(first + width, labels)) for first in range(0, labels, width)]


def side_by_side(parts: Sequence[Float[Tensor, "some _"]]) -> Float[Tensor, "some labels"]:
    """The scores of all runs of labels as one matrix; those of a single run as they are, without a copy."""
    return parts[0] if len(parts) == 1 else torch.cat(tuple(parts), dim=1)


@dataclass(frozen=True)
class Scaled:
    """Centred columns of similarities to a power, each divided by its length: some labels or images at a time."""

    sims: Sims
    power: int
    mean: Float[Tensor, "labels"]
    length: Float[Tensor, "labels"]  # of the centred column to the power; NaN or a floor where it is none

    @classmethod
    def of(cls, sims: Sims, power: int, bound: Callable[[Tensor, Tensor], Tensor]) -> "Scaled":
        """`bound(length, offset)`: what a column is divided by, from its length and that of what centring took away."""
        found = []
        for part in label_parts(*sims.shape):
            own = sims[:, part]
            mean = own.mean(dim=0)
            length = (own - mean).pow_(power).norm(dim=0)
            found.append((mean, bound(length, mean.abs() * math.sqrt(len(own)))))
        return cls(sims, power, *(torch.cat(column) for column in zip(*found, strict=True)))

    @cached_property
    def sums(self) -> Float[Tensor, "labels"]:
        """Of the scaled columns: what the images that sparse units don't store add up to; others never ask."""
        parts = [self._centred(part).sum(dim=0, dtype=torch.float64) / self.length[part] for part in self.parts()]
        return torch.cat(parts).to(self.sims.dtype)

    def some(
        self, labels: slice = slice(None), images: slice | Int[Tensor, "some"] = slice(None)
    ) -> Float[Tensor, "some labels"]:
        """The columns of these labels at these images."""
        return self._centred(labels, images).div_(self.length[labels])

    def parts(self, images: int | None = None) -> list[slice]:
        """Runs of labels that are looked at together, at so many images (all of them)."""
        return label_parts(len(self.sims) if images is None else images, self.sims.shape[1])

    def _centred(
        self, labels: slice, images: slice | Int[Tensor, "some"] = slice(None)
    ) -> Float[Tensor, "some labels"]:
        return (self.sims[images, labels] - self.mean[labels]).pow_(self.power)
