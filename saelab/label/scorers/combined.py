"""saelab's own scorer: what a unit does over all images and what sets its positives apart, in one currency.

Both kinds of evidence are counted in standard deviations under chance (the unit's activations dealt out to the images
at random), so that they can be added: many images make the whole set speak louder, few leave the word to the pairs.
docs/scorers.md derives the parts, says what was chosen on what data, and shows where other scorers are better.
"""

import math
from collections.abc import Callable

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from saelab.acts import Acts, Columns, part, shape
from saelab.arrays import takes_arrays
from saelab.errors import UserError
from saelab.label.mine import column_means
from saelab.label.scorers import memberships
from saelab.label.scorers.checks import similarities
from saelab.label.scorers.evidence import Evidence
from saelab.label.scorers.frame import Block, Draw, Frame, once
from saelab.label.scorers.permuted import Best, best_of, where_ranked
from saelab.label.scorers.products import Sims, side_by_side
from saelab.label.scorers.scorer import Moved, Null, Rows, Scorer, fits

Read = Callable[[memberships.Firing, memberships.Reading], Tensor]  # how firing and a reading meet: a method of Firing
Whole = Callable[[memberships.Reading, Read], Float[Tensor, "some labels"]]  # evidence of the whole set, so read


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

    positive_ids, contrast_ids: from `mine.mine_pairs`, -1 where there is none. valid:
    False leaves a pair out; a unit without a pair is scored by the whole set alone. NaN for units that are constant
    or not finite, and for labels equally like every image. A label's score depends on the vocabulary (competition,
    discount) but not on the other units; neither a unit's scale nor an offset matters.
    Raises UserError where sizes do not fit.
    """
    acts, sims = similarities(acts, image_emb, label_emb)
    return contrast_evidence_rows(acts, sims, positive_ids, contrast_ids, valid)(slice(None))


def contrast_evidence_rows(
    acts: Acts,
    sims: Sims,
    positive_ids: Int[Tensor, "units k"],
    contrast_ids: Int[Tensor, "units k"],
    valid: Bool[Tensor, "units k"] | None = None,
    summed: bool = False,
) -> Rows:
    """`contrast_evidence`, or `summed_evidence`, for a slice of units at a time, given the similarities."""
    _check(acts, positive_ids, contrast_ids, valid)
    there = (positive_ids >= 0) & (contrast_ids >= 0)
    there = there if valid is None else there & valid
    bases = memberships.baselines(acts)

    def whole_of(units: slice) -> Whole:
        some = part(acts, units)
        if not isinstance(some, Columns):
            return lambda reading, read: memberships.whole(some, bases[reading.clear][units], reading, read)
        dtype = sims.dtype  # sparse entries are few: kept for all parts of the labels
        fires = {clear: memberships.Firing.above(some, base[units], dtype) for clear, base in bases.items()}
        return lambda reading, read: read(fires[reading.clear], reading)

    return _rows(sims, positive_ids, contrast_ids, there, whole_of, summed)


@takes_arrays
def summed_evidence(
    acts: Acts,
    image_emb: Float[Tensor, "images d_text"],
    label_emb: Float[Tensor, "labels d_text"],
    positive_ids: Int[Tensor, "units k"],
    contrast_ids: Int[Tensor, "units k"],
    valid: Bool[Tensor, "units k"] | None = None,
) -> Float[Tensor, "units labels"]:
    """`contrast_evidence` plus sqrt(images) times `pearson`: for broad words among many that no image shows.

    Both count standard deviations under chance. Contrasts that show a broad label too take the evidence for it away,
    and leave narrow labels that no image shows; the correlation by itself, undiscounted, does not. docs/scorers.md
    measures both sides ("Could the photos choose?"). Parameters, NaN and errors are `contrast_evidence`'s.
    """
    acts, sims = similarities(acts, image_emb, label_emb)
    return contrast_evidence_rows(acts, sims, positive_ids, contrast_ids, valid, summed=True)(slice(None))


def _rows(
    sims: Sims,
    positive_ids: Tensor,
    contrast_ids: Tensor,
    there: Tensor,
    whole_of: Callable[[slice], Whole],
    summed: bool,
) -> Rows:
    """Scores of a slice of units, given what tells its evidence of the whole set for a reading."""
    seen = memberships.Memberships(sims)
    worth, parts = memberships.discount(seen.spread), seen.parts(len(sims))
    whole = _read(seen) if len(parts) == 1 else None  # kept from one slice of units to the next

    def rows(units: slice) -> Float[Tensor, "some labels"]:
        against, found = whole_of(units), []
        for labels in parts:
            z = whole[0] if whole else seen.z(labels)
            total = memberships.paired(z, positive_ids[units], contrast_ids[units], there[units])
            plain = None
            for reading in whole[1] if whole else seen.readings(z, labels):
                total.add_(against(reading, memberships.Firing.against), alpha=reading.weight)
                if summed and not reading.clear:  # of the activation and the similarity, as they are
                    plain = against(reading, memberships.Firing.plainly)
            total = memberships.discounted(total, worth[labels])
            total = total if plain is None else total.add_(plain)
            found.append(total.masked_fill_(seen.constant[labels], torch.nan))
        return side_by_side(found)

    return rows


def _read(seen: memberships.Memberships) -> tuple[Tensor, list[memberships.Reading]]:
    z = seen.z()
    return z, list(seen.readings(z))


def _check(acts: Acts, positive_ids: Tensor, contrast_ids: Tensor, valid: Tensor | None) -> None:
    units = shape(acts)[1]
    if positive_ids.ndim != 2 or len(positive_ids) != units:
        raise UserError("positive_ids", tuple(positive_ids.shape), f"expected [units, k] for {units} units")
    for name, tensor in (("contrast_ids", contrast_ids), ("valid", valid)):
        if tensor is not None and tensor.shape != positive_ids.shape:
            raise UserError(name, tuple(tensor.shape), f"expected [units, k] = {tuple(positive_ids.shape)}")


def permuted_evidence(summed: bool) -> Null:
    """The null of `contrast_evidence`, or of `summed_evidence`."""
    return where_ranked(lambda scorer, frame: _permuted(frame, summed))


def _permuted(frame: Frame, summed: bool) -> Best:
    """Best evidence under permutation, from ranks, for all units at once.

    Ranks beyond those at which a unit is above its lowest all hold the same entry, so only the ranks before them meet
    the labels.
    """
    e = frame.evidence
    seen, means, bases = memberships.Memberships(e.looked_at), column_means(e.acts), memberships.baselines(e.acts)
    worth, longest = memberships.discount(seen.spread), max((b.sorted.shape[1] for b in frame.blocks), default=0)
    together, (_, column) = len(seen.parts(longest)) == 1, frame.ranges
    entries: dict[int, dict[bool, tuple[Tensor, ...]]] = {}

    @once
    def pairs(draw: Draw) -> tuple[Tensor, ...]:
        """Positives, each one's contrasts by runs of ranks, as places among the distinct images of both."""
        positives = draw.order[: frame.k]
        found = draw.contrasts(positives)
        distinct, place = torch.cat([positives[:, None], found], dim=1).unique(return_inverse=True)
        return place[:, :1], place[:, 1:], found >= 0, distinct.clamp(min=0)

    def permuted(draw: Draw, ranks: int, labels: slice = slice(None)) -> list[memberships.Reading]:
        """The readings of the images on the first ranks."""
        first = draw.order[:ranks]
        return list(seen.readings(seen.z(labels, first), labels, first))

    shown = once(lambda draw: seen.z(slice(None), pairs(draw)[3]))  # of the pairs' images
    whole = once(lambda draw: permuted(draw, longest))

    def paired(draw: Draw, block: Block, firing: Tensor, z: Tensor) -> Tensor:
        """`memberships.paired` as one product: the units share their positives and most of their contrasts."""
        positive, contrast, there, _ = pairs(draw)
        runs = column[block.units]
        valid = (firing & there[:, runs].T).to(z.dtype)
        weight = valid / (2 * valid.sum(dim=1, keepdim=True).clamp(min=1)).sqrt()
        places = torch.cat([positive.T.expand(len(runs), -1), contrast[:, runs].T], dim=1)
        return z.new_zeros(len(runs), len(z)).scatter_add_(1, places, torch.cat([weight, -weight], dim=1)) @ z

    def best(draw: Draw, block: Block) -> Tensor:
        if id(block) not in entries:
            entries[id(block)] = {clear: _entries(block, base[block.units], frame) for clear, base in bases.items()}
        firing, found = _firing(block, means[block.units], frame), []
        beyond = block.sorted.shape[1]  # ranks at which none of the block's units is above its lowest
        for labels in [slice(None)] if together else seen.parts(beyond):
            total, plain = paired(draw, block, firing, shown(draw)[:, labels]), None
            for reading in whole(draw) if together else permuted(draw, beyond, labels):
                high, squared, common = entries[id(block)][reading.clear]
                ranks = high.shape[1]
                r = high @ reading.values[:ranks]
                within = torch.addmm(common[:, None], squared, reading.squares[:ranks])
                total.add_(memberships.cautious(r, within, frame.images), alpha=reading.weight)
                if summed and not reading.clear:  # of the activation and the similarity, as they are
                    plain = r.mul_(math.sqrt(frame.images))
            total = memberships.discounted(total, worth[labels])
            total = total if plain is None else total.add_(plain)
            found.append(total.masked_fill_(seen.constant[labels], torch.nan))
        return best_of(side_by_side(found))

    return best


