"""Pictures in webdataset tars, on this disk or elsewhere: copied once, or streamed, so that they are never stored."""

import glob
import json
import logging
import re
import tarfile
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import islice
from pathlib import Path
from urllib.parse import SplitResult, parse_qsl, urlsplit

from saelab.errors import UserError
from saelab.images import remote, sources, streams
from saelab.images.build import Listing
from saelab.images.decode import SUFFIXES
from saelab.images.hubs import copied
from saelab.images.streams import Found, Item

log = logging.getLogger("saelab")

LARGEST = 1 << 30  # bytes of a member that are read: none of a larger one is a picture that can be decoded
TEXTS = ("json", "txt", "cls")
# Parameters of an address that let whoever reads it in: signed links of buckets, tokens.
SECRET = re.compile(r"(?:.*[-_])?(?:sig|signature|token|credential|password|secret|api_?key)", re.IGNORECASE)


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

        def read(file: str, after: int | None) -> Iterator[Found]:
            return samples(file, sizes[file], names, after or 0)

        contents = {"tars": sizes, "names": list(names)}
        return streams.listing(streams.Stream(streams.stem(files[0]), files, contents, read, _spot, title), take)

    def items(start: int) -> Iterator[Item]:
        found = (s.item for f in files for s in samples(f, sizes[f], list(names), mode="r|*"))
        yield from islice(found, start, take)

    recipe = {"webdataset": sizes, "take": take, "names": list(names)}
    return copied(streams.stem(files[0]), recipe, items, title, take)


def samples(file: str, size: int, names: Sequence[str], start: int = 0, mode: str = "r|") -> Iterator[Found]:
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
                if not (kind in TEXTS or _is_picture(kind)):
                    continue
                if member.size > LARGEST or member.sparse is not None:  # a sparse one is mostly made up of nothing
                    log.warning("%s: %s is passed over (%d bytes, or sparse)", file, member.name, member.size)
                    continue
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
        if _lets_in(address):  # it would be written into the index, the image set and reports
            plain = f"{address.scheme}://{address.hostname}"
            wanted = "must hold no password, token or signature"
            raise UserError("images.shards", plain, wanted, "serve the tars without one, or copy them")
        return remote.expanded(pattern)
    local = (f for p in remote.expanded(pattern) for f in glob.glob(str(Path(p).expanduser())))  # noqa: PTH207
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


def _sample(parts: dict[str, tuple[str, int, bytes]], names: Sequence[str], after: int) -> Iterator[Found]:
    pictures = [k for k in parts if _is_picture(k)]
    if not pictures:
        return
    picture = min(pictures, key=len)  # "png" before "seg.png"
    texts = {kind: data for kind, (_, _, data) in parts.items() if kind in TEXTS}
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
    item = Item(data, f".{picture.rsplit('.', 1)[-1]}", caption, classes)
    yield Found(item, member, (offset, len(data)), after)
