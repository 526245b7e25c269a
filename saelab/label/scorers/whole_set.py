"""Scorers that correlate a unit's activations with each label's similarity over the whole image set."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from saelab.acts import Acts, Columns, blocks, part
from saelab.arrays import takes_arrays
from saelab.label.mine.status import column_means, extremes
from saelab.label.scorers.checks import similarities
from saelab.label.scorers.dissect import OIKARINEN
from saelab.label.scorers.evidence import Evidence
from saelab.label.scorers.frame import Block, Draw, Frame, once
from saelab.label.scorers.permuted import Best, best_of
from saelab.label.scorers.products import Scaled, Sims, side_by_side
from saelab.label.scorers.scorer import Moved, Rows, Scorer, fits

FLOOR = 1e-3  # CLIP-Dissect's least norm of a column


@takes_arrays
def cosine(
    acts: Acts, image_emb: Float[Tensor, "images d_text"], label_emb: Float[Tensor, "labels d_text"]
) -> Float[Tensor, "units labels"]:
    """CLIP-Dissect's `cos_similarity`: cosine of the raw columns of activations and similarities, not centred.

    Source: Oikarinen and Weng, ICLR 2023 (their norms are floored at 1e-3). NaN for units that are not finite.
    """
    return cosine_rows(*similarities(acts, image_emb, label_emb))(slice(None))


@takes_arrays
def pearson(
    acts: Acts, image_emb: Float[Tensor, "images d_text"], label_emb: Float[Tensor, "labels d_text"]
) -> Float[Tensor, "units labels"]:
    """Pearson correlation over images of a unit's activations with its similarity to each label; NaN if constant."""
    return pearson_rows(*similarities(acts, image_emb, label_emb))(slice(None))


@takes_arrays
def cos_cubed(
    acts: Acts, image_emb: Float[Tensor, "images d_text"], label_emb: Float[Tensor, "labels d_text"]
) -> Float[Tensor, "units labels"]:
    """CLIP-Dissect's `cos_similarity_cubed`: cosine of the cubes of the centred columns.

    Source: Oikarinen and Weng, ICLR 2023. Columns are divided by at least 1e-3, as theirs are, so that scores of
    labels of very low spread are damped (`floored_labels` counts them). NaN for units that are constant or not finite.
    """
    return cos_cubed_rows(*similarities(acts, image_emb, label_emb))(slice(None))


def floored_labels(sims: Float[Tensor, "images labels"]) -> int:
    """How many labels have so little spread over the images that cos-cubed's floor of 1e-3 damps their scores."""
    return int((((sims - sims.mean(dim=0)) ** 3).norm(dim=0) < FLOOR).sum())


def cosine_rows(acts: Acts, sims: Float[Tensor, "images labels"]) -> Callable[[slice], Tensor]:
    """`cosine` for a slice of units at a time, given the similarities."""
    right = sims / sims.norm(dim=0).clamp(min=FLOOR)

    def rows(units: slice) -> Float[Tensor, "some labels"]:
        return torch.cat([powers.against(right) for powers in _powers(part(acts, units), None, 1, FLOOR, right.dtype)])

    return rows


def pearson_rows(acts: Acts, sims: Sims) -> Callable[[slice], Tensor]:
    """`pearson` for a slice of units at a time, given the similarities."""
    return _rows(acts, standardised(sims), 0.0)


def cos_cubed_rows(acts: Acts, sims: Sims) -> Callable[[slice], Tensor]:
    """`cos_cubed` for a slice of units at a time, given the similarities."""
    return _rows(acts, cubed(sims), FLOOR)


def standardised(sims: Sims) -> Scaled:
    """Columns centred and scaled to unit length; NaN for a label that is equally like every image."""
    return Scaled.of(sims, 1, lambda length, offset: length.masked_fill(length <= 1e-6 * offset, torch.nan))


def cubed(sims: Sims) -> Scaled:
    """Cubes of the centred columns over their norm, floored at 1e-3."""
    return Scaled.of(sims, 3, lambda length, offset: length.clamp(min=FLOOR))


def _rows(acts: Acts, right: Scaled, floor: float) -> Callable[[slice], Tensor]:
    """Cosines of the centred activations, to the power of `right`, with its columns; constants get NaN."""
    centres, parts = column_means(acts), right.parts()
    whole = right.some() if len(parts) == 1 else None  # kept from one slice of units to the next

    def rows(units: slice) -> Float[Tensor, "some labels"]:
        some, found = part(acts, units), []
        powers = partial(_powers, some, centres[units], right.power, floor, right.mean.dtype)
        kept = list(powers()) if isinstance(some, Columns) else None  # sparse entries are few: for all parts
        for labels in parts:
            own = right.some(labels) if whole is None else whole
            sums = _sums(acts, right, labels)
            found.append(torch.cat([each.against(own, sums) for each in kept or powers()]))
        return side_by_side(found)

    return rows


def _sums(acts: Acts, right: Scaled, labels: slice) -> Float[Tensor, "some"] | None:
    """What `Powers.against` asks for where units are sparse; dense ones don't need it."""
    return right.sums[labels] if isinstance(acts, Columns) else None


def _powers(
    acts: Acts, centres: Float[Tensor, "units"] | None, power: int, floor: float, dtype: torch.dtype
) -> Iterator["Powers"]:
    """Of all units: at once where they are sparse, else a block at a time."""
    for at, block in [(slice(None), acts)] if isinstance(acts, Columns) else blocks(acts):
        yield Powers.of(block, None if centres is None else centres[at], power, floor, dtype)


