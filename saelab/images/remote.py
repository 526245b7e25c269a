"""Files that may lie elsewhere, read in parts: local paths, http(s), and whatever fsspec opens (s3://, gs://, hf://).

A stretch of bytes with its hash stands for one picture within a large file. Nothing that is read is kept on disk.

http(s) has a client of its own, for what fsspec's doesn't promise: a part never takes more memory than was asked for
(fsspec reads the whole body of an answer that ignores Range); a server that ignores it is refused; failures that may
pass are tried again, and others keep their status (fsspec's `size` calls every one a file that isn't found).
"""

import http.client
import io
import itertools
import logging
import re
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, TypeVar

from saelab.errors import UserError

log = logging.getLogger("saelab")
T = TypeVar("T")

TRIES = 5  # of a request that fails for a moment: 5xx, 408, 429, time-outs, cut lines
PAUSE = 0.5  # seconds before the second try, twice as long each time
TIMEOUT = 60.0  # seconds without a byte


@dataclass(frozen=True)
class Stretch:
    """Where the bytes of one picture lie."""

    file: str  # a path or an address
    offset: int  # of the first byte
    size: int  # number of bytes
    sha256: str  # of them, when they were first read


@dataclass(frozen=True)
class Cell:
    """Where a picture lies in a Parquet file."""

    file: str  # a path or an address
    group: int  # number of the row group
    row: int  # number of the row in it
    column: str  # of pictures
    sha256: str  # of its bytes, when they were first read


Spot = Stretch | Cell


def row(spot: Spot) -> dict[str, Any]:
    """A spot as keys of a line of images.jsonl."""
    if isinstance(spot, Cell):
        return {"shard": spot.file, "cell": [spot.group, spot.row], "column": spot.column, "sha256": spot.sha256}
    return {"shard": spot.file, "at": [spot.offset, spot.size], "sha256": spot.sha256}


def spot(row: dict[str, Any]) -> Spot:
    """The spot in a line of images.jsonl."""
    if "cell" in row:
        return Cell(row["shard"], row["cell"][0], row["cell"][1], row["column"], row["sha256"])
    return Stretch(row["shard"], row["at"][0], row["at"][1], row["sha256"])


class Changed(Exception):
    """What is read isn't what it was, or isn't there any more; its text says why, in a few words."""


def size(file: str) -> int:
    """Bytes of a file. Raises UserError where it is missing, or where the server can't give parts of files."""
    if not is_remote(file):
        path = Path(file)
        if not path.is_file():
            raise UserError("images.shards", file, "no such file")
        return path.stat().st_size
    try:
        if not _is_http(file):
            system, path_there = _fsspec(file)
            return int(system.size(path_there))
        return _retry(file, lambda: _total(file))
    except (OSError, ValueError) as error:
        raise UserError("images.shards", file, f"can't be read ({why(error)})", "check the address") from None


def part(file: str, start: int, stop: int) -> bytes:
    """The bytes start..stop-1 of a file. Raises OSError, after some tries where the failure may pass."""
    if not is_remote(file):
        with Path(file).open("rb") as opened:
            opened.seek(start)
            return opened.read(stop - start)
    if not _is_http(file):
        system, path = _fsspec(file)
        data: bytes = system.cat_file(path, start=start, end=stop)
        return data
    return _retry(file, lambda: _whole_part(file, start, stop))


class Sequential(io.RawIOBase):
    """A file from `start` on, front to back, in pieces; a line that is cut is taken up where it was."""

    def __init__(self, file: str, start: int, total: int, piece: int = 8 << 20) -> None:
        self.file, self.position, self.total, self.piece = file, start, total, piece
        self._buffer, self._used = b"", 0

    def readable(self) -> bool:
        """True."""
        return True

    def readinto(self, target: Any) -> int:
        """Fill `target` as far as the piece goes; 0 at the end."""
        if self._used == len(self._buffer):
            stop = min(self.position + self.piece, self.total)
            if self.position == stop:
                return 0
            self._buffer, self._used = part(self.file, self.position, stop), 0
            self.position = stop
        count = min(len(target), len(self._buffer) - self._used)
        target[:count] = self._buffer[self._used : self._used + count]
        self._used += count
        return count


