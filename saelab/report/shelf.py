"""Rows of a table, each kept as compressed text: as objects, those of 100,000 units would fill a gigabyte and more."""

import json
import zlib
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, overload

Row = dict[str, Any]
LEVEL = 1  # of compression: the fastest


class Shelf(Sequence[Row]):
    """A sequence of records of what JSON can say; each comes out anew, so a change to one changes nothing here.

    Keys are text and tuples are lists when they come out; numbers keep every bit.
    """

    def __init__(self, rows: Iterable[Row] = ()) -> None:
        """Take in rows one by one, so that an iterator's never stand side by side."""
        self._rows: list[bytes] = []
        for row in rows:
            self.add(row)

    def add(self, row: Row) -> None:
        """Take in one more, at the end."""
        self._rows.append(zlib.compress(json.dumps(row).encode(), LEVEL))

    def __len__(self) -> int:
        return len(self._rows)

    @overload
    def __getitem__(self, at: int) -> Row: ...
    @overload
    def __getitem__(self, at: slice) -> list[Row]: ...
    def __getitem__(self, at: int | slice) -> Row | list[Row]:
        if isinstance(at, slice):
            return [_read(data) for data in self._rows[at]]
        return _read(self._rows[at])

    def __iter__(self) -> Iterator[Row]:
        return map(_read, self._rows)

    @property
    def bytes(self) -> int:
        """What it holds in memory, without the list itself."""
        return sum(map(len, self._rows))


def _read(data: bytes) -> Row:
    row: Row = json.loads(zlib.decompress(data))
    return row
