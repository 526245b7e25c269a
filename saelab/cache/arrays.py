"""Activations that somebody has already, from an array or a file, as a cache like any other: no model needed."""

import hashlib
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from saelab import artifacts
from saelab.arrays import Narrowing, block, h5_error, native, sliceable
from saelab.cache import layout
from saelab.cache.passes import Moments
from saelab.cache.store import ActivationCache
from saelab.errors import UserError
from saelab.files import check_folder

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
    """A cache from activations: an array, a tensor, a SciPy matrix, or a .npy, .h5 / .hdf5 or .safetensors file.

    Shapes: [images, d_in] (one token each), [images, tokens, d_in], [images, d_in, height, width] (a map, row by
    row), or [tokens, d_in] with `offsets` [images + 1] (an array or a .npy). `key`: which dataset (`layer4/acts`, where
    it lies in a group) or tensor of a file that holds several. Rows go in the order of image ids; without `images`, all
    count as the `mine` split. Reads block by block. Raises UserError for a missing, locked or damaged file, a missing
    key, another shape, NaN or an infinity (naming image and dimension), and numbers too large or too small for `dtype`.
    """
    if dtype not in layout.STORED:
        raise UserError("dtype", dtype, "unknown", f"known: {', '.join(layout.STORED)}")
    array = _open(activations, key)
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

    check_folder("root", Path(root))
    return ActivationCache(artifacts.ensure(root, "activations", f"arrays-{name}", recipe, build).path)


def count_images(activations: Any, key: str | None = None) -> int:
    """How many images' activations `adopt` would find, without `offsets`. Raises UserError as it does."""
    array = activations if isinstance(activations, torch.Tensor | np.ndarray) else _open(activations, key)
    return len(_bounds(array, None)) - 1


def opened(source: Any, setting: str) -> Any:
    """A file's array, mapped where it can be, and anything else as it is. Raises UserError as `adopt` does."""
    return _open(source, None, setting) if isinstance(source, str | Path) else source


def _copy(folder: Path, array: Any, bounds: np.ndarray, mine: np.ndarray, dtype: str) -> None:
    places = layout.places(folder / layout.FILE)[0]
    d_in, moments = places["tokens"].shape[1], Moments.none(places["tokens"].shape[1])
    narrow = Narrowing(dtype)
    with layout.full_disk(folder), (folder / layout.FILE).open("r+b") as file:
        for first, last in _blocks(bounds, d_in):
            raw = torch.from_numpy(_rows(array, bounds, first, last))
            _require_finite(raw, bounds, first)
            lengths = np.diff(bounds[first : last + 1])
            stored = narrow(raw)
            groups = raw.to(torch.float32).split(lengths.tolist())
            values = {
                "pooled_max": (first, torch.stack([g.amax(0) for g in groups])),
                "pooled_mean": (first, torch.stack([g.mean(0) for g in groups])),
                "tokens": (int(bounds[first]), stored.view(torch.uint16) if dtype == "bfloat16" else stored),
            }
            for name, (row, value) in values.items():
                layout.write_at(file.fileno(), places[name].offset + row * places[name].row_bytes, value.numpy())
            moments = moments.merge(Moments.of(stored[np.repeat(mine[first:last], lengths)]))
    narrow.finish()
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
    """The tokens of some images [tokens, d_in], in the array's own dtype: narrowing is the store's business."""
    if array.ndim == 2:
        return np.require(block(array, slice(int(bounds[first]), int(bounds[last]))), requirements=("C", "W"))
    part = block(array, slice(first, last))
    if part.ndim == 4:
        part = part.reshape(*part.shape[:2], -1).transpose(0, 2, 1)
    return np.require(part.reshape(-1, part.shape[-1]), requirements=("C", "W"))


def _require_finite(rows: torch.Tensor, bounds: np.ndarray, first: int) -> None:
    """Raise UserError for NaN or an infinity in the tokens of image `first` and those that follow."""
    if not rows.is_floating_point() or bool(rows.sum(dtype=torch.float64).isfinite()):
        return
    bad = (~rows.isfinite()).nonzero()
    if not len(bad):
        return  # only the sum was too large
    row, dimension = (int(i) for i in bad[0])
    token = int(bounds[first]) + row
    image = int(np.searchsorted(bounds, token, side="right")) - 1
    value = float(rows[row, dimension])
    what = "NaN" if value != value else "infinite (an overflow of float16?)"
    several = bounds[image + 1] - bounds[image] > 1
    place = f"image {image}, token {token - int(bounds[image])}" if several else f"image {image}"
    more = f"; {len(bad)} such numbers in this block" if len(bad) > 1 else ""
    remedy = f"compute it again in float32, or leave the image out{more}"
    raise UserError("activations", place, f"dimension {dimension} is {what}", remedy)


