"""Correlations of units with their labels' similarity to the images, without a matrix of images x units.

Of a sparse unit only the images that it stores are looked at one by one: what the label says of all the others is in
the mean and the length of its column, which all units of the label share.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from saelab import metrics
from saelab.acts import Acts, Columns, blocks
from saelab.metrics.faithfulness import FLAT, centred_length

AT_ONCE = 1 << 22  # numbers held at once


@dataclass(frozen=True)
class Spread:
    """Each label's similarities to all images, in float64."""

    mean: Float[Tensor, "labels"]
    length: Float[Tensor, "labels"]  # of the centred column
    flat: Bool[Tensor, "labels"]  # it is alike on all images: the length says nothing


def label_blocks(
    images: Float[Tensor, "images d_text"], labels: Float[Tensor, "labels d_text"]
) -> Iterator[Float[Tensor, "images some"]]:
    """Similarities of the images with the labels in float64, some labels at a time."""
    images = images.double()
    for some in labels.double().split(max(1, AT_ONCE // max(len(images), 1))):
        yield images @ some.T


def spread_of(blocks: Iterator[Float[Tensor, "images some"]]) -> Spread:
    """From the columns of some labels at a time."""
    found = []
    for columns in blocks:
        mean = columns.mean(dim=0)
        centred = columns - mean
        found.append((mean, centred.norm(dim=0), centred.abs().amax(dim=0) < FLAT))
    return Spread(*(torch.cat(column) for column in zip(*found, strict=True)))


def at_entries(
    acts: Columns,
    images: Float[Tensor, "images d_text"],
    labels: Float[Tensor, "labels d_text"],
    label: Int[Tensor, "units"],
) -> Float[Tensor, "entries"]:
    """The similarity, in float64, of each stored entry's image with its unit's label."""
    owner = label[acts.unit_of_entry]
    out = torch.empty(len(acts.values), dtype=torch.float64, device=acts.device)
    for some in torch.arange(len(out), device=acts.device).split(max(1, AT_ONCE // images.shape[1])):
        out[some] = (images[acts.rows[some]].double() * labels[owner[some]].double()).sum(dim=1)
    return out


def correlate(
    acts: Acts,
    images: Float[Tensor, "images d_text"],
    labels: Float[Tensor, "labels d_text"],
    label: Int[Tensor, "units"],
) -> Float[Tensor, "units"]:
    """`metrics.simulation_correlation` of each unit with the label `labels[label[u]]`; dense or by columns."""
    if isinstance(acts, Columns):
        spread = spread_of(label_blocks(images, labels))
        return correlate_entries(acts, at_entries(acts, images, labels, label), spread, label)
    images, found = images.double(), []
    for block, part in blocks(acts, AT_ONCE):
        found.append(metrics.simulation_correlation(part, images @ labels[label[block]].double().T))
    return torch.cat(found)


def correlate_entries(
    acts: Columns, other: Float[Tensor, "entries"], spread: Spread, label: Int[Tensor, "units"]
) -> Float[Tensor, "units"]:
    """Pearson r with a column of which `other` holds what it is at the stored entries, `spread` the rest.

    Summed over all images the centred column is 0, so an activation's mean drops out of the product.
    """
    length, flat = centred_length(acts)
    product = acts.total(acts.values.double() * (other - spread.mean[label][acts.unit_of_entry]))
    r = product / (length * spread.length[label])
    return r.masked_fill(flat | spread.flat[label], torch.nan).float()
