"""Pictures in webdataset tars, on this disk or elsewhere: copied once, or streamed, so that they are never stored.

A streamed set is read through once and remembered as an index: for each picture its shard, name, place and hash, what
it looks like, its caption and classes. Later passes read the tars again, front to back and a batch at a time; a single
picture is fetched by its place.
"""

import base64
import glob
import json
import os
import re
import tarfile
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import numpy as np
from tqdm import tqdm

from saelab import artifacts
from saelab.errors import UserError
from saelab.images import duplicates, remote, scan, sources
from saelab.images.build import Entry, Listing
from saelab.images.decode import SUFFIXES
from saelab.images.hubs import Item, copied
from saelab.images.places import user_cache
from saelab.images.scan import Scan

CODE = 1  # version of the index; part of its recipe
AHEAD = 64  # pictures that may wait for being looked at


@dataclass(frozen=True)
class Sample:
    """One picture of a tar, with its place."""

    item: Item
    member: str  # its name in the tar
    offset: int  # of its first byte in the tar
    after: int  # where the next sample begins


def webdataset(
    shards: str | Sequence[str], take: int | None = None, names: Sequence[str] = (), streaming: bool = False
) -> Listing:
    """webdataset tars: members of one key (name up to the first dot) make one sample.

    shards: paths, patterns ("data/train-*.tar"), addresses ("https://host/train-{000..146}.tar"; also what fsspec
    opens). Read are pictures, .txt (caption), .cls (class number or name; `names` names the numbers) and .json (its
    "caption", "classes", "class" or "label"). take: only the first pictures. streaming: keep an index instead of the
    pictures; the tars must be uncompressed. Raises UserError for missing, broken and compressed tars.
    """
    patterns = [shards] if isinstance(shards, str) else list(shards)
    files = sorted({f for p in patterns for f in _files(p)})
    if not files:
        raise UserError("images.shards", patterns, "no such file", "give the tars' paths or a pattern such as d/*.tar")
    with ThreadPoolExecutor(16) as pool:
        sizes = dict(zip(files, pool.map(remote.size, files), strict=True))
    title = f"webdataset {patterns[0]}"
    if streaming:
        return _streamed(sizes, take, list(names), title)

    def items(start: int) -> Iterator[Item]:
        found = (s.item for f in files for s in samples(f, sizes[f], list(names), mode="r|*"))
        yield from islice(found, start, take)

    recipe = {"webdataset": sizes, "take": take, "names": list(names)}
    return copied(_stem(files[0]), recipe, items, title, take)


def samples(file: str, size: int, names: Sequence[str], start: int = 0, mode: str = "r|") -> Iterator[Sample]:
    """The samples of a tar of `size` bytes that hold a picture, from the one that begins at byte `start` on.

    mode: of tarfile; "r|*" reads compressed tars too, but then places mean nothing.
    """
    try:
        with tarfile.open(fileobj=remote.stream(file, start, size), mode=mode) as tar:  # type: ignore[call-overload]
            parts: dict[str, tuple[str, int, bytes]] = {}
            current = None
            for member in tar:
                if not member.isfile():
                    continue
                key, kind = _key(member.name)
                if key != current:
                    yield from _sample(parts, names, start + member.offset)
                    parts, current = {}, key
                content = tar.extractfile(member)
                parts[kind] = member.name, start + member.offset_data, content.read() if content else b""
            end = start + tar.offset
            if tar.fileobj.comptype == "tar":
                _check_end(file, end, size)
            yield from _sample(parts, names, end)
    except (tarfile.TarError, EOFError) as error:
        if start and str(error) == "empty file":
            return  # the last sample was the end
        wanted = "not a whole tar file" if mode == "r|*" else "not a whole uncompressed tar file"
        raise UserError("images.shards", file, f"{wanted} ({error})", "fetch it again") from None
    except OSError as error:
        raise UserError("images.shards", file, f"can't be read ({remote.why(error)})", "run again to go on") from None


def _check_end(file: str, end: int, size: int) -> None:
    """Raise TarError unless a tar that was read up to byte `end` ends there: tarfile stops at rubbish in silence."""
    block = remote.part(file, end, min(end + tarfile.BLOCKSIZE, size))
    if any(block) or 0 < len(block) < tarfile.BLOCKSIZE:
        raise tarfile.ReadError(f"cut off or damaged at byte {end}")


