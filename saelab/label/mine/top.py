"""The images on which a unit is strongest."""

import torch
from jaxtyping import Float, Int
from torch import Tensor

from saelab.columns import Acts, Columns, blocks, columns, shape
from saelab.errors import UserError


def top_images(acts: Acts, k: int) -> tuple[Int[Tensor, "units k"], Float[Tensor, "units k"]]:
    """The k most activating images of each unit, strongest first; ties go to the lower image id.

    Zeros that a CSR does not store take part: they outrank negative activations. So a unit that fires on fewer than
    k images has zeros at the end of its row (`fires_on` counts how many are real). A unit with a NaN or infinite
    activation gets ids -1 and values NaN.

    Returns ids [units, k] int64 and values [units, k] float32 (float64 for float64 activations).
    Raises UserError if k is not between 1 and the number of images.
    """
    acts = columns(acts)
    images, units = shape(acts)
    if not 1 <= k <= images:
        raise UserError("k", k, f"expected 1 to the number of images ({images})", "lower k or mine more images")
    if isinstance(acts, Columns):
        return _top_sparse(acts, k)
    dtype = torch.float64 if acts.dtype == torch.float64 else torch.float32
    ids = torch.empty(units, k, dtype=torch.long, device=acts.device)
    values = torch.empty(units, k, dtype=dtype, device=acts.device)
    for block, part in blocks(acts, 1 << 22):
        ids[block], values[block] = _top_rows(part.T.to(dtype), k)
    return ids, values


def _top_rows(rows: Float[Tensor, "units images"], k: int) -> tuple[Tensor, Tensor]:
    """Top k of each row with ties to the lower index, which torch.topk alone does not promise."""
    bad = ~rows.isfinite().all(dim=1)
    rows = rows + 0.0  # -0.0 and 0.0 are a tie
    if rows.dtype == torch.float32:
        ids = _ordered_keys(rows).topk(k, dim=1).indices
    else:
        ids = rows.argsort(dim=1, descending=True, stable=True)[:, :k]
    values = rows.gather(1, ids)
    return ids.masked_fill_(bad[:, None], -1), values.masked_fill_(bad[:, None], torch.nan)


def _ordered_keys(rows: Float[Tensor, "units images"]) -> Int[Tensor, "units images"]:
    """One integer per entry that orders by value, then by lower index: float32 bits above, reversed index below."""
    bits = rows.contiguous().view(torch.int32)
    ordered = bits ^ ((bits >> 31) & 0x7FFFFFFF)  # two's complement order = numerical order
    index = torch.arange(rows.shape[1] - 1, -1, -1, device=rows.device)
    return (ordered.long() << 32) | index


def _top_sparse(acts: Columns, k: int) -> tuple[Tensor, Tensor]:
    """The same for CSC, unit blocks at a time: each row is only as wide as its unit's entries plus k zeros."""
    ids = torch.empty(acts.units, k, dtype=torch.long, device=acts.device)
    values = torch.empty(acts.units, k, dtype=acts.values.dtype, device=acts.device)
    order = acts.counts.argsort()  # units of like length share a block, so that little of it is padding
    widths = (acts.counts[order] + k).clamp(max=acts.images)
    first = 0
    while first < acts.units:
        step = max(1, (1 << 22) // int(widths[min(first + 4095, acts.units - 1)]))
        units = order[first : first + min(step, 4096)]
        ids[units], values[units] = _top_compact(acts.pick(units), k)
        first += len(units)
    return ids, values


def _top_compact(acts: Columns, k: int) -> tuple[Tensor, Tensor]:
    """Top k from rows that hold a unit's entries (in order of image id) and its first k unstored images."""
    place = torch.arange(len(acts.rows), device=acts.device) - acts.starts[:-1][acts.unit_of_entry]
    longest = int(acts.counts.max()) if acts.units else 0
    width = min(acts.images, longest + k)
    # Among the first longest + k images, at least k (or all there are) of a unit are zeros that it does not store.
    image = torch.arange(width, device=acts.device).expand(acts.units, width)
    stored = torch.zeros(acts.units, width, dtype=torch.bool, device=acts.device)
    near = acts.rows < width
    stored[acts.unit_of_entry[near], acts.rows[near]] = True
    rank = torch.where(stored, width, 0) + image  # unstored images first, each by id
    zero_ids = rank.topk(min(k, width), dim=1, largest=False, sorted=True).values
    absent = zero_ids >= width
    entry_ids = torch.full((acts.units, longest), acts.images, device=acts.device)
    entry_values = torch.full((acts.units, longest), -torch.inf, dtype=acts.values.dtype, device=acts.device)
    entry_ids[acts.unit_of_entry, place] = acts.rows
    entry_values[acts.unit_of_entry, place] = acts.values
    all_ids = torch.cat([entry_ids, zero_ids.masked_fill(absent, acts.images)], dim=1)
    zeros = torch.zeros(zero_ids.shape, dtype=acts.values.dtype, device=acts.device).masked_fill(absent, -torch.inf)
    by_id = all_ids.argsort(dim=1)
    padded = torch.cat([entry_values, zeros], dim=1).gather(1, by_id) + 0.0
    bad = acts.total(~acts.values.isfinite()) > 0
    if padded.dtype == torch.float32:
        chosen = _ordered_keys(padded).topk(k, dim=1).indices
    else:
        chosen = padded.argsort(dim=1, descending=True, stable=True)[:, :k]
    ids, values = all_ids.gather(1, by_id).gather(1, chosen), padded.gather(1, chosen)
    return ids.masked_fill_(bad[:, None], -1), values.masked_fill_(bad[:, None], torch.nan)
