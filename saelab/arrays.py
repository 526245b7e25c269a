"""The one door for numbers from outside: NumPy, PyTorch, SciPy, HDF5 or nested lists, dense or sparse.

Whatever enters is detached, in native byte order, on the CPU unless it is a tensor already, and numeric: text, objects
and complex numbers are refused by name. `sliceable` keeps large things where they lie (a memory map, an HDF5 dataset),
`block` reads a part of one, `as_tensor` takes a whole one, and `takes_arrays` makes a function of tensors accept all.
"""

import errno
import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any, ParamSpec, TypeVar

import numpy as np
import torch
from torch import Tensor

from saelab.errors import UserError

P = ParamSpec("P")
R = TypeVar("R")
TORCH = {"float16": torch.float16, "bfloat16": torch.bfloat16, "float32": torch.float32}
LOST = 0.01  # share of the sum of |numbers| that a dtype may lose; rounding alone loses less than 0.004 (bfloat16)
_AT_ONCE = 1 << 22  # numbers that are widened to float64 at once
_LOCKED = (errno.EAGAIN, errno.EACCES, 35, 37, 524)  # 35: EAGAIN of macOS; 37, 524: file systems without locks


def sliceable(source: Any, setting: str = "activations") -> Any:
    """`source` as something with shape, ndim and slices: a dense tensor, an array, a SciPy CSR matrix or a dataset.

    Memory maps, HDF5 datasets and other lazy arrays are returned as they are. Raises UserError for what is not numeric.
    """
    if isinstance(source, Tensor):
        source = source.detach()
        _require_numeric(setting, source.dtype, not source.dtype.is_complex)
        return source if source.layout == torch.strided else to_scipy(source)
    if _is_scipy(source):
        _require_numeric(setting, source.dtype, source.dtype.kind in "fiub")
        return source.tocsr()
    if not (hasattr(source, "shape") and hasattr(source, "dtype") and hasattr(source, "ndim")):
        try:
            source = np.asarray(source)
        except (ValueError, TypeError) as error:
            raise UserError(setting, type(source).__name__, f"is no array of numbers ({_line(error)})") from None
    _require_numeric(setting, source.dtype, _is_numeric(source.dtype))
    return source


def block(array: Any, rows: Any) -> np.ndarray:
    """Some rows (a slice or row numbers) of a `sliceable`, as a dense array in native byte order, in its own dtype.

    bfloat16 comes as float32, which NumPy has a word for; a long double as float64, which torch has one for.
    """
    part = _rows_of(array, rows)
    if isinstance(part, Tensor):
        part = part.detach().cpu()
        return (part.float() if part.is_floating_point() and part.itemsize < 4 else part).numpy()
    if _is_scipy(part):
        part = part.toarray()
    return native(np.asarray(part))


def _rows_of(array: Any, rows: Any) -> Any:
    """`array[rows]`; HDF5 takes row numbers only where they rise, so a lazy array gives each once, in order."""
    lazy = not isinstance(array, Tensor | np.ndarray) and not _is_scipy(array)
    if not lazy or isinstance(rows, slice | int | np.integer):
        return array[rows]
    numbers = np.asarray(rows)
    if numbers.dtype.kind not in "iu" or numbers.ndim != 1 or (numbers[1:] > numbers[:-1]).all():
        return array[rows]
    once, places = np.unique(numbers, return_inverse=True)
    return np.asarray(array[once])[places]


def native(array: np.ndarray) -> np.ndarray:
    """The same numbers in this machine's byte order and in a dtype that torch knows."""
    if array.dtype.kind not in "fiub":  # bfloat16 and float8 of ml_dtypes
        return array.astype(np.float32)
    if array.dtype.itemsize > 8:
        return array.astype(np.float64)
    return array if array.dtype.isnative else array.astype(array.dtype.newbyteorder("="))


