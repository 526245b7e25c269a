"""How much a label's membership and a unit's firing have in common, in standard deviations under chance."""

import math
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn.functional import embedding_bag

from saelab.acts import Acts, Columns, blocks
from saelab.label.mine.status import column_means, extremes

BROAD = 0.25  # share of the linear reading in graded evidence; the rest listens to images far out
CAUTION = 0.5  # standard errors that a correlation is lowered by
USUAL = 0.75  # quantile of the labels' spreads from which a label counts in full


@dataclass(frozen=True)
class Reading:
    """One reading of the labels' memberships, ready for correlations."""

    values: Float[Tensor, "images labels"]  # centred columns of unit length; 0 for one that is alike everywhere
    squares: Float[Tensor, "images labels"]  # of the values; columns sum to 1, also that of one alike everywhere
    weight: float  # of its evidence in the sum
    clear: bool  # is it held against clear firing, or against the activation as it is


def standard(
    sims: Float[Tensor, "images labels"],
) -> tuple[Float[Tensor, "images labels"], Bool[Tensor, "labels"], Float[Tensor, "labels"]]:
    """Similarities less their label's mean over its standard deviation, labels that have none (z is 0), and these."""
    centred = sims - sims.mean(dim=0)
    spread = centred.pow(2).mean(dim=0).sqrt()
    constant = spread <= 1e-6 * sims.pow(2).mean(dim=0).sqrt()
    return centred.div_(spread.masked_fill(constant, torch.inf)), constant, spread


def memberships(z: Float[Tensor, "images labels"]) -> tuple[Reading, ...]:
    """The readings of the labels' memberships: graded on two scales, and in competition."""
    return (
        _reading(z.clone(), BROAD, clear=False),
        _reading(z.pow(3), 1 - BROAD, clear=True),
        _reading(z.softmax(dim=1), 1.0, clear=True),
    )


def discount(spread: Float[Tensor, "labels"]) -> Float[Tensor, "labels"]:
    """What evidence for a label counts: 1 for the widely spread quarter of the labels, less for the others.

    A label that no image shows is about equally like them all; standardised, it would weigh as much as any.
    """
    reference = spread.quantile(USUAL).clamp(min=torch.finfo(spread.dtype).tiny)
    return (spread / reference).clamp(max=1).sqrt()


def discounted(score: Float[Tensor, "some labels"], worth: Float[Tensor, "labels"]) -> Float[Tensor, "some labels"]:
    """Scores above 0 times what they count."""
    return torch.where(score > 0, score * worth, score)


def paired(
    z: Float[Tensor, "images labels"],
    positive_ids: Int[Tensor, "some k"],
    contrast_ids: Int[Tensor, "some k"],
    valid: Bool[Tensor, "some k"],
) -> Float[Tensor, "some labels"]:
    """Evidence of the pairs: sum (z[p] - z[n]) / sqrt(2 pairs), of variance 1 where images are drawn at random."""
    there = valid.to(z.dtype)
    weight = there / (2 * there.sum(dim=1, keepdim=True).clamp(min=1)).sqrt()
    ids = torch.cat([positive_ids, contrast_ids], dim=1).clamp(min=0)
    return embedding_bag(ids, z, mode="sum", per_sample_weights=torch.cat([weight, -weight], dim=1))


def whole(acts: Acts, base: Float[Tensor, "some"], reading: Reading) -> Float[Tensor, "some labels"]:
    """Evidence of the whole set: sqrt(images) (r - CAUTION se) of relu(a - base); NaN for constant units."""
    if isinstance(acts, Columns):
        return cautious(*_against_sparse(acts, base, reading), acts.images)
    parts = [cautious(*_against_dense(block, base[at], reading), len(block)) for at, block in blocks(acts)]
    return torch.cat(parts) if parts else reading.values.new_zeros(0, reading.values.shape[1])


def baseline(acts: Acts) -> Float[Tensor, "units"]:
    """Above what a unit fires clearly: its mean plus one standard deviation, in float64.

    Where the largest activation is within two of them (units that saturate, or fire on half of the images), halfway
    from the mean to it, so that something is always above.
    """
    means = column_means(acts)
    if isinstance(acts, Columns):
        deviations = acts.total((acts.values - means[acts.unit_of_entry]).square())
        variance = (deviations + (acts.images - acts.counts) * means.square()) / acts.images
    else:
        spreads = [(block - means[at]).square().mean(dim=0) for at, block in blocks(acts)]
        variance = torch.cat(spreads) if spreads else means
    _, largest = extremes(acts)
    return means + torch.minimum(variance.sqrt(), (largest - means) / 2)


def baselines(acts: Acts) -> dict[bool, Float[Tensor, "units"]]:
    """What is subtracted for readings of clear firing (True) and of the whole activation (False): the lowest one."""
    return {True: baseline(acts), False: extremes(acts)[0].double()}


def _reading(columns: Float[Tensor, "images labels"], weight: float, clear: bool) -> Reading:
    """Columns to mean 0 and length 1; one that is alike everywhere says nothing: r 0 with the error of chance."""
    length = columns.norm(dim=0)
    columns -= columns.mean(dim=0)
    rest = columns.norm(dim=0)
    alike = rest <= 1e-6 * length
    columns /= rest.masked_fill(alike, torch.inf)
    return Reading(columns, columns.square().masked_fill_(alike, 1 / len(columns)), weight, clear)


def cautious(
    r: Float[Tensor, "some labels"], spread: Float[Tensor, "some labels"], images: int
) -> Float[Tensor, "some labels"]:
    """sqrt(images) (r - CAUTION se), where se^2 = spread - r^2 / images and spread = sum x^2 y^2."""
    se = torch.addcmul(spread, r, r, value=-1 / images).clamp_(min=0).sqrt_()
    return se.mul_(-CAUTION).add_(r).mul_(math.sqrt(images))


def _against_dense(
    acts: Float[Tensor, "images some"], base: Float[Tensor, "some"], reading: Reading
) -> tuple[Tensor, Tensor]:
    x = (acts - base).clamp_(min=0)
    x -= x.mean(dim=0)
    norm = x.norm(dim=0)
    x = x.div_(norm.masked_fill(norm == 0, torch.nan)).to(reading.values.dtype)
    return x.T @ reading.values, x.square().T @ reading.squares


def _against_sparse(acts: Columns, base: Float[Tensor, "some"], reading: Reading) -> tuple[Tensor, Tensor]:
    """From stored entries; every unstored image has the entry relu(-base).

    Columns of `values` sum to 0 and of `squares` to 1, so what all images share drops out of the first product and is
    added to the second as it is.
    """
    owner, unstored = acts.unit_of_entry, acts.images - acts.counts
    entries, rest = (acts.values - base[owner]).clamp(min=0), (-base).clamp(min=0)
    means = (acts.total(entries) + unstored * rest) / acts.images
    squared = acts.total((entries - means[owner]).square()) + unstored * (rest - means).square()
    squared = squared.masked_fill(squared == 0, torch.nan)
    r = acts.product((entries - rest[owner]) / squared.sqrt()[owner], reading.values)
    common = (rest - means).square() / squared
    own = (entries - means[owner]).square() / squared[owner]
    return r, acts.product(own - common[owner], reading.squares) + common.to(r.dtype)[:, None]
