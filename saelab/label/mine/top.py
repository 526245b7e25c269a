"""The images on which a unit is strongest."""

import torch
from jaxtyping import Float, Int
from torch import Tensor

from saelab.acts import Acts, Columns, blocks, columns, shape
from saelab.errors import UserError
from saelab.label.mine.rows import finite_rows, largest
from saelab.label.mine.status import firing_threshold
from saelab.settings import check_types

LAST = (1 << 32) - 1  # of the numbers by which ties are broken


def top_images(
    acts: Acts, k: int, ties: Int[Tensor, "images"] | None = None
) -> tuple[Int[Tensor, "units k"], Float[Tensor, "units k"]]:
    """The k most activating images of each unit, strongest first.

    Equal activations above 0 go in an order that says nothing of the images (a hash of their ids and of those at the
    unit's largest activation): ids follow folders, so that a unit that saturates, at ReLU6's 6 or a tag's 1, would
    otherwise show the first folder. `ties` gives another order: lower numbers first. Among silent images, and among
    those at the unit's lowest activation, the lower id goes first.

    Zeros that a CSR does not store take part: they outrank negative activations. So a unit that fires on fewer than
    k images has silent images at the end of its row; `positive_images` leaves them out. A unit with a NaN or infinite
    activation gets ids -1 and values NaN.

    Returns ids [units, k] int64 and values [units, k] float32 (float64 for float64 activations).
    Raises UserError if k is not between 1 and the number of images.
    """
    acts = columns(acts)
    images, units = shape(acts)
    check_types({"k": k}, {"k": int})
    if not 1 <= k <= images:
        raise UserError("k", k, f"expected 1 to the number of images ({images})", "lower k or mine more images")
    if isinstance(acts, Columns):
        return _top_sparse(acts, k, ties)
    dtype = _dtype(acts)
    ids = torch.empty(units, k, dtype=torch.long, device=acts.device)
    values = torch.empty(units, k, dtype=dtype, device=acts.device)
    for block, part in blocks(acts, 1 << 22):
        rows = (part.to(dtype) + 0.0).T.contiguous()  # -0.0 and 0.0 are a tie
        ids[block], values[block] = _top_rows(rows, k, rows.amin(1).clamp(min=0), ties=ties)
    return ids, values


def positive_images(
    acts: Acts, k: int, ties: Int[Tensor, "images"] | None = None
) -> tuple[Int[Tensor, "units k"], Float[Tensor, "units k"]]:
    """The k most activating of the images that fire each unit (`firing_threshold`).

    A unit that fires on fewer than k images has ids -1 and values 0 at the end of its row; a unit with a NaN or
    infinite activation ids -1 and values NaN. Otherwise as `top_images`.
    """
    acts = columns(acts)
    ids, values = top_images(acts, k, ties)
    silent = values <= firing_threshold(acts).to(values.dtype)[:, None]
    return ids.masked_fill(silent, -1), values.masked_fill(silent, 0.0)


def _dtype(values: Tensor) -> torch.dtype:
    return torch.float64 if values.dtype == torch.float64 else torch.float32


def _top_rows(
    rows: Float[Tensor, "units n"],
    k: int,
    least: Float[Tensor, "units"],
    ids: Int[Tensor, "units n"] | None = None,
    ties: Int[Tensor, "images"] | None = None,
) -> tuple[Tensor, Tensor]:
    """Places of the top k of each row, and values; places -1 and values NaN for rows that are not finite.

    `ids`: the images that the places stand for, in rising order (by default the places themselves). Of equal numbers
    above `least` the one whose `_turn` comes first goes first, of others the lower id.
    """
    n = rows.shape[1]
    bad = ~finite_rows(rows)
    found, order = largest(rows, min(k + 1, n))
    values, places = found[:, :k].clone(), order[:, :k].clone()
    equal = found[:, 1:] == found[:, :-1]
    among = (equal[:, : k - 1] & (values[:, 1:] > least[:, None])).any(dim=1)
    if k < n:  # of several that equal the last one any may have been taken
        at_edge = equal[:, k - 1]
        some, among = at_edge.nonzero()[:, 0], among & ~at_edge
        own = torch.arange(n, device=rows.device).expand(len(some), n) if ids is None else ids[some]
        places[some] = _first(rows[some], _turn(rows[some], own, least[some], ties), k)
    some = among.nonzero()[:, 0]
    own = places[some] if ids is None else ids[some].gather(1, places[some])
    turned = _first(values[some], _turn(values[some], own, least[some], ties), k)
    places[some] = places[some].gather(1, turned)
    return places.masked_fill_(bad[:, None], -1), values.masked_fill_(bad[:, None], torch.nan)


