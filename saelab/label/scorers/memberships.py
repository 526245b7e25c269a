"""How much a label's membership and a unit's firing have in common, in standard deviations under chance."""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn.functional import embedding_bag

from saelab.acts import Acts, Columns, blocks
from saelab.label.mine.status import column_means, extremes
from saelab.label.scorers.products import Sims, label_parts

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


@dataclass(frozen=True)
class Scale:
    """How one reading is centred and scaled, label by label."""

    mean: Float[Tensor, "labels"]
    length: Float[Tensor, "labels"]  # of the centred column; infinite for one that is alike everywhere
    alike: Bool[Tensor, "labels"]  # columns that say nothing: r 0, with the error of chance


READINGS: tuple[tuple[float, bool, Callable[[Tensor, Tensor, Tensor], Tensor]], ...] = (
    (BROAD, False, lambda z, highest, total: z.clone()),
    (1 - BROAD, True, lambda z, highest, total: z.pow(3)),
    (1.0, True, lambda z, highest, total: (z - highest[:, None]).exp_().div_(total[:, None])),  # softmax over labels
)


class Memberships:
    """Labels' memberships in images, read from their similarities some labels, or some images, at a time.

    What a reading needs to know of all images (or of all labels, where these compete) is kept label by label (or image
    by image): beside the similarities no matrix of images x labels has to be held.
    """

    def __init__(self, sims: Sims, at_once: int | None = None) -> None:
        self._sims, self._at_once = sims, at_once
        parts = self.parts(len(sims))
        moments = [_moments(sims[:, part]) for part in parts]
        self._centre, self.spread, size = (torch.cat(column) for column in zip(*moments, strict=True))
        self.constant = self.spread <= 1e-6 * size  # labels equally like every image: their z is 0
        self._unit = self.spread.masked_fill(self.constant, torch.inf)
        self._highest, self._total = self._crowd(parts)
        self._columns: list[Float[Tensor, "images labels"]] = []  # of each reading, where there is one part
        self._scales = self._scale(parts)

    def parts(self, images: int) -> list[slice]:
        """Runs of labels that are looked at together, where so many images are."""
        return label_parts(images, self._sims.shape[1], self._at_once)

    def z(
        self, labels: slice = slice(None), images: Int[Tensor, "some"] | None = None
    ) -> Float[Tensor, "images labels"]:
        """Similarities less their label's mean over its standard deviation; 0 for a label that has none."""
        sims = self._sims[slice(None) if images is None else images, labels]
        return (sims - self._centre[labels]).div_(self._unit[labels])

    def readings(
        self, z: Float[Tensor, "images labels"], labels: slice = slice(None), images: Int[Tensor, "some"] | None = None
    ) -> Iterator[Reading]:
        """The readings of `z(labels, images)`, one after the other: graded on two scales, and in competition."""
        highest, total = (t if images is None else t[images] for t in (self._highest, self._total))
        for number, ((weight, clear, read), scale) in enumerate(zip(READINGS, self._scales, strict=True)):
            if self._columns:
                values = self._columns[number][:, labels]
                values = values if images is None else values[images]
            else:
                values = read(z, highest, total).sub_(scale.mean[labels]).div_(scale.length[labels])
            squares = values.square().masked_fill_(scale.alike[labels], 1 / len(self._sims))
            yield Reading(values, squares, weight, clear)

    def _crowd(self, parts: list[slice]) -> tuple[Float[Tensor, "images"], Float[Tensor, "images"]]:
        """Each image's largest z, and the sum of exp(z - largest) over all labels."""
        highest = torch.full((len(self._sims),), -torch.inf, dtype=self._sims.dtype, device=self._sims.device)
        total = torch.zeros_like(highest)
        for part in parts:
            z = self.z(part)
            higher = torch.maximum(highest, z.amax(dim=1))
            total = total * (highest - higher).exp() + z.sub_(higher[:, None]).exp_().sum(dim=1)
            highest = higher
        return highest, total

    def _scale(self, parts: list[slice]) -> list[Scale]:
        found: list[list[tuple[Tensor, ...]]] = [[] for _ in READINGS]
        for part in parts:
            z = self.z(part)
            for (_, _, read), of_reading in zip(READINGS, found, strict=True):
                columns = read(z, self._highest, self._total)
                length, mean = columns.norm(dim=0), columns.mean(dim=0)
                rest = columns.sub_(mean).norm(dim=0)
                alike = rest <= 1e-6 * length
                of_reading.append((mean, rest.masked_fill(alike, torch.inf), alike))
                if len(parts) == 1:  # what `readings` would compute again
                    self._columns.append(columns.div_(of_reading[-1][1]))
        return [Scale(*(torch.cat(column) for column in zip(*of_reading, strict=True))) for of_reading in found]