def as_tensor(source: Any, setting: str = "activations") -> Tensor:
    """The whole of `source` as a tensor: floats keep their dtype and tensors their device, sparse becomes CSR.

    Whole numbers and booleans of other libraries keep their dtype too (ids, groups, concepts). Raises UserError for
    what is not numeric.
    """
    if isinstance(source, Tensor):
        _require_numeric(setting, source.dtype, not source.dtype.is_complex)
        return source.detach()
    array = sliceable(source, setting)
    if _is_scipy(array):
        return from_scipy(array)
    return torch.from_numpy(np.require(native(np.asarray(array)), requirements="W"))


def as_matrix(source: Any, width: int | None = None, setting: str = "activations") -> Tensor:
    """`as_tensor` for a dense matrix of floats [rows, width]. Raises UserError for another shape."""
    x = as_tensor(source, setting)
    x = x if x.layout == torch.strided else x.to_dense()
    if x.ndim != 2 or (width is not None and x.shape[1] != width):
        wanted = f"a matrix [rows, {width or 'd_in'}]"
        raise UserError(setting, tuple(x.shape), f"expected {wanted}", "reshape it, or use the layer it belongs to")
    return x if x.is_floating_point() else x.float()


def takes_arrays(function: Callable[P, R]) -> Callable[P, R]:
    """A function of tensors that takes arrays of NumPy and SciPy as well, and tensors that require grad."""

    def entered(value: Any) -> Any:
        outside = isinstance(value, np.ndarray) or _is_scipy(value)
        return as_tensor(value) if outside or (isinstance(value, Tensor) and value.requires_grad) else value

    @functools.wraps(function)
    def call(*args: P.args, **kwargs: P.kwargs) -> R:
        return function(*map(entered, args), **{name: entered(value) for name, value in kwargs.items()})

    return call


class Narrowing:
    """Watches numbers on their way into a smaller dtype: an overflow refuses at once, lost small numbers at the end.

    `layer`: the host's layer that they come from, for messages; None for a user's own arrays.
    """

    def __init__(self, dtype: str, setting: str = "dtype", layer: str | None = None) -> None:
        self.dtype, self.setting, self.layer = dtype, setting, layer
        self.whole, self.lost, self.largest = 0.0, 0.0, 0.0

    def __call__(self, values: Tensor) -> Tensor:
        """The numbers in the dtype. Raises UserError where a finite one becomes infinite."""
        values = values if values.is_floating_point() else values.double()
        narrow = values.to(torch.float32).to(TORCH[self.dtype])
        if not values.numel():
            return narrow
        top = float(values.abs().max())
        if bool((narrow.isinf() & values.isfinite()).any()):
            remedy = "set dtype=bfloat16 or float32" if top < 3e38 else "divide the numbers by a constant"
            what = f"can't hold {top:.3g}" + (f", a value of {self.layer}" if self.layer else "")
            raise UserError(self.setting, self.dtype, what, remedy)
        self.largest = max(self.largest, top)
        self._count(values, narrow)
        return narrow

    def _count(self, values: Tensor, narrow: Tensor) -> None:
        values, narrow = (x.cpu() if x.device.type == "mps" else x for x in (values, narrow))  # MPS has no float64
        for wide, short in zip(values.flatten().split(_AT_ONCE), narrow.flatten().split(_AT_ONCE), strict=True):
            self.whole += float(wide.abs().sum(dtype=torch.float64))
            self.lost += float((wide.double() - short.double()).abs_().sum())

    def finish(self, *others: "Narrowing") -> None:
        """Raise UserError if more than rounding was lost: the numbers are too small for the dtype.

        `others`: those that watched the rest of the numbers, in other processes.
        """
        for other in others:
            self.whole, self.lost = self.whole + other.whole, self.lost + other.lost
            self.largest = max(self.largest, other.largest)
        if self.lost > LOST * self.whole:
            where = f"values of {self.layer}" if self.layer else "numbers"
            what = f"{where} of at most {self.largest:.3g} are too small for it: {self.lost / self.whole:.0%} is lost"
            remedy = "set dtype=bfloat16 or float32"
            if not self.layer:
                times = "multiply the numbers by a constant"
                remedy = times + ("" if self.largest < 1e-35 else f", or {remedy}")
            raise UserError(self.setting, self.dtype, what, remedy)


