"""Activations unit by unit: dense matrices as they are, sparse ones by their columns.

torch's CSR has no top-k, mean, comparison or column slice, so a sparse matrix is turned once into CSC; everything
that mining, scoring and metrics need is then a question to one column's stored values and the number of zeros.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from saelab.arrays import as_tensor
from saelab.errors import UserError

FIRES = 1e-6  # an activation above this counts as firing (the CSP authors' threshold) where the unit reaches 1


@dataclass(frozen=True)
class Columns:
    """A sparse activation matrix [images, units] by columns (CSC)."""

    starts: Int[Tensor, "units1"]  # unit u's entries are starts[u]:starts[u + 1]
    rows: Int[Tensor, "entries"]  # image of each entry
    values: Float[Tensor, "entries"]  # its activation; explicit zeros may occur
    images: int  # number of images

    @property
    def units(self) -> int:
        """Number of columns."""
        return len(self.starts) - 1

    @property
    def device(self) -> torch.device:
        """Where the entries lie."""
        return self.values.device

    @property
    def counts(self) -> Int[Tensor, "units"]:
        """Stored entries of each unit."""
        return self.starts.diff()

    @property
    def unit_of_entry(self) -> Int[Tensor, "entries"]:
        """The unit that each entry belongs to."""
        return torch.repeat_interleave(torch.arange(self.units, device=self.device), self.counts)

    def total(self, entries: Tensor) -> Float[Tensor, "units"]:
        """The sum over each unit's entries, in float64."""
        sums = torch.zeros(self.units, dtype=torch.float64, device=self.device)
        return sums.index_add_(0, self.unit_of_entry, entries.double())

    def part(self, first: int, last: int) -> "Columns":
        """The columns first..last - 1, as views."""
        a, b = int(self.starts[first]), int(self.starts[last])
        return Columns(self.starts[first : last + 1] - a, self.rows[a:b], self.values[a:b], self.images)

    def pick(self, units: Int[Tensor, "some"]) -> "Columns":
        """The given columns, in the given order."""
        counts = self.counts[units]
        starts = torch.cat([counts.new_zeros(1), counts.cumsum(0)])
        shift = torch.repeat_interleave(self.starts[:-1][units] - starts[:-1], counts)
        entry = torch.arange(int(starts[-1]), device=self.device) + shift
        return Columns(starts, self.rows[entry], self.values[entry], self.images)

    def take_rows(self, ids: Int[Tensor, "some"]) -> "Columns":
        """The given images only, in the given order (each at most once)."""
        place = torch.full((self.images,), -1, dtype=torch.long, device=self.device)
        place[ids] = torch.arange(len(ids), device=self.device)
        kept = place[self.rows] >= 0
        counts = torch.bincount(self.unit_of_entry[kept], minlength=self.units)
        starts = torch.cat([counts.new_zeros(1), counts.cumsum(0)])
        return Columns(starts, place[self.rows[kept]], self.values[kept], len(ids))

    def dense(self) -> Float[Tensor, "images units"]:
        """The matrix with its zeros written out (each column contiguous in memory)."""
        flat = torch.zeros(self.units * self.images, dtype=self.values.dtype, device=self.device)
        flat[self.unit_of_entry * self.images + self.rows] = self.values
        return flat.view(self.units, self.images).T

    def transposed(self, entries: Tensor, dtype: torch.dtype) -> Float[Tensor, "units images"]:
        """Other values in the same places, as a CSR matrix whose rows are units."""
        size = (self.units, self.images)
        return torch.sparse_csr_tensor(self.starts, self.rows, entries.to(dtype), size=size, check_invariants=False)

    def product(self, entries: Tensor, right: Float[Tensor, "images m"]) -> Float[Tensor, "units m"]:
        """Transposed product, other values in the same places: sum over a unit's entries of entry x row of `right`."""
        return self.transposed(entries, right.dtype) @ right


Acts = Tensor | Columns  # what the functions below take: dense [images, units], torch.sparse_csr, or columns already