def _files(pattern: str) -> list[str]:
    if remote.is_remote(pattern):
        address = urlsplit(pattern)
        if address.password is not None:  # it would be written into the index and the image set
            plain = f"{address.scheme}://{address.hostname}"
            raise UserError("images.shards", plain, "must hold no password", "serve the tars without one, or copy them")
        return remote.expanded(pattern)
    local = (f for p in remote.expanded(pattern) for f in glob.glob(str(Path(p).expanduser())))  # noqa: PTH207
    return [str(Path(f).absolute()) for f in local]


def _stem(file: str) -> str:
    return Path(file.partition("?")[0]).stem


def _key(name: str) -> tuple[str, str]:
    folder, _, last = name.rpartition("/")
    stem, _, kind = last.partition(".")
    return f"{folder}/{stem}", kind.lower()


def _sample(parts: dict[str, tuple[str, int, bytes]], names: Sequence[str], after: int) -> Iterator[Sample]:
    pictures = [k for k in parts if f".{k.rsplit('.', 1)[-1]}" in SUFFIXES]
    if not pictures:
        return
    picture = min(pictures, key=len)  # "png" before "seg.png"
    texts = {kind: data for kind, (_, _, data) in parts.items() if kind in ("json", "txt", "cls")}
    try:
        about = json.loads(texts.get("json", b"{}"))
    except ValueError:
        about = {}
    about = about if isinstance(about, dict) else {}
    caption = sources.text(texts["txt"].decode("utf-8", "replace") if "txt" in texts else about.get("caption"))
    told = next((about[k] for k in ("classes", "class", "label") if k in about), None)
    values = told if isinstance(told, list) else [] if told is None else [told]
    if "cls" in texts:
        values = [texts["cls"].decode("utf-8", "replace").strip()]
    classes = tuple(names[int(v)] if re.fullmatch(r"\d+", str(v)) and int(v) < len(names) else str(v) for v in values)
    member, offset, data = parts[picture]
    yield Sample(Item(data, f".{picture.rsplit('.', 1)[-1]}", caption, classes), member, offset, after)


def _streamed(sizes: dict[str, int], take: int | None, names: list[str], credit: str) -> Listing:
    """The listing of a streamed set, out of its index, which is made where it is not there yet."""
    files = list(sizes)
    recipe = {"streamed": sizes, "take": take, "names": names, "code": CODE}

    def build(folder: Path) -> None:
        _index(folder / "index.jsonl", files, sizes, names, take)

    folder = artifacts.ensure(user_cache(), "streams", _stem(files[0]), recipe, build).path
    entries, skipped, seen = [], [], set()
    shards = _short(files)
    for row in artifacts.read_jsonl(folder / "index.jsonl"):
        file = f"{shards[row['shard']]}/{row['member']}"
        if row["reason"] or file in seen:
            skipped.append((file, row["reason"] or "twice in its shard"))
            continue
        seen.add(file)
        at = remote.Stretch(files[row["shard"]], row["offset"], row["bytes"], row["sha256"])
        entries.append(Entry(file, row["caption"], tuple(row["classes"]), at=at, seen=_seen(row)))
    return Listing(_stem(files[0]), folder, entries, skipped, credit)


def _index(table: Path, files: list[str], sizes: dict[str, int], names: list[str], take: int | None) -> None:
    """Write a row for each picture; a table that was begun is gone on with where it stops."""
    rows = artifacts.read_jsonl(table) if table.is_file() else []
    artifacts.write_jsonl(table, rows)  # without the line that a kill cut off
    first, start = (rows[-1]["shard"], rows[-1]["after"]) if rows else (0, 0)

    def found() -> Iterator[tuple[int, Sample]]:
        for shard in range(first, len(files)):
            begin = start if shard == first else 0
            for sample in samples(files[shard], sizes[files[shard]], names, begin):
                yield shard, sample

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

        for shard, sample in islice(found(), left):
            waiting.append(pool.submit(_row, shard, sample))
            write(AHEAD)
        write(0)


def _row(shard: int, sample: Sample) -> dict[str, Any]:
    seen = scan.look_at(sample.item.data)
    row: dict[str, Any] = {"shard": shard, "member": sample.member, "offset": sample.offset, "after": sample.after}
    row |= {"bytes": len(sample.item.data), "caption": sample.item.caption, "classes": sample.item.classes}
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
    """Each shard's name, with as many of its folders as tell the shards apart."""
    parts = [[*f.partition("?")[0].split("/")[:-1], _stem(f)] for f in files]
    for depth in range(1, max(map(len, parts)) + 1):
        names = ["/".join(own[-depth:]) for own in parts]
        if len(set(names)) == len(names):
            return names
    return [str(number) for number in range(len(files))]  # addresses that differ in their query alone