def _turn(
    values: Float[Tensor, "units n"],
    ids: Int[Tensor, "units n"],
    least: Float[Tensor, "units"],
    ties: Int[Tensor, "images"] | None,
) -> Int[Tensor, "units n"]:
    """Of equal values, the one with the lowest of these numbers (from 0 to 2^32 - 1) goes first."""
    if ties is None:
        at_top = values == values.amax(dim=1, keepdim=True)
        turn = _mix(ids ^ _mix((ids * at_top).sum(dim=1, keepdim=True)))
    else:
        turn = ties[ids]
    return torch.where(values > least[:, None], turn, ids)


def _mix(x: Int[Tensor, "..."]) -> Int[Tensor, "..."]:
    """Numbers from 0 to 2^32 - 1 that look random, another for each of these: Wellons' lowbias32 (hash prospector)."""
    x = x & LAST
    x = ((x ^ (x >> 16)) * 0x7FEB352D) & LAST
    x = ((x ^ (x >> 15)) * 0x846CA68B) & LAST
    return x ^ (x >> 16)


def _first(rows: Float[Tensor, "units n"], turn: Int[Tensor, "units n"], k: int) -> Int[Tensor, "units k"]:
    """Where the top k of each row are, equal ones by `turn`."""
    if rows.dtype == torch.float32:
        bits = (rows + 0.0).view(torch.int32)
        ordered = bits ^ ((bits >> 31) & 0x7FFFFFFF)  # two's complement order = numerical order
        return ((ordered.long() << 32) | (LAST - turn)).topk(k, dim=1).indices
    by_turn = turn.argsort(dim=1)
    by_value = rows.gather(1, by_turn).argsort(dim=1, descending=True, stable=True)
    return by_turn.gather(1, by_value[:, :k])


def _top_sparse(acts: Columns, k: int, ties: Tensor | None) -> tuple[Tensor, Tensor]:
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
        ids[units], values[units] = _top_entries(acts, units, k, ties)
        first += len(units)
    return ids, values


def _top_entries(
    acts: Columns, units: Int[Tensor, "some"], k: int, ties: Int[Tensor, "images"] | None
) -> tuple[Tensor, Tensor]:
    """Top k of some units: of their stored entries, and of their zeros too where those reach the top."""
    counts, starts = acts.counts[units, None], acts.starts[:-1][units, None]
    dtype = _dtype(acts.values)
    place = torch.arange(max(int(counts.max()), k), device=acts.device)
    entries = acts.values[(starts + place).clamp(max=len(acts.values) - 1)].to(dtype) + 0.0
    padding = place >= counts  # stands behind a unit's entries, which lie in order of image id, and loses every tie
    images = acts.rows[(starts + place).clamp(max=len(acts.rows) - 1)]
    lowest = entries.masked_fill(padding, torch.inf).amin(dim=1)
    least = torch.where(counts[:, 0] < acts.images, 0.0, lowest).clamp(min=0)
    place, values = _top_rows(entries.masked_fill_(padding, torch.finfo(dtype).min), k, least, images, ties)
    bad, absent = place[:, 0] < 0, place >= counts
    ids = images.gather(1, place.clamp(min=0))
    ids, values = ids.masked_fill_(absent, acts.images), values.masked_fill_(absent, -torch.inf)
    short = (values[:, -1] <= 0).nonzero()[:, 0]
    zero_ids = _first_zeros(acts.pick(units[short]), k)
    zeros = torch.zeros_like(values[short]).masked_fill_(zero_ids == acts.images, -torch.inf)
    both, own = torch.cat([values[short], zeros], dim=1), torch.cat([ids[short], zero_ids], dim=1)
    turn = torch.where(both > 0, torch.arange(2 * k, device=acts.device), own)  # what fires stays in its order
    chosen = _first(both, turn, k)
    values[short], ids[short] = both.gather(1, chosen), own.gather(1, chosen)
    return ids.masked_fill_(bad[:, None], -1), values.masked_fill_(bad[:, None], torch.nan)


def _first_zeros(acts: Columns, k: int) -> Int[Tensor, "units k"]:
    """The first k images that a unit does not store; beyond the last such image, the number of images."""
    longest = int(acts.counts.max()) if acts.units else 0
    width = min(acts.images, longest + k)  # so many images hold at least k that are not stored, or all there are
    ids = torch.arange(width, device=acts.device).repeat(acts.units, 1)
    near = acts.rows < width
    ids[acts.unit_of_entry[near], acts.rows[near]] = acts.images
    return ids.topk(k, dim=1, largest=False).values
