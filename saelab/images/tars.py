"""Pictures in webdataset tars, on this disk or elsewhere: copied once, or streamed, so that they are never stored."""

import glob
import json
import logging
import re
import tarfile
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from urllib.parse import SplitResult, parse_qsl, urlsplit

from saelab.errors import UserError
from saelab.images import remote, sources, streams
from saelab.images.build import Listing
from saelab.images.decode import SUFFIXES
from saelab.images.hubs import copy_items
from saelab.images.streams import Found, Item
from saelab.text import visible

log = logging.getLogger("saelab")

LARGEST = 1 << 30  # bytes of a member that are read: none of a larger one is a picture that can be decoded
LARGEST_TEXT = 1 << 24
PIECE = 8 << 20  # bytes looked through at once for a header; whole blocks
TEXTS = ("json", "txt", "cls")
CODE = 2  # version of what is read from a tar; part of the recipes of copies and indexes
# Parameters of an address that let whoever reads it in: signed links of buckets, tokens.
SECRET = re.compile(r"(?:.*[-_])?(?:sig|signature|token|credential|password|secret|api_?key)", re.IGNORECASE)


def webdataset(
    shards: str | Sequence[str], take: int | None = None, names: Sequence[str] = (), streaming: bool = False
) -> Listing:
    """webdataset tars: members of one key (name up to the first dot) make one sample, which has one picture.

    shards: paths, patterns ("data/train-*.tar"), addresses ("https://host/train-{000..146}.tar"; also what fsspec
    opens). Read are pictures, .txt (caption), .cls (class number or name; `names` names the numbers) and .json (its
    "caption", "classes", "class" or "label"). take: only the first pictures. streaming: keep an index instead of the
    pictures; the tars must be uncompressed. Listed as skipped are pictures that share their key with another, links,
    members of more than 1 GB, and stretches that are damaged. Raises UserError for missing and cut-off tars, and for
    compressed ones that are to be streamed.
    """
    patterns = [shards] if isinstance(shards, str) else list(shards)
    files = sorted({f for p in patterns for f in _files(p)})
    if not files:
        raise UserError("images.shards", patterns, "no such file", "give the tars' paths or a pattern such as d/*.tar")
    with ThreadPoolExecutor(16) as pool:
        sizes = dict(zip(files, pool.map(remote.size, files), strict=True))
    title = f"webdataset {patterns[0]}"
    if streaming:

        def read(file: str, after: int | None) -> Iterator[Found]:
            return samples(file, sizes[file], names, after or 0)

        contents = {"tars": sizes, "names": list(names), "code": CODE}
        return streams.listing(streams.Stream(streams.stem(files[0]), files, contents, read, _spot, title), take)

    def items(start: int) -> Iterator[Item]:
        found = (s.item for f in files for s in samples(f, sizes[f], list(names), mode="r|*"))
        yield from islice(streams.first(found, take, lambda item: item.problem is None), start, None)

    recipe = {"webdataset": sizes, "take": take, "names": list(names), "code": CODE}
    return copy_items(streams.stem(files[0]), recipe, items, title, take)


def samples(file: str, size: int, names: Sequence[str], start: int = 0, mode: str = "r|") -> Iterator[Found]:
    """The samples of a tar of `size` bytes that hold a picture, from the one that begins at byte `start` on.

    Between them, as `Found` with a problem, what is left out. mode: of tarfile; "r|*" reads compressed tars too, but
    then places mean nothing.
    """
    reading = _Reading(file, size, names, start, start)
    try:
        while True:
            try:
                yield from reading.run(mode)
                bad = None if reading.compressed else _after(file, reading.end, size)
                error: Exception = tarfile.ReadError(f"cut off or damaged at byte {bad}")
            except (tarfile.TarError, EOFError, ValueError, OverflowError) as stopped:
                bad, error = reading.end, stopped
                if bad == start and start and str(error) == "empty file":
                    return  # the last sample was the end
            if bad is None:
                return
            further = None if reading.compressed or bad == 0 else _next_header(file, bad + tarfile.BLOCKSIZE, size)
            if further is None:
                wanted = "not a whole tar file" if mode == "r|*" else "not a whole uncompressed tar file"
                raise UserError("images.shards", file, f"{wanted} ({error})", "fetch it again")
            yield _leave_out(f"byte {bad}", f"damaged; {further - bad} bytes of the tar are passed over", further)
            reading = _Reading(file, size, names, further, further)
    except OSError as error:
        raise UserError("images.shards", file, f"can't be read ({remote.why(error)})", "run again to go on") from None


@dataclass
class _Reading:
    """One go through a tar, from a header on to where tarfile stops."""

    file: str
    size: int
    names: Sequence[str]
    start: int  # byte of the first header
    end: int  # byte behind what was read well
    compressed: bool = False

    def run(self, mode: str) -> Iterator[Found]:
        """Its samples. Raises TarError and the like where it is broken; `end` then says how far it was whole."""
        source = remote.stream(self.file, self.start, self.size)
        with tarfile.open(fileobj=source, mode=mode) as tar:  # type: ignore[call-overload]
            self.compressed = tar.fileobj.comptype != "tar"
            sample = _Sample(self.start)
            for member in tar:
                key, kind = _key(member.name)
                if member.isfile() and key != sample.key:
                    yield from sample.found(self.names, self.start + member.offset)
                    sample = _Sample(self.start + member.offset, key)
                self._read(tar, member, kind, sample)
                self.end = self.start + tar.offset  # of the next header
            yield from sample.found(self.names, self.end)

    def _read(self, tar: tarfile.TarFile, member: tarfile.TarInfo, kind: str, sample: "_Sample") -> None:
        if _is_picture(kind) and (member.islnk() or member.issym()):
            sample.lost.append((member.name, "a link; only files of a tar are read"))
        elif not member.isfile() or not (kind in TEXTS or _is_picture(kind)):
            return
        elif member.size > (LARGEST_TEXT if kind in TEXTS else LARGEST) or member.sparse is not None:
            if _is_picture(kind):
                sample.lost.append((member.name, f"passed over ({member.size} bytes, or sparse)"))
            log.warning("%s: %s is passed over (%d bytes, or sparse)", self.file, visible(member.name), member.size)
        elif kind in TEXTS or sample.wants(kind, member.name):
            content = tar.extractfile(member)
            data = content.read() if content else b""
            sample.parts[kind] = member.name, self.start + member.offset_data, data


