"""Streamed sets: pictures that are never stored, only an index of where each lies and what it looks like.

The files are read through once to make the index; later passes read them again, a batch at a time.
"""

import base64
import json
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from saelab import artifacts, bars
from saelab.images import duplicates, scan
from saelab.images.build import Entry, Listing
from saelab.images.remote import Spot
from saelab.images.scan import Scan
from saelab.images.user_cache import user_cache
from saelab.text import visible

T = TypeVar("T")

CODE = 2  # version of the index; part of its recipe


@dataclass(frozen=True)
class Item:
    """One picture of a set, encoded."""

    data: bytes  # the file's bytes
    suffix: str  # of its format, with the dot
    caption: str | None = None
    classes: tuple[str, ...] = ()
    name: str = ""  # in the set, for people
    problem: str | None = None  # why the set's reader leaves it out; then there are no bytes


@dataclass(frozen=True)
class Found:
    """One picture of a stream, or what is listed in the place of one."""

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
    entries, seen = [], set()
    skipped: dict[tuple[str, str], None] = {}  # once each: a resumed reading may meet one twice
    names = _short(stream.files)
    for row in artifacts.read_jsonl(folder / "index.jsonl"):
        file = f"{names[row['shard']]}/{row['member']}"
        if row["reason"] or file in seen:
            skipped[file, row["reason"] or "twice in its shard"] = None
            continue
        seen.add(file)
        at = stream.spot(stream.files[row["shard"]], (row["place"][0], row["place"][1]), row["sha256"])
        entries.append(Entry(file, row["caption"], tuple(row["classes"]), at=at, seen=_read_scan(row)))
    return Listing(stream.name, folder, entries, list(skipped), stream.credit)


def first(items: Iterable[T], count: int | None, is_picture: Callable[[T], bool]) -> Iterator[T]:
    """The items up to the `count`th picture (None: all of them)."""
    if count == 0:
        return
    for item in items:
        yield item
        if count is not None and is_picture(item):
            count -= 1
            if count == 0:
                return


def stem(file: str) -> str:
    """A file's name without folders, suffix and query."""
    return Path(file.partition("?")[0]).stem


def _index(table: Path, stream: Stream, take: int | None) -> None:
    """Write a row for each picture; a table that was begun is continued where it stops."""
    rows = artifacts.read_jsonl(table) if table.is_file() else []
    artifacts.write_jsonl(table, rows)  # without the line that a kill cut off
    begun, start = (rows[-1]["shard"], rows[-1]["after"]) if rows else (0, None)

    def found() -> Iterator[tuple[int, Found]]:
        for shard in range(begun, len(stream.files)):
            for own in stream.read(stream.files[shard], start if shard == begun else None):
                yield shard, own

    left = None if take is None else max(0, take - sum(not row.get("lost") for row in rows))
    wanted = first(found(), left, lambda own: own[1].item.problem is None)
    made = scan.in_order(lambda own: _row(*own), wanted, lambda own: len(own[1].item.data))
    bar = bars.show(made, initial=len(rows), total=take, what="looking at the stream", unit="image", leave=True)
    with table.open("a", encoding="utf-8") as out:
        for row in bar:
            out.write(json.dumps(row, ensure_ascii=False) + "\n")
            out.flush()


def _row(shard: int, found: Found) -> dict[str, Any]:
    row: dict[str, Any] = {"shard": shard, "member": visible(found.member), "place": found.place, "after": found.after}
    row |= {"caption": found.item.caption, "classes": found.item.classes}
    if found.item.problem is not None:
        return row | {"reason": found.item.problem, "lost": True}
    seen = scan.look_at(found.item.data)
    if isinstance(seen, str):
        return row | {"reason": seen}
    row |= {"reason": None, "sha256": seen.digest, "size": seen.size}
    small = base64.b64encode(seen.look.small.tobytes()).decode()
    return row | {"bits": seen.look.bits, "mirrored": seen.look.mirrored, "small": small}


def _read_scan(row: dict[str, Any]) -> Scan:
    small = np.frombuffer(base64.b64decode(row["small"]), np.uint8).reshape(duplicates.SMALL, duplicates.SMALL, 3)
    width, height = row["size"]
    return Scan(row["sha256"], (width, height), duplicates.Appearance(row["bits"], row["mirrored"], small))


def _short(files: list[str]) -> list[str]:
    """Each file's name, with as many of its folders as tell the files apart."""
    parts = [[*f.partition("?")[0].split("/")[:-1], stem(f)] for f in files]
    for depth in range(1, max(map(len, parts)) + 1):
        names = ["/".join(own[-depth:]) for own in parts]
        if len(set(names)) == len(names):
            return names
    return [str(number) for number in range(len(files))]  # addresses that differ in their query alone