def _entries(block: Block, base: Tensor, frame: Frame) -> tuple[Tensor, ...]:
    """By rank: entries of r and of its spread beyond what every image has, and that common part."""
    beyond = frame.images - block.sorted.shape[1]
    fires = (block.sorted - base[:, None]).clamp(min=0)
    rest = (block.lowest - base).clamp(min=0)[:, None]
    centre = (fires.sum(dim=1, keepdim=True) + beyond * rest) / frame.images
    norm2 = (fires - centre).square().sum(dim=1, keepdim=True) + beyond * (rest - centre).square()
    norm2 = norm2.masked_fill(norm2 == 0, torch.nan)
    common = (rest - centre).square() / norm2
    squared = (fires - centre).square() / norm2 - common
    dtype = frame.evidence.looked_at.dtype
    return ((fires - rest) / norm2.sqrt()).to(dtype), squared.to(dtype), common[:, 0].to(dtype)


def _firing(block: Block, means: Tensor, frame: Frame) -> Tensor:
    """Which of a unit's first k images are positives above its mean: [some, k]."""
    firing = torch.zeros(len(block.units), frame.k, dtype=torch.bool, device=block.sorted.device)
    width = min(frame.k, block.sorted.shape[1])
    firing[:, :width] = block.sorted[:, :width] > means[:, None]
    return firing & (torch.arange(frame.k, device=firing.device) < frame.fires[block.units, None])


