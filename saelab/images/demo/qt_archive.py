"""Qt's binary resource archives (.rcc), read: a "qres" header, a tree of nodes, names in UTF-16, blobs.

Layout: the reader of Qt's rcc tool (qtbase, src/corelib/io/qresource.cpp). All numbers are big-endian.
"""

import struct
import zlib
from collections.abc import Iterator
from pathlib import Path

_COMPRESSED, _DIRECTORY, _ZSTD = 1, 2, 4


def read(path: Path) -> Iterator[tuple[str, bytes]]:
    """(name, contents) of every file in the archive, in its own order. Raises ValueError for anything else."""
    data = path.read_bytes()
    try:
        magic, version, tree, blobs, names = struct.unpack_from(">4s4I", data)
        if magic != b"qres":
            raise ValueError(f"{path.name} is no Qt resource archive")
        node_size = 22 if version >= 2 else 14  # since version 2 a node ends with a time stamp
        pending = [(0, "")]
        while pending:
            index, prefix = pending.pop()
            start = tree + index * node_size
            name_at, flags = struct.unpack_from(">IH", data, start)
            name = prefix + _name(data, names + name_at) if index else ""
            if flags & _DIRECTORY:
                count, first = struct.unpack_from(">II", data, start + 6)
                below = f"{name}/" if name else ""
                pending += [(child, below) for child in reversed(range(first, first + count))]
            else:
                (blob_at,) = struct.unpack_from(">I", data, start + 10)
                yield name, _blob(data, blobs + blob_at, flags)
    except (struct.error, zlib.error) as error:
        raise ValueError(f"{path.name} is damaged ({error})") from None


def _name(data: bytes, start: int) -> str:
    (length,) = struct.unpack_from(">H", data, start)
    return data[start + 6 : start + 6 + 2 * length].decode("utf-16-be")  # a 4-byte hash lies between


def _blob(data: bytes, start: int, flags: int) -> bytes:
    (length,) = struct.unpack_from(">I", data, start)
    raw = data[start + 4 : start + 4 + length]
    if len(raw) != length or flags & _ZSTD:
        raise ValueError("a file in the archive is cut off, or compressed with zstd, which is not read here")
    return zlib.decompress(raw[4:]) if flags & _COMPRESSED else raw