class Seekable(io.RawIOBase):
    """A file that is read at any place; each read is one request."""

    def __init__(self, file: str) -> None:
        self.file, self.total, self.position = file, size(file), 0

    def readable(self) -> bool:
        """True."""
        return True

    def seekable(self) -> bool:
        """True."""
        return True

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        """Go to a place, as files do."""
        self.position = offset + {io.SEEK_SET: 0, io.SEEK_CUR: self.position, io.SEEK_END: self.total}[whence]
        return self.position

    def tell(self) -> int:
        """The place."""
        return self.position

    def readinto(self, target: Any) -> int:
        """Fill `target`, as far as the file goes."""
        stop = min(self.position + len(target), self.total)
        data = part(self.file, self.position, stop) if stop > self.position else b""
        target[: len(data)] = data
        self.position += len(data)
        return len(data)


def stream(file: str, start: int, total: int) -> BinaryIO:
    """A file of `total` bytes from `start` on, to be read once, front to back."""
    return io.BufferedReader(Sequential(file, start, total))


def is_remote(file: str) -> bool:
    """Is it an address rather than a path?"""
    return re.match(r"[a-z][a-z0-9+.-]+://", file) is not None


def expand_braces(pattern: str) -> list[str]:
    """`a-{000..012}.tar` as its thirteen names (several braces: all combinations); anything else as it is."""
    found = re.search(r"\{(\d+)\.\.(\d+)\}", pattern)
    if found is None:
        return [pattern]
    first, last = found[1], found[2]
    numbers = (str(n).zfill(len(first)) for n in range(int(first), int(last) + 1))
    return [f"{pattern[: found.start()]}{n}{rest}" for n in numbers for rest in expand_braces(pattern[found.end() :])]


def _retry(file: str, action: Callable[[], T]) -> T:
    """What `action` gives; tried again where the failure may pass. Raises OSError."""
    for attempt in itertools.count(1):
        try:
            return action()
        except (OSError, http.client.HTTPException) as error:
            if attempt == TRIES or not _may_pass(error):
                raise error if isinstance(error, OSError) else ConnectionError(why(error)) from None
            log.info("%s: %s; trying again", file, why(error))
            time.sleep(PAUSE * 2 ** (attempt - 1))
    raise AssertionError  # never reached


def _total(url: str) -> int:
    with _request(url, 0, 1) as answer:
        sent = answer.headers["Content-Range"] or ""
    if not sent.rpartition("/")[2].isdecimal():
        raise ConnectionError(f"the server doesn't say how long it is (Content-Range: {sent or 'none'})")
    return int(sent.rpartition("/")[2])


def _whole_part(url: str, start: int, stop: int) -> bytes:
    with _request(url, start, stop) as answer:
        data: bytes = answer.read(stop - start + 1)  # whatever the server sends, no more is held
    if len(data) != stop - start:
        what = "more bytes than were asked for" if len(data) > stop - start else f"{len(data)} of {stop - start} bytes"
        raise ConnectionError(f"{what} came")
    return data


def _request(url: str, start: int, stop: int) -> Any:
    """The answer to a request for a part. Raises UserError where the server sends the whole instead."""
    request = urllib.request.Request(url, headers={"Range": f"bytes={start}-{stop - 1}", "User-Agent": "saelab"})
    answer = urllib.request.urlopen(request, timeout=TIMEOUT)
    if answer.status != 206:
        answer.close()
        raise UserError("images.shards", url, "the server sends no parts of files", "copy them: images.streaming=false")
    return answer


def _is_http(file: str) -> bool:
    return file.startswith(("http://", "https://"))


def _fsspec(url: str) -> tuple[Any, str]:
    """The file system of an address and the path in it."""
    try:
        from fsspec.core import url_to_fs

        system, path = url_to_fs(url)
    except (ImportError, ValueError) as error:
        raise UserError("images.shards", url, f"can't be opened ({why(error)})", "install what fsspec asks") from None
    return system, path


def _may_pass(error: Exception) -> bool:
    if isinstance(error, urllib.error.HTTPError):
        return error.code in (408, 429) or error.code >= 500
    return True


def why(error: Exception) -> str:
    reason = getattr(error, "reason", None)
    return " ".join(f"{getattr(error, 'code', '')} {reason or error or type(error).__name__}".split())[:160]
