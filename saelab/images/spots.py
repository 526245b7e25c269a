"""The bytes of streamed pictures: those that are near each other are fetched together, and all are checked."""

import hashlib
from collections.abc import Iterator, Sequence
from typing import Any

from saelab.images import remote
from saelab.images.parquet_cells import cells
from saelab.images.remote import Cell, Spot

GAP = 1 << 16  # neighbouring stretches with at most so many bytes between them are read at once
AT_ONCE = 64 << 20  # bytes read in one piece at most


def read(spots: Sequence[Spot]) -> Iterator[bytes]:
    """The bytes of each picture, in order; neighbours in one file are fetched together.

    Raises Changed where the bytes are out of reach or have changed.
    """
    for group in _neighbours(spots):
        try:
            found = _cells(group) if isinstance(group[0], Cell) else _stretches(group)
        except OSError as error:
            raise remote.Changed(remote.why(error)) from None
        for own, data in zip(group, found, strict=True):
            if hashlib.sha256(data).hexdigest() != own.sha256:
                raise remote.Changed("its bytes have changed since the set was opened")
            yield data


def _stretches(group: Sequence[Any]) -> list[bytes]:
    start = group[0].offset
    data = remote.part(group[0].file, start, group[-1].offset + group[-1].size)
    return [data[own.offset - start : own.offset - start + own.size] for own in group]


def _cells(group: Sequence[Any]) -> list[bytes]:
    column = cells(group[0].file, group[0].group, group[0].column)
    return [column[own.row] if own.row < len(column) else b"" for own in group]


def _neighbours(spots: Sequence[Spot]) -> Iterator[list[Spot]]:
    group: list[Spot] = []
    for own in spots:
        if group and not _together(group, own):
            yield group
            group = []
        group.append(own)
    if group:
        yield group


def _together(group: Sequence[Spot], own: Spot) -> bool:
    """Whether a picture is read with those before it: in one row group, or with little between them."""
    first, last = group[0], group[-1]
    if isinstance(own, Cell) and isinstance(first, Cell):
        return (own.file, own.group) == (first.file, first.group)
    if isinstance(own, Cell) or isinstance(first, Cell) or isinstance(last, Cell):
        return False
    gap = own.offset - (last.offset + last.size)
    return own.file == first.file and 0 <= gap <= GAP and own.offset + own.size - first.offset <= AT_ONCE