def to_float32(values: np.ndarray, setting: str = "activations") -> Tensor:
    """Numbers as float32, which wider ones must survive; infinities stay, to be refused by whoever knows the row."""
    x = torch.from_numpy(np.require(values, requirements="W"))
    if x.dtype != torch.float64:
        return x.to(torch.float32)
    narrow = x.to(torch.float32)
    finite = x[x.isfinite()]
    lost = (finite - narrow[x.isfinite()].double()).abs_().sum()
    if finite.numel() and bool(lost.isfinite()) and float(lost) > LOST * float(finite.abs().sum()):
        what = f"numbers of at most {float(finite.abs().max()):.3g} are too small for float32"
        raise UserError(setting, "float64", what, "multiply them by a constant")
    return narrow


def to_scipy(sparse: Tensor) -> Any:
    """A sparse tensor as SciPy's CSR array, which can be sliced; bfloat16 as float32."""
    from scipy.sparse import csr_array

    csr = sparse.detach().to_sparse_csr().cpu()
    values = csr.values()
    values = values.float() if values.is_floating_point() and values.itemsize < 4 else values
    return csr_array((values.numpy(), csr.col_indices().numpy(), csr.crow_indices().numpy()), shape=tuple(csr.shape))


def from_scipy(matrix: Any) -> Tensor:
    """A SciPy matrix as torch's CSR, columns in order and each place stored once."""
    csr = matrix.tocsr()
    if not csr.has_canonical_format:
        csr = csr.copy()
        csr.sum_duplicates()
    parts = (csr.indptr.astype(np.int64), csr.indices.astype(np.int64), native(csr.data))
    starts, places, values = (torch.from_numpy(np.require(part, requirements="W")) for part in parts)
    return torch.sparse_csr_tensor(starts, places, values, csr.shape)


def open_h5(path: Path) -> Any:
    """An HDF5 file of saelab's own, to be read without a lock: only bytes that never change are."""
    import h5py

    try:
        return h5py.File(path, "r", locking=False)
    except OSError as error:
        if "locking flag" not in str(error):
            raise
        return h5py.File(path, "r")  # this process has it open already, with a lock


def h5_error(setting: str, path: Path, error: Exception, remedy: str) -> UserError:
    """What a failed opening of an HDF5 file means: one that is locked is not damaged."""
    if getattr(error, "errno", None) in _LOCKED or "unable to lock file" in str(error):
        why = "is locked: another program writes it, or its file system has no locks"
        return UserError(setting, path, why, "wait for that program, or export HDF5_USE_FILE_LOCKING=FALSE")
    if "already open for" in str(error):
        why = "is locked: another program has it open for writing, or was killed while it had"
        clear = "where no program has it, run h5clear -s FILE (HDF5_USE_FILE_LOCKING=FALSE doesn't lift this mark)"
        return UserError(setting, path, why, f"wait for that program; {clear}")
    return UserError(setting, path, f"damaged or no HDF5 file ({_line(error)})", remedy)


def _is_scipy(value: Any) -> bool:
    return type(value).__module__.startswith("scipy.sparse")


def _is_numeric(dtype: Any) -> bool:
    return getattr(dtype, "kind", "") in "fiub" or str(dtype).startswith(("bfloat16", "float8"))


def _require_numeric(setting: str, dtype: Any, numeric: bool) -> None:
    if not numeric:
        raise UserError(setting, f"dtype {dtype}", "expected real numbers", "convert it, e.g. array.astype('float32')")


def _line(error: Exception) -> str:
    return " ".join(str(error).split())[:120]