def _moments(sims: Float[Tensor, "images some"]) -> tuple[Tensor, Tensor, Tensor]:
    """Mean, standard deviation and root mean square of each column."""
    centre = sims.mean(dim=0)
    spread = (sims - centre).pow_(2).mean(dim=0).sqrt()
    return centre, spread, sims.pow(2).mean(dim=0).sqrt()


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


@dataclass(frozen=True)
class Firing:
    """What units do above a base: centred columns of unit length, ready to meet readings of labels.

    Where a unit has no entry stored, its entry is 0 in the first matrix (columns of `Reading.values` sum to 0, so what
    all images share drops out of that product) and `common` beyond 0 in the second.
    """

    entries: Float[Tensor, "some images"]  # dense or CSR; NaN for a constant unit
    squares: Float[Tensor, "some images"]
    common: (
        Float[Tensor, "some 1"] | None
    )  # added to the product of the squares, as columns of `Reading.squares` sum to 1

    @classmethod
    def above(cls, acts: Acts, base: Float[Tensor, "some"], dtype: torch.dtype) -> "Firing":
        """Of relu(acts - base), computed in float64 and kept in `dtype`."""
        if isinstance(acts, Columns):
            return cls._of_columns(acts, base, dtype)
        x = (acts - base).clamp_(min=0)
        x -= x.mean(dim=0)
        norm = x.norm(dim=0)
        x = x.div_(norm.masked_fill(norm == 0, torch.nan)).to(dtype)
        return cls(x.T, x.square().T, None)

    @classmethod
    def _of_columns(cls, acts: Columns, base: Tensor, dtype: torch.dtype) -> "Firing":
        owner, unstored = acts.unit_of_entry, acts.images - acts.counts
        entries, rest = (acts.values - base[owner]).clamp(min=0), (-base).clamp(min=0)
        means = (acts.total(entries) + unstored * rest) / acts.images
        squared = acts.total((entries - means[owner]).square()) + unstored * (rest - means).square()
        squared = squared.masked_fill(squared == 0, torch.nan)
        common = (rest - means).square() / squared
        own = (entries - means[owner]).square() / squared[owner] - common[owner]
        within = acts.transposed((entries - rest[owner]) / squared.sqrt()[owner], dtype)
        return cls(within, acts.transposed(own, dtype), common.to(dtype)[:, None])

    def against(self, reading: Reading) -> Float[Tensor, "some labels"]:
        """Evidence of the whole set: sqrt(images) (r - CAUTION se); NaN for constant units."""
        spread = self.squares @ reading.squares
        spread = spread if self.common is None else spread.add_(self.common)
        return cautious(self.entries @ reading.values, spread, len(reading.values))

    def plainly(self, reading: Reading) -> Float[Tensor, "some labels"]:
        """sqrt(images) r."""
        return (self.entries @ reading.values).mul_(math.sqrt(len(reading.values)))


def whole(
    acts: Float[Tensor, "images some"],
    base: Float[Tensor, "some"],
    reading: Reading,
    read: Callable[[Firing, Reading], Tensor] = Firing.against,
) -> Float[Tensor, "some labels"]:
    """Evidence of the whole set: sqrt(images) (r - CAUTION se) of relu(a - base); NaN for constant units.

    `read`: `Firing.plainly` leaves sqrt(images) r as it is.
    """
    dtype = reading.values.dtype
    parts = [read(Firing.above(block, base[at], dtype), reading) for at, block in blocks(acts)]
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


def cautious(
    r: Float[Tensor, "some labels"], spread: Float[Tensor, "some labels"], images: int
) -> Float[Tensor, "some labels"]:
    """sqrt(images) (r - CAUTION se), where se^2 = spread - r^2 / images and spread = sum x^2 y^2."""
    se = torch.addcmul(spread, r, r, value=-1 / images).clamp_(min=0).sqrt_()
    return se.mul_(-CAUTION).add_(r).mul_(math.sqrt(images))