def _bounds(array: Any, offsets: Any) -> np.ndarray:
    """offsets [images + 1], checked."""
    if array.ndim not in (2, 3, 4) or 0 in array.shape:
        what = "[images, d_in], [images, tokens, d_in], [images, d_in, height, width] or [tokens, d_in] with offsets"
        raise UserError("activations", tuple(array.shape), f"expected {what}", "reshape the array")
    if offsets is None:
        tokens = {2: 1, 3: array.shape[1], 4: int(np.prod(array.shape[2:]))}[array.ndim]
        return np.arange(array.shape[0] + 1, dtype=np.int64) * tokens
    bounds = native(np.asarray(_open(offsets, None, "offsets"))).astype(np.int64)
    whole = array.ndim == 2 and bounds.ndim == 1 and bounds.size > 1
    if not whole or bounds[0] != 0 or bounds[-1] != array.shape[0] or (np.diff(bounds) < 1).any():
        ends = tuple(bounds.ravel()[[0, -1]].tolist()) if bounds.size else ()
        what = f"must rise from 0 to the {array.shape[0]} rows of a [tokens, d_in] array"
        raise UserError("offsets", ends, what, "give images + 1 row numbers")
    return bounds


def _open(source: Any, key: str | None, setting: str = "activations") -> Any:
    """An array-like with shape, ndim and slices; files are mapped or read as they are sliced."""
    if not isinstance(source, str | Path):
        return _on_cpu(sliceable(source, setting))
    path = Path(source).expanduser()
    if not path.is_file():
        raise UserError(setting, path, "no such file", "give a .npy, .h5 or .safetensors file")
    suffix = path.suffix.lower()
    if suffix in (".h5", ".hdf5"):
        return sliceable(_dataset(path, key), setting)
    try:
        if suffix == ".npy":
            return sliceable(np.load(path, mmap_mode="r", allow_pickle=False), setting)
        if suffix == ".safetensors":
            from safetensors import safe_open

            with safe_open(str(path), "pt") as tensors:
                return _on_cpu(sliceable(tensors.get_tensor(_key(path, key, list(tensors.keys()))), setting))
    except UserError:
        raise
    except Exception as error:  # whatever a parser raises for bytes that are no such file
        raise UserError(setting, path, f"unreadable ({' '.join(str(error).split())[:120]})", "write it again") from None
    raise UserError(setting, path, f"unknown kind {path.suffix}", "give a .npy, .h5 or .safetensors file")


def _on_cpu(array: Any) -> Any:
    """A tensor as the float32 array that its digest has always been of, where float32 holds its numbers."""
    if not isinstance(array, torch.Tensor):
        return array
    if array.dtype != torch.float64:
        return array.cpu().float().numpy()
    narrow = Narrowing("float32")
    try:
        single = narrow(array)
        narrow.finish()
    except UserError:
        return array.cpu().numpy()  # refused where it is stored, with the dtype's name
    return single.cpu().numpy()


def _dataset(path: Path, key: str | None) -> Any:
    """A dataset of an HDF5 file, in whatever group."""
    import h5py

    found: dict[str, Any] = {}

    def note(name: str, item: Any) -> None:
        if isinstance(item, h5py.Dataset) and item.shape is not None:
            found[name] = item

    try:
        file = h5py.File(path, "r")
        file.visititems(note)
        asked = key.strip("/") if key else None
        if asked and asked not in found and isinstance(file.get(asked), h5py.Dataset):
            found[asked] = file[asked]  # behind a soft or external link, which a visit passes by
    except (OSError, RuntimeError, KeyError, ValueError) as error:
        raise h5_error("activations", path, error, "write it again") from None
    return found[_key(path, asked, list(found))]


def _key(path: Path, key: str | None, names: list[str]) -> str:
    if key is None and len(names) == 1:
        return names[0]
    if key is None or key not in names:
        held = ", ".join(names[:8]) + (", ..." if len(names) > 8 else "") if names else "no dataset"
        raise UserError("key", key, f"{path} holds {held}", "name one of them" if names else "give another file")
    return key


def _digest(array: Any) -> str:
    """SHA-256 of shape, dtype and contents, block by block."""
    total = hashlib.sha256(f"{tuple(array.shape)} {array.dtype}".encode())
    step = max(1, _AT_ONCE // max(1, int(np.prod(array.shape[1:], dtype=np.int64)) * 4))
    for start in range(0, array.shape[0], step):
        part = array[start : start + step]
        dense = part.toarray() if hasattr(part, "toarray") else np.asarray(part)
        total.update(np.ascontiguousarray(dense).data.cast("B"))
    return total.hexdigest()
