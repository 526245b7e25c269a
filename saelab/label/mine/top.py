"""The images on which a unit is strongest."""

import torch
from jaxtyping import Float, Int
from torch import Tensor

from saelab.acts import Acts, Columns, blocks, columns, shape
from saelab.errors import UserError
from saelab.label.mine.rows import finite_rows, in_order, largest
from saelab.label.mine.status import firing_threshold


def top_images(acts: Acts, k: int) -> tuple[Int[Tensor, "units k"], Float[Tensor, "units k"]]:
    """The k most activating images of each unit, strongest first; ties go to the lower image id.

    Zeros that a CSR does not store take part: they outrank negative activations. So a unit that fires on fewer than
    k images has silent images at the end of its row; `positive_images` leaves them out. A unit with a NaN or infinite
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
    dtype = _dtype(acts)
    ids = torch.empty(units, k, dtype=torch.long, device=acts.device)
    values = torch.empty(units, k, dtype=dtype, device=acts.device)
    for block, part in blocks(acts, 1 << 22):
        ids[block], values[block] = _top_rows((part.to(dtype) + 0.0).T.contiguous(), k)  # -0.0 and 0.0 are a tie
    return ids, values


def positive_images(acts: Acts, k: int) -> tuple[Int[Tensor, "units k"], Float[Tensor, "units k"]]:
    """The k most activating of the images that fire each unit (`firing_threshold`); ties go to the lower image id.

    A unit that fires on fewer than k images has ids -1 and values 0 at the end of its row; a unit with a NaN or
    infinite activation ids -1 and values NaN. Otherwise as `top_images`.
    """
    acts = columns(acts)
    ids, values = top_images(acts, k)
    silent = values <= firing_threshold(acts).to(values.dtype)[:, None]
    return ids.masked_fill(silent, -1), values.masked_fill(silent, 0.0)


def _dtype(values: Tensor) -> torch.dtype:
    return torch.float64 if values.dtype == torch.float64 else torch.float32


def _top_rows(rows: Float[Tensor, "units images"], k: int) -> tuple[Tensor, Tensor]:
    """Top k of each row with ties to the lower index; ids -1 and values NaN for rows that are not finite."""
    bad = ~finite_rows(rows)
    values, ids = largest(rows, min(k + 1, rows.shape[1]))
    if k < rows.shape[1]:
        open_ends = (values[:, k - 1] == values[:, k]).nonzero()[:, 0]  # a lower index may have been left out
        values, ids = values[:, :k], ids[:, :k].clone()
        ids[open_ends] = _exact_top(rows[open_ends], k)
    return ids.masked_fill_(bad[:, None], -1), values.masked_fill(bad[:, None], torch.nan)


def _exact_top(rows: Float[Tensor, "units images"], k: int) -> Int[Tensor, "units k"]:
    """Where the top k of each row are, ties to the lower index."""
    if rows.dtype == torch.float32:
        return _ordered_keys(rows).topk(k, dim=1).indices
    return rows.argsort(dim=1, descending=True, stable=True)[:, :k]


def _ordered_keys(rows: Float[Tensor, "units images"]) -> Int[Tensor, "units images"]:
    """One integer per entry that orders by value, then by lower index: float32 bits above, reversed index below."""
    bits = rows.contiguous().view(torch.int32)
    ordered = bits ^ ((bits >> 31) & 0x7FFFFFFF)  # two's complement order = numerical order
    index = torch.arange(rows.shape[1] - 1, -1, -1, device=rows.device)
    return (ordered.long() << 32) | index


def _top_sparse(acts: Columns, k: int) -> tuple[Tensor, Tensor]:
    """The same for CSC, unit blocks at a time: each row is only as wide as its block's longest unit."""
    ids = torch.arange(k, device=acts.device).repeat(acts.units, 1)
    values = torch.zeros(acts.units, k, dtype=_dtype(acts.values), device=acts.device)
    if not len(acts.values):
        return ids, values
    order = acts.counts.argsort()  # units of like length share a block, so that little of it is padding
    widths = acts.counts[order].clamp(min=k)
    first = 0
    while first < acts.units:
        step = max(1, (1 << 22) // int(widths[min(first + 4095, acts.units - 1)]))
        units = order[first : first + min(step, 4096)]
        ids[units], values[units] = _top_entries(acts, units, k)
        first += len(units)
    return ids, values


def _top_entries(acts: Columns, units: Int[Tensor, "some"], k: int) -> tuple[Tensor, Tensor]:
    """Top k of some units: of their stored entries, and of their zeros too where those reach the top."""
    counts, starts = acts.counts[units, None], acts.starts[:-1][units, None]
    dtype = _dtype(acts.values)
    place = torch.arange(max(int(counts.max()), k), device=acts.device)
    entries = acts.values[(starts + place).clamp(max=len(acts.values) - 1)].to(dtype) + 0.0
    # Padding stands behind a unit's entries (which lie in order of image id), so that it loses every tie.
    place, values = _top_rows(entries.masked_fill_(place >= counts, torch.finfo(dtype).min), k)
    bad, absent = place[:, 0] < 0, place >= counts
    ids = acts.rows[(starts + place).clamp(0, len(acts.values) - 1)]
    ids, values = ids.masked_fill_(absent, acts.images), values.masked_fill_(absent, -torch.inf)
    short = (values[:, -1] <= 0).nonzero()[:, 0]
    zero_ids = _first_zeros(acts.pick(units[short]), k)
    zeros = torch.zeros_like(values[short]).masked_fill_(zero_ids == acts.images, -torch.inf)
    both = in_order(torch.cat([values[short], zeros], dim=1), torch.cat([ids[short], zero_ids], dim=1))
    values[short], ids[short] = both[0][:, :k], both[1][:, :k]
    return ids.masked_fill_(bad[:, None], -1), values.masked_fill_(bad[:, None], torch.nan)


def _first_zeros(acts: Columns, k: int) -> Int[Tensor, "units k"]:
    """The first k images that a unit does not store; beyond the last such image, the number of images."""
    longest = int(acts.counts.max()) if acts.units else 0
    width = min(acts.images, longest + k)  # so many images hold at least k that are not stored, or all there are
    ids = torch.arange(width, device=acts.device).repeat(acts.units, 1)
    near = acts.rows < width
    ids[acts.unit_of_entry[near], acts.rows[near]] = acts.images
    return ids.topk(k, dim=1, largest=False).values
