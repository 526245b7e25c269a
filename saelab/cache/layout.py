"""The file of an activation cache: made at full size once, then filled by plain writes at known places.

`tokens.h5` is an HDF5 file whose datasets are all contiguous and allocated from the start. After that nothing goes
through HDF5 any more: rows are written at byte offsets, by several processes if need be, and read through a memory
map. So a kill at any moment leaves a file that is well-formed, and a full disk an error rather than a broken file.
"""

import errno
import hashlib
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from saelab import artifacts
from saelab.arrays import h5_error
from saelab.errors import UserError

FILE, CHECKSUMS = "tokens.h5", "checksums.json"
FORMAT, VERSION = "saelab activations", 1
# bfloat16 is stored as its bits
STORED: dict[str, np.dtype] = {
    "float16": np.dtype("<f2"),
    "float32": np.dtype("<f4"),
    "bfloat16": np.dtype("<u2"),
}
SPLITS = ("mine", "show", "test")
_FULL = (errno.ENOSPC, errno.EFBIG, errno.EDQUOT)
_BLOCK = 1 << 24
_ALIGNED = {"alignment_threshold": 4096, "alignment_interval": 4096}  # whole pages: a map reads aligned numbers


@dataclass(frozen=True)
class Place:
    """Where a dataset lies in the file."""

    offset: int  # of its first byte
    shape: tuple[int, ...]
    dtype: np.dtype

    @property
    def row_bytes(self) -> int:
        """Bytes of one row."""
        return int(np.prod(self.shape[1:], dtype=np.int64)) * self.dtype.itemsize

    @property
    def end(self) -> int:
        """One past its last byte."""
        return self.offset + self.shape[0] * self.row_bytes


def datasets(images: int, tokens: int, d_in: int, dtype: str) -> dict[str, tuple[tuple[int, ...], np.dtype]]:
    """Name -> (shape, dtype) of everything in the file."""
    f4, f8, i8 = (np.dtype(code) for code in ("<f4", "<f8", "<i8"))
    return {
        "offsets": ((images + 1,), i8),
        "grid": ((images, 2), np.dtype("<i4")),
        "split": ((images,), np.dtype("u1")),
        "pooled_max": ((images, d_in), f4),
        "pooled_mean": ((images, d_in), f4),
        "mean": ((d_in,), f8),
        "variance": ((d_in,), f8),
        "count": ((1,), i8),
        "tokens": ((tokens, d_in), STORED[dtype]),  # last: the bulk comes after what says what it is
    }


def size(images: int, tokens: int, d_in: int, dtype: str) -> int:
    """Bytes that the file will have, but for a few kilobytes of header."""
    shapes = datasets(images, tokens, d_in, dtype).values()
    return sum(int(np.prod(shape, dtype=np.int64)) * kind.itemsize for shape, kind in shapes)


def create(folder: Path, shapes: dict[str, tuple[tuple[int, ...], np.dtype]], attributes: dict[str, Any]) -> None:
    """Make the file with every dataset allocated (on most file systems it takes no disk before it is filled)."""
    import h5py

    temporary = folder / f".{FILE}.tmp"
    with full_disk(folder), h5py.File(temporary, "w", libver="latest", **_ALIGNED) as file:
        for name, (shape, dtype) in shapes.items():
            plist = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
            plist.set_layout(h5py.h5d.CONTIGUOUS)
            plist.set_alloc_time(h5py.h5d.ALLOC_TIME_EARLY)
            plist.set_fill_time(h5py.h5d.FILL_TIME_NEVER)
            plist.set_obj_track_times(False)  # the same recipe gives the same bytes, whenever
            space = h5py.h5s.create_simple(shape)
            h5py.h5d.create(file.id, name.encode(), h5py.h5t.py_create(dtype), space, plist)
        for key, value in {"format": FORMAT, "version": VERSION, **attributes}.items():
            file.attrs[key] = value
    end = max(place.end for place in places(temporary)[0].values())
    with full_disk(folder), temporary.open("r+b") as raw:
        raw.truncate(max(end, temporary.stat().st_size))
    temporary.rename(folder / FILE)