@dataclass
class _Sample:
    """Members of one key."""

    begin: int  # byte of its first header
    key: str | None = None
    parts: dict[str, tuple[str, int, bytes]] = field(default_factory=dict)  # kind -> name, byte, contents
    lost: list[tuple[str, str]] = field(default_factory=list)  # name and reason of pictures that are left out

    def wants(self, kind: str, name: str) -> bool:
        """Whether a picture is the one that is kept: that of the shortest ending, "png" before "seg.png"."""
        held = next((k for k in self.parts if _is_picture(k)), None)
        if held is not None and len(held) <= len(kind):
            self.lost.append((name, _shares(self.parts[held][0])))
            return False
        if held is not None:
            self.lost.append((self.parts.pop(held)[0], _shares(name)))
        return True

    def found(self, names: Sequence[str], after: int) -> Iterator[Found]:
        """What is left out (behind which a reading goes on with this sample, not to miss its picture), the picture."""
        held = next((k for k in self.parts if _is_picture(k)), None)
        for name, reason in self.lost:
            yield _leave_out(name, reason, self.begin)
        if held is not None:
            member, offset, data = self.parts[held]
            caption, classes = _about({k: d for k, (_, _, d) in self.parts.items() if k in TEXTS}, names)
            item = Item(data, f".{held.rsplit('.', 1)[-1]}", caption, classes, visible(member))
            yield Found(item, visible(member), (offset, len(data)), after)


def _shares(kept: str) -> str:
    return f"shares its key (the name up to the first dot) with {visible(kept)}, which is kept"


def _leave_out(name: str, reason: str, after: int) -> Found:
    return Found(Item(b"", "", name=visible(name), problem=reason), visible(name), (0, 0), after)


def _after(file: str, end: int, size: int) -> int | None:
    """The byte from which on a tar that was read up to byte `end` is damaged: tarfile stops at rubbish in silence."""
    block = remote.part(file, end, min(end + tarfile.BLOCKSIZE, size))
    return end if any(block) or 0 < len(block) < tarfile.BLOCKSIZE else None


def _next_header(file: str, start: int, size: int) -> int | None:
    """The first byte from `start` on, in whole blocks, at which a member begins: its header has a checksum."""
    for piece in range(start, size, PIECE):
        data = remote.part(file, piece, min(piece + PIECE, size))
        for place in range(0, len(data) - tarfile.BLOCKSIZE + 1, tarfile.BLOCKSIZE):
            block = data[place : place + tarfile.BLOCKSIZE]
            if block[257:262] == b"ustar":
                try:
                    tarfile.TarInfo.frombuf(block, "utf-8", "surrogateescape")
                except (tarfile.TarError, ValueError):
                    continue
                return piece + place
    return None


def _files(pattern: str) -> list[str]:
    if remote.is_remote(pattern):
        address = urlsplit(pattern)
        if _lets_in(address):  # it would be written into the index, the image set and reports
            plain = f"{address.scheme}://{address.hostname}"
            wanted = "must hold no password, token or signature"
            raise UserError("images.shards", plain, wanted, "serve the tars without one, or copy them")
        return remote.expand_braces(pattern)
    local = (f for p in remote.expand_braces(pattern) for f in glob.glob(str(Path(p).expanduser())))  # noqa: PTH207
    return [str(Path(f).absolute()) for f in local]


def _lets_in(address: SplitResult) -> bool:
    """Whether an address holds a secret. The user of an address that isn't http may be a bucket's or a login's name."""
    user = address.password is not None or (address.scheme in ("http", "https") and address.username is not None)
    return user or any(SECRET.fullmatch(name) for name, _ in parse_qsl(address.query, keep_blank_values=True))


def _spot(file: str, place: tuple[int, int], sha256: str) -> remote.Spot:
    return remote.Stretch(file, *place, sha256)


def _key(name: str) -> tuple[str, str]:
    folder, _, last = name.rpartition("/")
    stem, _, kind = last.partition(".")
    return f"{folder}/{stem}", kind.lower()


def _is_picture(kind: str) -> bool:
    return f".{kind.rsplit('.', 1)[-1]}" in SUFFIXES


def _about(texts: dict[str, bytes], names: Sequence[str]) -> tuple[str | None, tuple[str, ...]]:
    """Caption and classes; a text that can't be read says nothing."""
    try:
        about = json.loads(texts.get("json", b"{}"))
    except (ValueError, RecursionError):
        about = {}
    about = about if isinstance(about, dict) else {}
    caption = sources.text(texts["txt"].decode("utf-8", "replace") if "txt" in texts else about.get("caption"))
    given = next((about[k] for k in ("classes", "class", "label") if k in about), None)
    values = given if isinstance(given, list) else [] if given is None else [given]
    if "cls" in texts:
        values = [texts["cls"].decode("utf-8", "replace").strip()]
    return caption, tuple(visible(_class(str(value), names)) for value in values)


def _class(value: str, names: Sequence[str]) -> str:
    """The name that a number stands for."""
    number = int(value) if re.fullmatch(r"[0-9]{1,9}", value) else len(names)
    return names[number] if number < len(names) else value
