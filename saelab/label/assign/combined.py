"""saelab's own scorer: what a unit does over all images and what sets its positives apart, in one currency.

Both kinds of evidence are counted in standard deviations under chance (the unit's activations dealt out to the images
at random), so that they can be added: many images make the whole set speak louder, few leave the word to the pairs.
docs/scorers.md derives the parts, says what was chosen on what data, and shows where other scorers are better.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn.functional import embedding_bag

from saelab.acts import Acts, Columns, blocks, part, shape
from saelab.arrays import takes_arrays
from saelab.errors import UserError
from saelab.label.assign.checks import similarities
from saelab.label.mine.status import column_means, extremes

BROAD = 0.25  # share of the linear reading in graded evidence; the rest listens to images far out
CAUTION = 0.5  # standard errors that a correlation is lowered by
USUAL = 0.75  # quantile of the labels' spreads from which a label counts in full


@takes_arrays
def contrast_evidence(
    acts: Acts,
    image_emb: Float[Tensor, "images d_text"],
    label_emb: Float[Tensor, "labels d_text"],
    positive_ids: Int[Tensor, "units k"],
    contrast_ids: Int[Tensor, "units k"],
    valid: Bool[Tensor, "units k"] | None = None,
) -> Float[Tensor, "units labels"]:
    """Evidence that a unit responds to what a label names: whole-set correlation plus paired contrast.

    With z the similarities <image, label> standardised per label over the images, a label's membership is read on two
    graded scales, z and z^3, which let a broad label stand beside the narrow ones that it covers, and in competition,
    softmax_labels(z), in which a label has to explain an image better than the others do. With
    E(x, m) = sqrt(images) (r(x, m) - se / 2), Pearson's correlation over all images in standard deviations,

        score = d * (E(a, z) / 4 + 3 E(f, z^3) / 4  +  E(f, softmax z)  +  sum_k (z[p_k] - z[n_k]) / sqrt(2 k))

    a is the activation and f = relu(a - mean - sd) by how much the unit fires clearly (`baseline`);
    se^2 = sum x^2 y^2 - r^2 / images (x, y: the centred columns of unit length) is r's sampling variance whatever the
    distributions, large where few images carry the correlation; p_k and n_k are the k positives and their contrasts.
    Under chance each kind of evidence has a variance of about 1, and of less where contrasts are much like their
    positives. d = sqrt(min(1, spread / upper quartile of the labels' spreads)), the spread being the standard
    deviation of a label's similarities, discounts labels that no image seems to show; evidence against a label
    (below 0) is left as it is. Of one label only, or of equal ones, competition says what chance does, -1/2.

    positive_ids, contrast_ids: from `mine.top_images` and `mine.contrast_images`, -1 where there is none. valid:
    False leaves a pair out; a unit without a pair is scored by the whole set alone. NaN for units that are constant
    or not finite, and for labels equally like every image. A label's score depends on the vocabulary (competition,
    discount) but not on the other units; neither a unit's scale nor an offset matters.
    Raises UserError where sizes do not fit.
    """
    acts, sims = similarities(acts, image_emb, label_emb)
    return contrast_evidence_rows(acts, sims, positive_ids, contrast_ids, valid)(slice(None))


def contrast_evidence_rows(
    acts: Acts,
    sims: Float[Tensor, "images labels"],
    positive_ids: Int[Tensor, "units k"],
    contrast_ids: Int[Tensor, "units k"],
    valid: Bool[Tensor, "units k"] | None = None,
) -> Callable[[slice], Float[Tensor, "some labels"]]:
    """`contrast_evidence` for a slice of units at a time, given the similarities."""
    _check(acts, positive_ids, contrast_ids, valid)
    there = (positive_ids >= 0) & (contrast_ids >= 0)
    there = there if valid is None else there & valid
    z, constant, spread = standard(sims)
    readings, worth = memberships(z), discount(spread)
    bases = baselines(acts)

    def rows(units: slice) -> Float[Tensor, "some labels"]:
        some = part(acts, units)
        total = paired(z, positive_ids[units], contrast_ids[units], there[units])
        for reading in readings:
            total.add_(whole(some, bases[reading.clear][units], reading), alpha=reading.weight)
        return discounted(total, worth).masked_fill_(constant, torch.nan)

    return rows


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


def _check(acts: Acts, positive_ids: Tensor, contrast_ids: Tensor, valid: Tensor | None) -> None:
    units = shape(acts)[1]
    if positive_ids.ndim != 2 or len(positive_ids) != units:
        raise UserError("positive_ids", tuple(positive_ids.shape), f"expected [units, k] for {units} units")
    for name, tensor in (("contrast_ids", contrast_ids), ("valid", valid)):
        if tensor is not None and tensor.shape != positive_ids.shape:
            raise UserError(name, tuple(tensor.shape), f"expected [units, k] = {tuple(positive_ids.shape)}")
