"""Activations that somebody has already, from an array or a file, as a cache like any other: no model needed."""

import hashlib
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from saelab import artifacts
from saelab.cache import layout
from saelab.cache.passes import TORCH, Moments
from saelab.cache.store import ActivationCache
from saelab.errors import UserError

if TYPE_CHECKING:
    from saelab.images import ImageSet

CODE = 1  # version of this stage; part of every recipe
_AT_ONCE = 64 << 20  # bytes


def adopt(
    activations: Any,
    root: Path | str,
    images: "ImageSet | None" = None,
    key: str | None = None,
    offsets: Any = None,
    name: str = "arrays",
    dtype: str = "float16",
) -> ActivationCache:
    """A cache from activations: an array, a tensor, or a .npy, .h5 / .hdf5 or .safetensors file.

    Shapes: [images, d_in] (one token each), [images, tokens, d_in], [images, d_in, height, width] (a map, row by
    row), or [tokens, d_in] with `offsets` [images + 1] (an array or a .npy). `key`: which dataset or tensor of a file
    that holds several. Rows go in the order of image ids; without `images`, all count as the `mine` split. Reads
    block by block. Raises UserError for a missing file or key, another shape, and values beyond the dtype.
    """
    if dtype not in layout.STORED:
        raise UserError("dtype", dtype, "unknown", f"known: {', '.join(layout.STORED)}")
    array = _opened(activations, key)
    bounds = _bounds(array, offsets)
    count, d_in = len(bounds) - 1, int(array.shape[1] if array.ndim in (2, 4) else array.shape[2])
    if images is not None and len(images) != count:
        raise UserError(
            "activations", f"{count} images", f"{images.name} has {len(images)}", "give one row for each image"
        )
    splits = np.full(count, "mine") if images is None else np.asarray(images.splits)
    recipe = {
        "stage": "activations",
        "code": CODE,
        "arrays": _digest(array),
        "offsets": _digest(bounds),
        "dtype": dtype,
    }
    recipe |= {"images": images.fingerprint if images else None, "layer": name, "policy": "all"}

    def build(folder: Path) -> None:
        shapes = layout.datasets(count, int(bounds[-1]), d_in, dtype)
        attributes = {"layer": name, "host": "arrays", "policy": "all", "dtype": dtype, "has_cls": False}
        layout.create(folder, shapes, attributes)
        grid = array.shape[2:] if array.ndim == 4 else (0, 0)
        known = {
            "offsets": bounds,
            "grid": np.tile(np.array(grid), (count, 1)),
            "split": np.array([layout.SPLITS.index(s) for s in splits]),
        }
        layout.write_datasets(folder / layout.FILE, known)
        _copy(folder, array, bounds, splits == "mine", dtype)
        layout.write_checksums(folder, [])

    return ActivationCache(artifacts.ensure(root, "activations", f"arrays-{name}", recipe, build).path)


def _copy(folder: Path, array: Any, bounds: np.ndarray, mine: np.ndarray, dtype: str) -> None:
    places = layout.places(folder / layout.FILE)[0]
    d_in, moments = places["tokens"].shape[1], Moments.none(places["tokens"].shape[1])
    with layout.full_disk(folder), (folder / layout.FILE).open("r+b") as file:
        for first, last in _blocks(bounds, d_in):
            rows = torch.from_numpy(_rows(array, bounds, first, last))
            lengths = np.diff(bounds[first : last + 1])
            stored = rows.to(TORCH[dtype])
            if bool((stored.isinf() & rows.isfinite()).any()):
                raise UserError(
                    "dtype", dtype, f"can't hold {float(rows.abs().max()):.3g}", "set dtype=bfloat16 or float32"
                )
            groups = rows.split(lengths.tolist())
            values = {
                "pooled_max": (first, torch.stack([g.amax(0) for g in groups])),
                "pooled_mean": (first, torch.stack([g.mean(0) for g in groups])),
                "tokens": (int(bounds[first]), stored.view(torch.uint16) if dtype == "bfloat16" else stored),
            }
            for name, (row, value) in values.items():
                layout.write_at(file.fileno(), places[name].offset + row * places[name].row_bytes, value.numpy())
            moments = moments.merged(Moments.of(stored[np.repeat(mine[first:last], lengths)]))
    count = np.array([moments.tokens])
    values_at_end = {
        "mean": moments.mean.numpy(),
        "variance": (moments.m2 / max(moments.tokens, 1)).numpy(),
        "count": count,
    }
    layout.write_datasets(folder / layout.FILE, values_at_end)


