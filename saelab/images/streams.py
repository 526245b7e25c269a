"""Streamed sets: pictures that are never stored, only an index of where each lies and what it looks like.

The files are read through once to make the index; later passes read them again, a batch at a time.
"""

import base64
import json
import os
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from saelab import artifacts
from saelab.images import duplicates, scan
from saelab.images.build import Entry, Listing
from saelab.images.remote import Spot
from saelab.images.scan import Scan
from saelab.images.user_cache import user_cache

CODE = 2  # version of the index; part of its recipe
AHEAD = 64  # pictures that may wait for being looked at


@dataclass(frozen=True)
class Item:
    """One picture of a set, encoded."""

    data: bytes  # the file's bytes
    suffix: str  # of its format, with the dot
    caption: str | None = None
    classes: tuple[str, ...] = ()


@dataclass(frozen=True)
class Found:
    """One picture of a stream."""

    item: Item
    member: str  # its name in its file
    place: tuple[int, int]  # where it lies in its file: as `Stream.spot` takes it
    after: Any  # from where the reading goes on behind it


@dataclass(frozen=True)
class Stream:
    """Files that hold many pictures each."""

    name: str  # short, for people
    files: list[str]  # paths or addresses
    recipe: dict[str, Any]  # what decides their contents
    read: Callable[[str, Any], Iterator[Found]]  # a file's pictures from `after` on (None: all)
    spot: Callable[[str, tuple[int, int], str], Spot]  # file, place, SHA-256 -> where to read the picture again
    credit: str = ""


def listing(stream: Stream, take: int | None) -> Listing:
    """The pictures of a stream (the first `take`), out of its index, which is made where it is not there yet."""
    recipe = {"streamed": stream.recipe, "take": take, "code": CODE}

    def build(folder: Path) -> None:
        _index(folder / "index.jsonl", stream, take)

    folder = artifacts.ensure(user_cache(), "streams", stream.name, recipe, build).path
    entries, skipped, seen = [], [], set()
    names = _short(stream.files)
    for row in artifacts.read_jsonl(folder / "index.jsonl"):
        file = f"{names[row['shard']]}/{row['member']}"
        if row["reason"] or file in seen:
            skipped.append((file, row["reason"] or "twice in its shard"))
            continue
        seen.add(file)
        at = stream.spot(stream.files[row["shard"]], (row["place"][0], row["place"][1]), row["sha256"])
        entries.append(Entry(file, row["caption"], tuple(row["classes"]), at=at, seen=_seen(row)))
    return Listing(stream.name, folder, entries, skipped, stream.credit)


def stem(file: str) -> str:
    """A file's name without folders, suffix and query."""
    return Path(file.partition("?")[0]).stem


def _index(table: Path, stream: Stream, take: int | None) -> None:
    """Write a row for each picture; a table that was begun is gone on with where it stops."""
    rows = artifacts.read_jsonl(table) if table.is_file() else []
    artifacts.write_jsonl(table, rows)  # without the line that a kill cut off
    first, start = (rows[-1]["shard"], rows[-1]["after"]) if rows else (0, None)

    def found() -> Iterator[tuple[int, Found]]:
        for shard in range(first, len(stream.files)):
            for own in stream.read(stream.files[shard], start if shard == first else None):
                yield shard, own

    left = None if take is None else max(0, take - len(rows))
    waiting: deque[Future[dict[str, Any]]] = deque()
    with (
        table.open("a", encoding="utf-8") as out,
        ThreadPoolExecutor(min(16, os.cpu_count() or 1)) as pool,  # Pillow releases the interpreter's lock
        tqdm(initial=len(rows), total=take, desc="looking at the stream", unit="image", disable=None) as bar,
    ):

        def write(most: int) -> None:
            while len(waiting) > most:
                out.write(json.dumps(waiting.popleft().result(), ensure_ascii=False) + "\n")
                out.flush()
                bar.update()

        for shard, own in islice(found(), left):
            waiting.append(pool.submit(_row, shard, own))
            write(AHEAD)
        write(0)


def _row(shard: int, found: Found) -> dict[str, Any]:
    seen = scan.look_at(found.item.data)
    row: dict[str, Any] = {"shard": shard, "member": found.member, "place": found.place, "after": found.after}
    row |= {"caption": found.item.caption, "classes": found.item.classes}
    if isinstance(seen, str):
        return row | {"reason": seen}
    row |= {"reason": None, "sha256": seen.digest, "size": seen.size}
    small = base64.b64encode(seen.look.small.tobytes()).decode()
    return row | {"bits": seen.look.bits, "mirrored": seen.look.mirrored, "small": small}


def _seen(row: dict[str, Any]) -> Scan:
    small = np.frombuffer(base64.b64decode(row["small"]), np.uint8).reshape(duplicates.SMALL, duplicates.SMALL, 3)
    width, height = row["size"]
    return Scan(row["sha256"], (width, height), duplicates.Look(row["bits"], row["mirrored"], small))


def _short(files: list[str]) -> list[str]:
    """Each file's name, with as many of its folders as tell the files apart."""
    parts = [[*f.partition("?")[0].split("/")[:-1], stem(f)] for f in files]
    for depth in range(1, max(map(len, parts)) + 1):
        names = ["/".join(own[-depth:]) for own in parts]
        if len(set(names)) == len(names):
            return names
    return [str(number) for number in range(len(files))]  # addresses that differ in their query alone