@dataclass(frozen=True)
class Powers:
    """Columns (a - centre) ** power over their norm, ready to meet columns of labels.

    Every unstored image of a sparse unit has the same entry z = (-centre) ** power, so a product is the sum over stored
    images of (entry - z) x right plus z times the column sums of `right`, which cubing leaves far from zero.
    """

    entries: Float[Tensor, "some images"]  # dense or CSR
    unstored: Float[Tensor, "some 1"] | None
    constant: Bool[Tensor, "some"]  # units without a direction once centred

    @classmethod
    def of(
        cls, acts: Acts, centres: Float[Tensor, "some"] | None, power: int, floor: float, dtype: torch.dtype
    ) -> "Powers":
        """`centres`: subtracted before the power is taken; None leaves activations, and constant units, as they are."""
        low, high = extremes(acts)
        middle = torch.zeros_like(low, dtype=torch.float64) if centres is None else centres
        constant = torch.zeros_like(low, dtype=torch.bool) if centres is None else low == high
        if not isinstance(acts, Columns):
            entries = (acts - middle).to(dtype).pow_(power)
            return cls(entries.div_(entries.norm(dim=0).clamp(min=floor)).T, None, constant)
        owner, beyond = acts.unit_of_entry, acts.images - acts.counts
        stored = (acts.values - middle[owner]) ** power
        unstored = torch.where(beyond > 0, (-middle) ** power, 0.0)
        norms = (acts.total(stored**2) + beyond * unstored**2).sqrt().clamp(min=floor)
        entries = acts.transposed((stored - unstored[owner]) / norms[owner], dtype)
        return cls(entries, (unstored / norms).to(dtype)[:, None], constant)

    def against(
        self, right: Float[Tensor, "images labels"], sums: Float[Tensor, "labels"] | None = None
    ) -> Float[Tensor, "some labels"]:
        """The products; NaN for constant units. `sums`: of the columns, where they are known."""
        return self.products(right, sums).masked_fill_(self.constant[:, None], torch.nan)

    def products(
        self, right: Float[Tensor, "images labels"], sums: Float[Tensor, "labels"] | None = None
    ) -> Float[Tensor, "some labels"]:
        """As `against`, with any numbers for constant units: for whoever marks them later, in less than the matrix."""
        scores = self.entries @ right
        if self.unstored is not None:
            scores += self.unstored * (right.sum(dim=0, dtype=torch.float64).to(right.dtype) if sums is None else sums)
        return scores


def correlated(frame: Frame, right: Scaled, floor: float) -> Best:
    """Pearson and its cube under permutation: one product a draw, over the ranks above units' lowest."""
    means, dtype = column_means(frame.evidence.acts), right.mean.dtype
    longest = max((block.sorted.shape[1] for block in frame.blocks), default=0)
    together = len(right.parts(longest)) == 1
    state: dict[int, tuple[Tensor, Tensor]] = {}
    permuted = once(lambda draw: right.some(slice(None), draw.order[:longest]))

    def entries(block: Block) -> tuple[Tensor, Tensor]:
        centres = means[block.units, None]
        high, low = (block.sorted - centres) ** right.power, (block.lowest[:, None] - centres) ** right.power
        beyond = frame.images - block.sorted.shape[1]
        norm = ((high**2).sum(dim=1, keepdim=True) + beyond * low**2).sqrt().clamp(min=floor)
        constant = block.sorted[:, 0] == block.lowest
        low = low.masked_fill(constant[:, None], torch.nan)
        return ((high - low) / norm).to(dtype), (low / norm).to(dtype)

    def best(draw: Draw, block: Block) -> Tensor:
        if id(block) not in state:
            state[id(block)] = entries(block)
        high, low = state[id(block)]
        ranks, found = high.shape[1], []
        for labels in [slice(None)] if together else right.parts(ranks):
            seen = permuted(draw)[:ranks] if together else right.some(labels, draw.order[:ranks])
            found.append(torch.addmm(low * right.sums[labels], high, seen))
        return best_of(side_by_side(found))

    return best


def _moved(right_of: Callable[[Sims], Scaled], power: int, floor: float) -> Callable[[Evidence], Moved | None]:
    """Pearson and its cube where series move: the units' columns stay, and are prepared once for all moves."""

    def start(e: Evidence) -> Moved | None:
        if not fits(e):
            return None
        columns = Powers.of(e.acts, column_means(e.acts), power, floor, e.looked_at.dtype)

        def best(seen: Evidence) -> Tensor:
            right = right_of(seen.looked_at)
            parts = [columns.products(right.some(labels), _sums(e.acts, right, labels)) for labels in right.parts()]
            return best_of(side_by_side(parts)).masked_fill_(columns.constant, torch.nan)

        return best

    return start


def _of(rows_of: Callable[[Acts, Sims], Rows]) -> Callable[[Evidence], Rows]:
    return lambda e: rows_of(e.acts, e.looked_at)


SCORERS = (
    Scorer(
        "pearson",
        "images",
        "Pearson",
        "Correlation of activation and image-label similarity over all images.",
        _of(pearson_rows),
        lambda scorer, frame: correlated(frame, standardised(frame.evidence.looked_at), 0.0),
        source="docs/scorers.md",
        by_parts=True,
        alone=True,
        moved=_moved(standardised, 1, 0.0),
    ),
    Scorer(
        "cos_cubed",
        "images",
        "cos-cubed",
        "Cosine of cubed activations and cubed similarities over all images.",
        _of(cos_cubed_rows),
        lambda scorer, frame: correlated(frame, cubed(frame.evidence.looked_at), FLOOR),
        OIKARINEN,
        by_parts=True,
        alone=True,
        moved=_moved(cubed, 3, FLOOR),
    ),
)