def _blocks(bounds: np.ndarray, d_in: int) -> Iterator[tuple[int, int]]:
    """Ranges of images with about _AT_ONCE bytes of float32 tokens each, at least one image."""
    first, most = 0, max(1, _AT_ONCE // (4 * d_in))
    while first < len(bounds) - 1:
        last = int(np.searchsorted(bounds, bounds[first] + most, side="right")) - 1
        last = max(last, first + 1)
        yield first, last
        first = last


def _rows(array: Any, bounds: np.ndarray, first: int, last: int) -> np.ndarray:
    if array.ndim == 2:
        return np.asarray(array[bounds[first] : bounds[last]], dtype=np.float32)
    block = np.asarray(array[first:last], dtype=np.float32)
    if block.ndim == 4:
        block = block.reshape(*block.shape[:2], -1).transpose(0, 2, 1)
    return np.ascontiguousarray(block.reshape(-1, block.shape[-1]))


def _bounds(array: Any, offsets: Any) -> np.ndarray:
    """offsets [images + 1], checked."""
    if array.ndim not in (2, 3, 4) or 0 in array.shape:
        what = "[images, d_in], [images, tokens, d_in], [images, d_in, height, width] or [tokens, d_in] with offsets"
        raise UserError("activations", tuple(array.shape), f"expected {what}", "reshape the array")
    if offsets is None:
        tokens = {2: 1, 3: array.shape[1], 4: int(np.prod(array.shape[2:]))}[array.ndim]
        return np.arange(len(array) + 1, dtype=np.int64) * tokens
    bounds = np.asarray(_opened(offsets, None)).astype(np.int64)
    if array.ndim != 2 or bounds.ndim != 1 or bounds[0] != 0 or bounds[-1] != len(array) or (np.diff(bounds) < 1).any():
        what = f"must rise from 0 to the {len(array)} rows of a [tokens, d_in] array"
        raise UserError("offsets", tuple(bounds[[0, -1]]) if bounds.size else "()", what, "give images + 1 row numbers")
    return bounds


def _opened(source: Any, key: str | None) -> Any:
    """An array-like with shape, ndim and slices; files are mapped or read as they are sliced."""
    if isinstance(source, torch.Tensor):
        return source.detach().cpu().float().numpy()
    if not isinstance(source, str | Path):
        return np.asarray(source)
    path = Path(source).expanduser()
    if not path.is_file():
        raise UserError("activations", path, "no such file", "give a .npy, .h5 or .safetensors file")
    try:
        if path.suffix == ".npy":
            return np.load(path, mmap_mode="r", allow_pickle=False)
        if path.suffix in (".h5", ".hdf5"):
            import h5py

            file = h5py.File(path, "r")
            return file[_key(path, key, [name for name in file if isinstance(file[name], h5py.Dataset)])]
        if path.suffix == ".safetensors":
            from safetensors import safe_open

            with safe_open(str(path), "pt") as tensors:
                return tensors.get_tensor(_key(path, key, list(tensors.keys()))).float().numpy()
    except (OSError, ValueError) as error:
        raise UserError(
            "activations", path, f"unreadable ({' '.join(str(error).split())[:120]})", "write it again"
        ) from None
    raise UserError("activations", path, f"unknown kind {path.suffix}", "give a .npy, .h5 or .safetensors file")


def _key(path: Path, key: str | None, names: list[str]) -> str:
    if key is None and len(names) == 1:
        return names[0]
    if key not in names:
        raise UserError("key", key, f"{path} holds {', '.join(names[:8])}", "name one of them")
    return key


def _digest(array: Any) -> str:
    """SHA-256 of shape, dtype and contents, block by block."""
    total = hashlib.sha256(f"{tuple(array.shape)} {array.dtype}".encode())
    step = max(1, _AT_ONCE // max(1, int(np.prod(array.shape[1:], dtype=np.int64)) * 4))
    for start in range(0, len(array), step):
        total.update(np.ascontiguousarray(array[start : start + step]).data.cast("B"))
    return total.hexdigest()