def columns(acts: Acts) -> Acts:
    """Dense activations unchanged, sparse ones (torch's or SciPy's) as Columns; NumPy's arrays are taken too.

    Whole numbers and booleans, counts say, become float32 in either layout.
    Raises UserError for what is no matrix of real numbers.
    """
    if isinstance(acts, Columns):
        return acts
    acts = as_tensor(acts, "acts")
    if acts.ndim != 2:
        raise UserError("acts", tuple(acts.shape), "expected a matrix [images, units]")
    acts = acts if acts.is_floating_point() else acts.to(torch.float32)
    if acts.layout == torch.strided:
        return acts
    if acts.layout == torch.sparse_csr and acts.device.type == "cpu":
        return _by_column(acts)
    csc = acts.to_sparse_csc()
    return Columns(csc.ccol_indices().long(), csc.row_indices().long(), csc.values(), acts.shape[0])


def firing_threshold(largest: Any) -> Any:
    """What an activation must exceed to count as firing, from each unit's largest: `FIRES`, less where that is below 1.

    So a unit in other units of measurement, a millionth as large, fires on the same images. Takes and gives an array
    or a tensor.
    """
    return FIRES * largest.clip(0, 1)


def _by_column(csr: Float[Tensor, "images units"]) -> Columns:
    """CSR on the CPU as Columns. SciPy needs a tenth of the time of torch, which sorts the entries on one core."""
    from scipy.sparse import csr_array

    bits = {1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int64}[csr.dtype.itemsize]  # NumPy has no bfloat16
    parts = (csr.values().detach().view(bits).numpy(), csr.col_indices().numpy(), csr.crow_indices().numpy())
    csc = csr_array(parts, shape=csr.shape).tocsc()
    starts, rows, values = (torch.from_numpy(part) for part in (csc.indptr, csc.indices, csc.data))
    return Columns(starts.long(), rows.long(), values.view(csr.dtype), csr.shape[0])


def shape(acts: Acts) -> tuple[int, int]:
    """(images, units)."""
    if isinstance(acts, Columns):
        return acts.images, acts.units
    return acts.shape[0], acts.shape[1]


def part(acts: Acts, units: slice) -> Acts:
    """A run of units in the layout they came in, as views."""
    acts = columns(acts)
    first, last, _ = units.indices(shape(acts)[1])
    return acts.part(first, last) if isinstance(acts, Columns) else acts[:, first:last]


def dense(acts: Acts, units: slice | None = None) -> Float[Tensor, "images some"]:
    """A run of units' columns (by default all), written out."""
    some = part(acts, units or slice(None))
    return some.dense() if isinstance(some, Columns) else some


def pick(acts: Acts, units: Int[Tensor, "some"]) -> Acts:
    """Some units' columns in the layout they came in."""
    acts = columns(acts)
    return acts.pick(units) if isinstance(acts, Columns) else acts[:, units]


def take_rows(acts: Acts, ids: Int[Tensor, "some"]) -> Acts:
    """Some images' activations in the layout they came in (each image at most once)."""
    acts = columns(acts)
    ids = ids.to(acts.device)
    return acts.take_rows(ids) if isinstance(acts, Columns) else acts[ids]


def runs(acts: Columns, entries: int) -> Iterator[slice]:
    """Runs of units that store at most so many entries together; a unit that stores more is a run of its own."""
    first = 0
    while first < acts.units:
        last = int(torch.searchsorted(acts.starts, acts.starts[first] + entries, right=True)) - 1
        yield slice(first, max(last, first + 1))
        first = max(last, first + 1)


def blocks(acts: Acts, elements: int = 1 << 24) -> Iterator[tuple[slice, Float[Tensor, "images some"]]]:
    """Dense blocks of units of about `elements` numbers each, so that no sparse matrix is ever written out whole."""
    acts = columns(acts)
    images, units = shape(acts)
    step = max(1, elements // max(images, 1))
    for first in range(0, units, step):
        block = slice(first, min(first + step, units))
        yield block, dense(acts, block)
