"""ActivationCache: the tokens of one layer for all images of a set, on disk. Reading and checking.

Rows are read through a memory map at the dataset's byte offset: random rows cost what the disk costs.
"""

import os
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float, Int

from saelab import artifacts, bars
from saelab.cache import layout
from saelab.cache.layout import CHECKSUMS, FILE, SPLITS
from saelab.errors import UserError

_TOKENS_AT_ONCE = 8192


class ActivationCache:
    """Tokens [tokens, d_in] of one layer; image i has the rows offsets[i] to offsets[i + 1] - 1.

    `mean` (per dimension) and `variance` (total: summed over dimensions) are of the `count` tokens of the `mine`
    split, as stored. Open one with `cache.open(path)`.
    """

    def __init__(self, path: Path | str) -> None:
        """`path`: the artifact's folder, or its tokens.h5. UserError for a missing, unfinished or damaged one."""
        path = Path(path)
        self.path = path.parent if path.name == FILE else path
        artifact = artifacts.open_artifact(self.path)
        self.recipe, self.digest = artifact.recipe, artifact.digest
        self._places, self.info = layout.places(self.path / FILE)
        missing = set(layout.datasets(0, 0, 0, "float16")) - set(self._places)
        if missing:
            raise UserError("cache", self.path, f"lacks {', '.join(sorted(missing))}", "cache the layer again")
        self.layer, self.host, self.dtype = self.info["layer"], self.info["host"], self.info["dtype"]
        self.n_tokens, self.d_in = self._places["tokens"].shape
        self.offsets = self._read("offsets")  # int64 [images + 1]

    def __repr__(self) -> str:
        return f"ActivationCache({self.path}: {self.layer}, {self.n_images} images, {self.n_tokens} x {self.d_in})"

    def __len__(self) -> int:
        return self.n_images

    @property
    def n_images(self) -> int:
        """Number of images."""
        return len(self.offsets) - 1

    @cached_property
    def mean(self) -> Float[np.ndarray, "d_in"]:
        """Mean of the `mine` tokens, float64."""
        return self._read("mean")

    @cached_property
    def variances(self) -> Float[np.ndarray, "d_in"]:
        """Variance of each dimension of the `mine` tokens, float64."""
        return self._read("variance")

    @property
    def variance(self) -> float:
        """Total variance of the `mine` tokens: summed over dimensions."""
        return float(self.variances.sum())

    @cached_property
    def count(self) -> int:
        """Number of `mine` tokens."""
        return int(self._read("count")[0])

    @cached_property
    def tokens(self) -> Any:
        """Memory map [tokens, d_in], float16 or float32; bfloat16 is widened to float32 as it is read."""
        place = self._places["tokens"]
        mapped = np.memmap(self.path / FILE, place.dtype, "r", place.offset, place.shape)
        return Bfloat16Map(mapped) if self.dtype == "bfloat16" else mapped

    @cached_property
    def splits(self) -> np.ndarray:
        """Split of each image: "mine", "show" or "test"."""
        return np.array(SPLITS)[self._read("split")]

    @property
    def split_of_rows(self) -> np.ndarray:
        """Split of each token row."""
        return np.repeat(self.splits, np.diff(self.offsets))

    def rows(self, split: str | None = None) -> Int[np.ndarray, "rows"]:
        """Row numbers of a split's tokens, ascending; of all, if None."""
        if split is None:
            return np.arange(self.n_tokens, dtype=np.int64)
        if split not in SPLITS:
            raise UserError("split", split, "unknown", f"one of {', '.join(SPLITS)}")
        return np.flatnonzero(np.repeat(self.splits == split, np.diff(self.offsets))).astype(np.int64)

    def image_tokens(self, image: int) -> Float[np.ndarray, "tokens d_in"]:
        """The tokens of one image, float32."""
        return np.asarray(self.tokens[self.offsets[image] : self.offsets[image + 1]], dtype=np.float32)

    def grid(self, image: int) -> tuple[int, int] | None:
        """(height, width) of the image's token map; its *last* height * width tokens are that map, row by row.

        None where the tokens have no place (a cls token, a vector, a random choice of tokens).
        """
        height, width = self._grids[image]
        return (int(height), int(width)) if height > 0 else None

    def pooled(self, kind: str = "max") -> Float[np.ndarray, "images d_in"]:
        """One number per image and dimension, float32.

        `max` and `mean` over the image's tokens (over all that the policy keeps, also where only some were stored);
        `cls`: the first token; `top:0.1`: the mean of the largest tenth of the tokens, per dimension (their number is
        rounded down; at least one).
        """
        if kind in ("max", "mean"):
            return self._read(f"pooled_{kind}")
        if kind == "cls":
            if self.info["policy"] not in ("cls", "all", "no_registers") or not self.info["has_cls"]:
                raise UserError(
                    "pool", kind, f"the cache of {self.layer} ({self.info['policy']}) holds no cls token", "pool=max"
                )
            return np.asarray(self.tokens[self.offsets[:-1]], dtype=np.float32)
        try:
            share = float(kind.removeprefix("top:"))
        except ValueError:
            share = 0.0
        if not kind.startswith("top:") or not 0 < share <= 1:
            raise UserError("pool", kind, "unknown", "known: max, mean, cls, top:<share in (0, 1]>, like top:0.1")
        return self._top_mean(share)

    def require_images(self, fingerprint: str) -> None:
        """Raise UserError unless the cache was made from the image set with this fingerprint."""
        if self.recipe.get("images") != fingerprint:
            raise UserError("cache", self.path, "was made from another image set", "cache the layer for this set")

    def verify(self) -> list[str]:
        """What differs from what was written, by the checksums of all bytes; [] if nothing does."""
        stored = artifacts.read_json(self.path / CHECKSUMS)
        tokens, path, wrong = self._places["tokens"], self.path / FILE, []
        with bars.show(total=path.stat().st_size, what=f"verify {self.layer}", unit="B", scaled=True) as bar:
            for start, stop, checksum in stored["ranges"]:
                if layout.sha256(path, start, stop) != checksum:
                    wrong.append(self._what(start, stop, tokens))
                bar.update(stop - start)
        covered = stored["ranges"][-1][1] if stored["ranges"] else 0
        if covered != path.stat().st_size:
            wrong.append(f"{path.stat().st_size} bytes, checksums cover {covered}")
        return wrong

    @cached_property
    def _grids(self) -> Int[np.ndarray, "images 2"]:
        return self._read("grid")

    def _what(self, start: int, stop: int, tokens: layout.Place) -> str:
        if not tokens.offset <= start < tokens.end:
            return f"bytes {start} to {stop - 1}: header, offsets, pooled values or statistics"
        first, last = ((at - tokens.offset) // tokens.row_bytes for at in (start, stop - 1))
        images = np.searchsorted(self.offsets, [first, last], side="right") - 1
        return f"tokens {first} to {last} (images {images[0]} to {images[1]})"

    def _top_mean(self, share: float) -> Float[np.ndarray, "images d_in"]:
        out = np.empty((self.n_images, self.d_in), dtype=np.float32)
        for i in range(self.n_images):
            own = self.image_tokens(i)
            keep = top_count(len(own), share)
            out[i] = np.partition(own, len(own) - keep, axis=0)[len(own) - keep :].mean(0)
        return out

    def _read(self, name: str) -> np.ndarray:
        place = self._places[name]
        count = int(np.prod(place.shape, dtype=np.int64))
        return np.fromfile(self.path / FILE, place.dtype, count, offset=place.offset).reshape(place.shape)


def top_count(tokens: int, share: float = 0.1) -> int:
    """How many of an image's tokens are its strongest `share`: rounded down, at least one."""
    return max(1, int(share * tokens + 1e-9))  # 0.29 x 100 is 28.999... in floating point


class Bfloat16Map:
    """A memory map of bfloat16 bits that reads as float32 (exactly: bfloat16 is float32's upper half)."""

    dtype = np.dtype(np.float32)
    ndim = 2

    def __init__(self, bits: np.memmap) -> None:
        self.bits, self.shape, self.filename = bits, bits.shape, bits.filename

    def __len__(self) -> int:
        return len(self.bits)

    def __getitem__(self, rows: Any) -> np.ndarray:
        return (np.asarray(self.bits[rows]).astype(np.uint32) << 16).view(np.float32)


def open(path: Path | str | os.PathLike[str]) -> ActivationCache:
    """The cache in a folder. Raises UserError, in one line, for a missing, unfinished, cut-off or foreign one."""
    return ActivationCache(Path(path))