def places(path: Path) -> tuple[dict[str, Place], dict[str, Any]]:
    """Where each dataset lies, and the attributes. Raises UserError for a file that is no activation cache."""
    import h5py

    remedy = "cache the layer again"
    try:
        with h5py.File(path, "r", locking=False) as file:  # only read, and its places never move
            attributes = {key: value.item() if hasattr(value, "item") else value for key, value in file.attrs.items()}
            if attributes.get("format") != FORMAT:
                raise UserError("cache", path, "an HDF5 file, but not one of saelab's activation caches", remedy)
            if attributes.get("version") != VERSION:
                raise UserError("cache", path, f"format version {attributes.get('version')}, this is {VERSION}", remedy)
            found = {}
            for name, dataset in file.items():
                offset = dataset.id.get_offset()
                if offset is None:
                    raise UserError("cache", path, f"dataset {name} is not contiguous", remedy)
                found[name] = Place(offset, dataset.shape, dataset.dtype)
    except (OSError, KeyError, RuntimeError) as error:
        raise h5_error("cache", path, error, remedy) from None
    have, want = path.stat().st_size, max((p.end for p in found.values()), default=0)
    if have < want:
        raise UserError("cache", path, f"cut off: {have} of {want} bytes", remedy)
    return found, attributes


class full_disk:  # a context manager, used like a function
    """Turns a full disk, quota or file-size limit into a UserError that says where and what is kept."""

    def __init__(self, path: Path, kept: str = "nothing was lost") -> None:
        self.path, self.kept = path, kept

    def __enter__(self) -> None:
        return None

    def __exit__(self, kind: Any, error: BaseException | None, trace: Any) -> None:
        if isinstance(error, OSError) and (error.errno in _FULL or "No space left" in str(error)):
            what = f"no room left ({os.strerror(error.errno or errno.ENOSPC)}); {self.kept}"
            raise UserError(
                "disk", self.path, what, "free some space and run again, or set root to another disk"
            ) from None


def write_at(file: int, offset: int, data: np.ndarray) -> None:
    """Write all bytes of an array at a byte offset (a short write, as on an almost full disk, is continued)."""
    view = np.ascontiguousarray(data).data.cast("B")
    while len(view):
        written = os.pwrite(file, view, offset)
        view, offset = view[written:], offset + written


def write_datasets(path: Path, values: dict[str, np.ndarray]) -> None:
    """Fill whole datasets of a file that `create` made."""
    known = places(path)[0]
    with path.open("r+b") as file:
        for name, value in values.items():
            if value.shape != known[name].shape:
                raise ValueError(f"{name} has shape {value.shape}, the file {known[name].shape}")
            write_at(file.fileno(), known[name].offset, value.astype(known[name].dtype))


def write_checksums(folder: Path, shards: list[tuple[int, int, str]]) -> None:
    """Write checksums.json: SHA-256 of the token ranges given and of every byte between them."""
    ranges, position = [], 0
    path = folder / FILE
    for start, stop, checksum in [*sorted(shards), (path.stat().st_size, path.stat().st_size, "")]:
        if position < start:
            ranges.append([position, start, sha256(path, position, start)])
        if start < stop:
            ranges.append([start, stop, checksum])
        position = stop
    artifacts.write_json(folder / CHECKSUMS, {"file": FILE, "algorithm": "sha256", "ranges": ranges})


def sha256(path: Path, start: int, stop: int) -> str:
    """Of the bytes start..stop-1 of a file."""
    total = hashlib.sha256()
    with path.open("rb") as file:
        file.seek(start)
        for piece in _pieces(stop - start):
            total.update(file.read(piece))
    return total.hexdigest()


def _pieces(total: int) -> Iterator[int]:
    for start in range(0, total, _BLOCK):
        yield min(_BLOCK, total - start)