def _start(summed: bool) -> Callable[[Evidence], Rows]:
    def start(e: Evidence) -> Rows:
        there = e.valid & _above_mean(e)
        return contrast_evidence_rows(e.acts, e.looked_at, e.positive_ids, e.contrast_ids, there, summed)

    return start


def _above_mean(e: Evidence) -> Bool[Tensor, "units k"]:
    """Which positives are above their unit's mean: one below is no evidence of firing."""
    return e.positive_values > column_means(e.acts)[:, None]


def _moved(summed: bool) -> Callable[[Evidence], Moved | None]:
    """Evidence where series move: what the units do stays, and is prepared once for all moves."""

    def start(e: Evidence) -> Moved | None:
        if not fits(e):
            return None
        dtype, firing = e.looked_at.dtype, _above_mean(e)
        bases = memberships.baselines(e.acts)
        fires = {clear: memberships.Firing.above(e.acts, base, dtype) for clear, base in bases.items()}

        def whole_of(units: slice) -> Whole:
            return lambda reading, read: read(fires[reading.clear], reading)

        def best(seen: Evidence) -> Tensor:
            there = seen.valid & firing
            rows = _rows(seen.looked_at, seen.positive_ids, seen.contrast_ids, there, whole_of, summed)
            return best_of(rows(slice(None)))

        return best

    return start


SCORERS = (
    Scorer(
        "contrast_evidence",
        "pairs",
        "Contrast evidence",
        "saelab's own: correlation with the label over all images, graded and in competition with other labels, plus "
        "what the strong images have over their look-alike contrasts.",
        _start(summed=False),
        permuted_evidence(summed=False),
        source="docs/scorers.md",
        by_parts=True,
        moved=_moved(summed=False),
    ),
    Scorer(
        "summed_evidence",
        "pairs",
        "Contrast evidence + Pearson",
        "saelab's own, for broad words among many that no image shows: contrast evidence plus Pearson's correlation, "
        "both in standard deviations under chance.",
        _start(summed=True),
        permuted_evidence(summed=True),
        source="docs/scorers.md",
        by_parts=True,
        moved=_moved(summed=True),
    ),
)
