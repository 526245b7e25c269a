"""Shuffled batches of tokens, as a pure function of (seed, epoch, step): nothing to save, nothing to restore.

The order within an epoch is a keyed permutation that is computed row by row (a Feistel network with cycle walking),
so that it costs no memory however many rows there are, and any batch can be read without those before it.
"""

import hashlib
import tempfile
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import IO, Any

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from saelab.arrays import block, sliceable, to_float32
from saelab.errors import UserError

ROUNDS = 6  # of the Feistel network
PROBED = 16  # rows of the data that its fingerprint looks at


class Batches:
    """Batches over the rows of an array, a memory map, a tensor or a SciPy matrix [tokens, d_in] of any real dtype.

    `rows`: the row numbers to draw from (all, if None). Each epoch is another permutation; the rest of an epoch that
    doesn't fill a batch is left out, another one each time. `name`: the file, for messages.
    """

    def __init__(
        self,
        tokens: Any,
        batch_size: int,
        seed: int = 0,
        rows: Int[np.ndarray, "rows"] | None = None,
        name: str | Path | None = None,
    ) -> None:
        tokens = sliceable(tokens)
        if tokens.ndim != 2 or 0 in tokens.shape:
            raise UserError("activations", tuple(tokens.shape), "[tokens, d_in] with at least one token")
        self.tokens = tokens
        self.rows = None if rows is None else np.asarray(rows, dtype=np.int64)
        self.n_tokens = tokens.shape[0] if self.rows is None else len(self.rows)
        if self.n_tokens == 0:
            raise UserError("rows", 0, "at least one token to train on", "look at the split")
        self.batch_size, self.seed = min(batch_size, self.n_tokens), seed
        self.name = str(name or getattr(tokens, "filename", None) or "the array")

    @property
    def d_in(self) -> int:
        return int(self.tokens.shape[1])

    @property
    def steps_per_epoch(self) -> int:
        return self.n_tokens // self.batch_size

    def batch(self, step: int, rank: int = 0, world: int = 1) -> Float[Tensor, "batch d_in"]:
        """The batch of a global step, float32 on the CPU; with `world` > 1 the rank's contiguous share of it.

        Raises UserError, naming file and row, where a number is NaN or infinite.
        """
        return self.read(self._rows_of(step, rank, world))

    def read(self, rows: Int[np.ndarray, "rows"]) -> Float[Tensor, "rows d_in"]:
        """Rows of the array by number, float32, checked."""
        if isinstance(self.tokens, Tensor):
            x = self.tokens[torch.from_numpy(rows).to(self.tokens.device)].to(torch.float32)
            return self._checked(x, rows)
        return self._checked(to_float32(block(self.tokens, rows)), rows)

    def prefetch(
        self, first: int, last: int, rank: int = 0, world: int = 1, narrow: bool = False
    ) -> Iterator[Float[Tensor, "batch d_in"]]:
        """Batches first..last-1; of an array, each is fetched by another thread while the one before is in use.

        float32; `narrow`: float16 where the array is, for whoever widens them elsewhere (pinned.py).
        That thread only fetches. Were it to widen and check too, torch would give it threads of its own beside those
        of the step, and on CPUs these wait for one another: training took twice as long.
        """
        if isinstance(self.tokens, Tensor):
            yield from (self.batch(step, rank, world) for step in range(first, last))
            return
        with ThreadPoolExecutor(1) as reader:
            coming = reader.submit(self._fetch, first, rank, world) if first < last else None
            for step in range(first, last):
                assert coming is not None
                found, rows = coming.result()
                coming = reader.submit(self._fetch, step + 1, rank, world) if step + 1 < last else None
                kept = narrow and found.dtype == np.float16
                x = torch.from_numpy(np.require(found, requirements="W")) if kept else to_float32(found)
                yield self._checked(x, rows)

    def in_order(self, chunk: int) -> Iterator[Float[Tensor, "chunk d_in"]]:
        """All rows, ascending, `chunk` at once."""
        rows = np.arange(self.n_tokens) if self.rows is None else np.sort(self.rows)
        for i in range(0, len(rows), chunk):
            yield self.read(rows[i : i + chunk])

    def moments(self, chunk: int = 16_384) -> tuple[Float[np.ndarray, "d_in"], float]:
        """Mean [d_in] and total variance of the rows, in float64 (Chan et al.'s pairwise update)."""
        mean, squares, seen = torch.zeros(self.d_in, dtype=torch.float64), 0.0, 0
        for part in self.in_order(chunk):
            x = part.cpu().double()
            own = x.mean(0)
            step = own - mean
            both = seen + len(x)
            squares += float((x - own).square().sum()) + float(step.square().sum()) * seen * len(x) / both
            mean += step * (len(x) / both)
            seen = both
        return mean.numpy(), squares / seen

    def fingerprint(self) -> str:
        """16 hex digits of a few rows, in their order: they tell apart data that share their moments."""
        places = np.linspace(0, self.n_tokens - 1, PROBED).astype(np.int64)
        x = self.read(places if self.rows is None else self.rows[places])
        return hashlib.sha256(x.cpu().contiguous().numpy().tobytes()).hexdigest()[:16]

    @property
    def facts(self) -> dict[str, Any]:
        """What else decides the order of the tokens, for recipes: nothing."""
        return {}

    @property
    def moments_of(self) -> dict[str, Any]:
        """Which tokens `moments` are of, for recipes, where that is not all of them."""
        return {}

    def _rows_of(self, step: int, rank: int, world: int) -> Int[np.ndarray, "rows"]:
        """The row numbers of a batch, ascending: a batch has no order, and disks do."""
        epoch, inside = divmod(step, self.steps_per_epoch)
        places = np.arange(inside * self.batch_size, (inside + 1) * self.batch_size, dtype=np.uint64)
        rows = permute(places, self.n_tokens, self.seed, epoch)
        rows = np.sort(rows if self.rows is None else self.rows[rows])
        if world == 1:
            return rows
        check_share(self.batch_size, world)
        return rows[rank * len(rows) // world : (rank + 1) * len(rows) // world]

    def _fetch(self, step: int, rank: int, world: int) -> tuple[np.ndarray, Int[np.ndarray, "rows"]]:
        rows = self._rows_of(step, rank, world)
        return block(self.tokens, rows), rows

    def _checked(self, x: Float[Tensor, "rows d_in"], rows: Int[np.ndarray, "rows"]) -> Float[Tensor, "rows d_in"]:
        if not bool(torch.isfinite(x.sum(dtype=torch.float32))):
            self._name_the_culprit(x, rows)
        return x

    def _name_the_culprit(self, x: Tensor, rows: Int[np.ndarray, "rows"]) -> None:
        bad = (~torch.isfinite(x)).any(1).nonzero()
        if len(bad):
            row = int(rows[int(bad[0])])
            remedy = "cache the layer again (float32 overflow?), or leave the row out"
            raise UserError("activations", self.name, f"row {row} holds NaN or an infinity", remedy)


def check_share(batch_size: int, world: int) -> None:
    """Raise UserError where so many processes, or groups of shards, can't take equal shares of a batch."""
    if batch_size % world:
        groups = "processes (with latent_shards: groups of processes)"
        raise UserError("batch_size", batch_size, f"divisible by the {world} {groups} that share it", "choose another")


def spool(chunks: Iterable[Any], most: int | None = None) -> Float[np.ndarray, "tokens d_in"]:
    """Tokens that come in arrays or tensors [n, d_in], as a memory map over a temporary file without a name.

    An iterator goes by once; from the file its tokens can be shuffled, gone through again and found after a kill. The
    dtype is the one that holds every chunk's numbers: float16, float32 (for bfloat16 and whole numbers too) or float64;
    a wider chunk widens what was written before. Reading stops at `most` tokens, so that it may be without an end.
    Raises UserError where nothing comes, and for a chunk that isn't [n, d_in] of one width.
    """
    file: IO[bytes] = tempfile.TemporaryFile()  # noqa: SIM115
    seen, width, dtype = 0, 0, np.dtype(np.float16)
    for chunk in chunks:
        chunk = sliceable(chunk)
        if chunk.ndim != 2 or (seen and chunk.shape[1] != width):
            raise UserError("activations", tuple(chunk.shape), f"expected chunks [tokens, {width or 'd_in'}]")
        part = block(chunk, slice(0, None if most is None else most - seen))
        wide = np.promote_types(dtype, part.dtype if part.dtype.kind == "f" else np.float32)
        if wide != dtype and seen:
            file = _widen(file, (seen, chunk.shape[1]), dtype, wide)
        width, dtype = chunk.shape[1], wide
        file.write(np.ascontiguousarray(part, dtype=dtype).tobytes())
        seen += len(part)
        if seen == most:
            break
    if not seen:
        raise UserError("activations", 0, "at least one token", "an iterator that was used up gives nothing")
    file.flush()
    return np.memmap(file, dtype=dtype, mode="r", shape=(seen, width))


def _widen(file: IO[bytes], shape: tuple[int, int], dtype: np.dtype, wide: np.dtype) -> IO[bytes]:
    """The rows of a file in another dtype, in a file of their own that is open at its end."""
    file.flush()
    rows, copy = np.memmap(file, dtype=dtype, mode="r", shape=shape), tempfile.TemporaryFile()  # noqa: SIM115
    for first in range(0, shape[0], 16_384):
        copy.write(rows[first : first + 16_384].astype(wide).tobytes())
    return copy


def permute(places: np.ndarray, n: int, seed: int, epoch: int) -> Int[np.ndarray, "places"]:
    """Where each of `places` (0..n-1) goes in the permutation of (seed, epoch): a bijection of 0..n-1, int64."""
    half = max(1, (max(n - 1, 1).bit_length() + 1) // 2)
    mask = np.uint64((1 << half) - 1)
    keys = np.random.Generator(np.random.PCG64([seed & 0xFFFFFFFF, epoch, n])).integers(1 << 63, size=ROUNDS)
    out = places.astype(np.uint64)
    todo = np.arange(len(out))
    while len(todo):
        out[todo] = _feistel(out[todo], keys.astype(np.uint64), half, mask)
        todo = todo[out[todo] >= n]
    return out.astype(np.int64)


def _feistel(value: np.ndarray, keys: np.ndarray, half: int, mask: np.uint64) -> np.ndarray:
    left, right = value >> np.uint64(half), value & mask
    for key in keys:
        left, right = right, left ^ (_mix(right + key) & mask)
    return (left << np.uint64(half)) | right


def _mix(value: np.ndarray) -> np.ndarray:
    """The finaliser of splitmix64: every output bit depends on every input bit."""
    value = (value ^ (value >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    value = (value ^ (value >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return value ^ (value >> np.uint64(31))
