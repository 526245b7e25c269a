"""One look into every file of a set: its hash, size and appearance, or why it can't be used.

What a look finds is kept in the user's cache by content hash: opening a large set again costs reading and hashing its
files, not decoding them.
"""

import hashlib
import logging
import os
import zipfile
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import numpy as np

from saelab import artifacts, bars
from saelab.images import decode, duplicates
from saelab.images.user_cache import user_cache

log = logging.getLogger("saelab")
T = TypeVar("T")
R = TypeVar("R")

VERSION = 1  # raise it when `decode` or `duplicates.look` give something else for the same bytes
WORTH = 500  # pictures from which on a memory is kept
AHEAD = 64  # pictures that may wait for being looked at
HELD = 256 << 20  # bytes of pictures that wait: fewer of them where they are large
SMALL = 4 << 20  # bytes of a file that is read whole; a larger one is read in pieces, twice

_SIDE = 256  # enough for hashes of 32 x 32; JPEGs are decoded at a fraction of their size


@dataclass(frozen=True)
class Scan:
    """What one look into a file tells."""

    digest: str  # SHA-256 of the bytes
    size: tuple[int, int]  # width and height, upright
    look: duplicates.Appearance
    mask_digest: str = ""  # SHA-256 of the label image's bytes
    present: tuple[int, ...] = ()  # class numbers in the label image


def look_at_all(root: Path, files: Sequence[tuple[str, str | None]], title: str) -> list[Scan | str]:
    """A Scan for each (picture, label image or None), relative to root, or the reason why it can't be used."""
    memory = _recall(root) if len(files) >= WORTH else {}
    known = len(memory)

    def own(file: tuple[str, str | None]) -> Scan | str:
        return _look_at(root, *file, memory)

    outcomes = list(bars.show(in_order(own, files), total=len(files), what=title, unit="image"))
    if len(files) >= WORTH and len(memory) > known:
        _remember(root, memory)
    return outcomes


def in_order(call: Callable[[T], R], items: Iterable[T], size: Callable[[T], int] = lambda _: 0) -> Iterator[R]:
    """`call` of each item, by threads (Pillow and hashlib release the interpreter's lock), in the order of the items.

    At most AHEAD items are taken before their turn, fewer where their sizes sum up to more than HELD bytes.
    """
    waiting: deque[tuple[int, Future[R]]] = deque()
    held = 0
    with ThreadPoolExecutor(min(16, os.cpu_count() or 1)) as pool:
        for item in items:
            waiting.append((size(item), pool.submit(call, item)))
            held += waiting[-1][0]
            while len(waiting) > AHEAD or (held > HELD and len(waiting) > 1):
                taken, first = waiting.popleft()
                yield first.result()
                held -= taken
        while waiting:
            yield waiting.popleft()[1].result()


def look_at(data: bytes) -> Scan | str:
    """A Scan of a picture's bytes, or the reason why they can't be used."""
    try:
        image, size = decode.glance(data, _SIDE)
    except decode.Unreadable as error:
        return str(error)
    return Scan(hashlib.sha256(data).hexdigest(), size, duplicates.look(image))


_Memory = dict[str, tuple[tuple[int, int], duplicates.Appearance]]


def _look_at(root: Path, file: str, mask: str | None, memory: _Memory) -> Scan | str:
    try:
        data, digest = _read(root / file)
        if digest not in memory:
            image, size = decode.glance(root / file if data is None else data, _SIDE)
            memory[digest] = (size, duplicates.look(image))
    except decode.Unreadable as error:
        return str(error)
    except OSError as error:
        return error.strerror or str(error)
    size, look = memory[digest]
    if mask is None:
        return Scan(digest, size, look)
    try:
        present = decode.present_labels(root / mask)
        mask_digest = _read(root / mask)[1]
    except (decode.Unreadable, OSError) as error:
        return f"its label image {mask}: {error}"
    return Scan(digest, size, look, mask_digest, present)


def _read(path: Path) -> tuple[bytes | None, str]:
    """A file's bytes, None where it is large, and their SHA-256."""
    with decode.regular(path) as file:
        if os.fstat(file.fileno()).st_size > SMALL:
            return None, hashlib.file_digest(file, "sha256").hexdigest()
        data = file.read(SMALL + 1)  # no more, even if it grows
    return data, hashlib.sha256(data).hexdigest()


def _place(root: Path) -> Path:
    return user_cache("looks", f"{hashlib.sha256(os.fsencode(root.resolve())).hexdigest()[:16]}-{VERSION}.npz")


def _recall(root: Path) -> _Memory:
    try:
        with np.load(_place(root), allow_pickle=False) as kept:
            digests, sizes, bits, small = (kept[k] for k in ("digests", "sizes", "bits", "small"))
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile):
        return {}  # none yet, or a damaged one: it is only a memory
    rows = zip(digests.tolist(), sizes.tolist(), bits.tolist(), small, strict=True)
    return {d: ((w, h), duplicates.Appearance(a, b, s)) for d, (w, h), (a, b), s in rows}


def _remember(root: Path, memory: _Memory) -> None:
    looks = [look for _, look in memory.values()]
    try:
        _place(root).parent.mkdir(parents=True, exist_ok=True)
        with artifacts.atomic(_place(root)) as temporary, temporary.open("wb") as file:
            np.savez(
                file,
                digests=np.array(list(memory)),
                sizes=np.array([size for size, _ in memory.values()], dtype=np.int64),
                bits=np.array([(x.bits, x.mirrored) for x in looks], dtype=np.uint64),
                small=np.stack([x.small for x in looks]),
            )
    except OSError as error:
        log.info("what was seen in %s is not kept (%s)", root, error)
