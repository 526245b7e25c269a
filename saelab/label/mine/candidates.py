"""Which images may be contrasts of a unit: those whose activation lies in an interval."""

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from saelab.acts import Acts, Columns, blocks, columns, part, runs
from saelab.label.mine.status import column_means

ENTRIES = 1 << 22  # stored entries looked at together


@dataclass(frozen=True)
class Interval:
    """Which activations make an image a candidate: low <= activation <= high, for each unit (empty: low > high)."""

    low: Float[Tensor, "units"]
    high: Float[Tensor, "units"]


def candidate_interval(acts: Acts, rule: str, quantile: float = 0.5) -> Interval:
    """The activations that make an image a candidate under `rule` (see `contrast_images`), exact in acts' own dtype."""
    acts = columns(acts)
    dtype = acts.values.dtype if isinstance(acts, Columns) else acts.dtype
    means = column_means(acts)
    if rule == "zero":
        zero = torch.zeros_like(means, dtype=dtype)
        return Interval(zero, torch.where(means.isfinite(), zero, torch.nan))
    if rule == "below_quantile":
        parts = [torch.minimum(_quantile(block, quantile), _next_below(block.amax(dim=0))) for _, block in blocks(acts)]
        high = torch.cat(parts)
    else:
        high = means.to(dtype)
        high = torch.where(high.double() < means, high, _next_below(high))  # the largest number below the mean
    return Interval(torch.full_like(high, -torch.inf), torch.where(means.isfinite(), high, torch.nan))


class Candidates:
    """The candidates of some units, all but the units' images `apart`: asked for by pairs, or written out by rows.

    Of sparse units the stored entries are kept (all other images of a unit are candidates, or none is); of dense ones
    a bool for each image and unit.
    """

    def __init__(
        self, acts: Acts, interval: Interval, units: slice = slice(None), apart: Int[Tensor, "some k"] | None = None
    ) -> None:
        some = part(columns(acts), units)
        low, high = interval.low[units], interval.high[units]
        self._sparse = isinstance(some, Columns)
        if isinstance(some, Columns):
            self._images, self._rest = some.images, (low <= 0) & (high >= 0)
            self._allowed, self._code = _entries(some, low, high)
            if bool((self._code[1:] < self._code[:-1]).any()):
                self._code, order = self._code.sort()
                self._allowed = self._allowed[order]
        else:
            self._images = len(some)
            self._mask = _mask(some, low, high)
        if apart is not None:
            self._leave_out(apart)

    def of(self, unit: Int[Tensor, "..."], image: Int[Tensor, "..."]) -> Bool[Tensor, "..."]:
        """Is the image a candidate of the unit? Units are counted from the first of the run."""
        if not self._sparse:
            return self._mask[unit, image]
        key = (unit * self._images + image).contiguous()
        if not len(self._code):
            return self._rest[unit].expand(key.shape)
        place = torch.searchsorted(self._code, key).clamp_(max=len(self._code) - 1)
        return torch.where(self._code[place] == key, self._allowed[place], self._rest[unit])

    def rows(self, units: Int[Tensor, "n"]) -> Bool[Tensor, "n images"]:
        """The candidates of these units, written out."""
        if not self._sparse:
            return self._mask[units]
        out = self._rest[units][:, None].repeat(1, self._images)
        first, last = (torch.searchsorted(self._code, (units + more) * self._images) for more in (0, 1))
        row = torch.arange(len(units), device=out.device).repeat_interleave(last - first)
        shift = (first - (last - first).cumsum(0) + (last - first))[row]
        entry = torch.arange(len(row), device=out.device) + shift
        out[row, self._code[entry] - units[row] * self._images] = self._allowed[entry]
        return out

    def _leave_out(self, ids: Int[Tensor, "some k"]) -> None:
        """Strike these images (-1: none); those that fire a unit are among its stored entries."""
        unit, place = (ids >= 0).nonzero(as_tuple=True)
        if not self._sparse:
            self._mask[unit, ids[unit, place]] = False
        elif len(self._code):
            key = unit * self._images + ids[unit, place]
            entry = torch.searchsorted(self._code, key).clamp_(max=len(self._code) - 1)
            self._allowed[entry[self._code[entry] == key]] = False


def _entries(acts: Columns, low: Tensor, high: Tensor) -> tuple[Bool[Tensor, "entries"], Int[Tensor, "entries"]]:
    """Which stored entries lie in their unit's interval, and unit x images + image of each."""
    allowed, code = torch.empty_like(acts.rows, dtype=torch.bool), torch.empty_like(acts.rows)
    for units in runs(acts, ENTRIES):
        some, entries = acts.part(units.start, units.stop), slice(*acts.starts[[units.start, units.stop]].tolist())
        owner = some.unit_of_entry.add_(units.start)
        allowed[entries] = (some.values >= low[owner]) & (some.values <= high[owner])
        code[entries] = owner.mul_(acts.images).add_(some.rows)
    return allowed, code


def _mask(acts: Float[Tensor, "images some"], low: Tensor, high: Tensor) -> Bool[Tensor, "some images"]:
    mask = torch.empty(acts.shape[1], acts.shape[0], dtype=torch.bool, device=acts.device)
    # Some images at a time: what is compared lies together, and is still in the cache when it is turned.
    step = max(256, (1 << 18) // max(acts.shape[1], 1))
    for first in range(0, len(acts), step):
        images = slice(first, first + step)
        mask[:, images] = ((acts[images] >= low) & (acts[images] <= high)).T
    return mask


def _next_below(values: Tensor) -> Tensor:
    return torch.nextafter(values, torch.full_like(values, -torch.inf))


def _quantile(block: Float[Tensor, "images some"], q: float) -> Float[Tensor, "some"]:
    """The smallest activation that at least the share q of the images do not exceed (no interpolation)."""
    place = max(1, -int(-q * block.shape[0] // 1))
    return block.kthvalue(min(place, block.shape[0]), dim=0).values
