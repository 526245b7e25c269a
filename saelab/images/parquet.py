"""Pictures in Parquet files, as Hugging Face datasets hold them: a row group at a time, nothing stored."""

import functools
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from saelab.errors import UserError
from saelab.images import remote
from saelab.images.streams import Found, Item

AT_ONCE = 2  # columns of row groups that a process remembers: a batch rarely ends where a group does


def samples(
    file: str, columns: list[str], item: Callable[[Mapping[str, Any]], Item], start: list[int] | None
) -> Iterator[Found]:
    """The pictures of a file, row by row, from row `start` = [row group, row in it] on.

    item: makes a picture of a row's `columns`, of which the first holds the pictures. Raises UserError for what is
    no Parquet file.
    """
    opened = _opened(file)
    first, skip = start or (0, 0)
    for group in range(first, opened.num_row_groups):
        rows = _group(opened, file, group, columns).to_pylist()
        for place, row in enumerate(rows):
            if group > first or place >= skip:
                own = row | {columns[0]: {"bytes": _picture(row[columns[0]]), "path": None}}
                yield Found(item(own), f"{group:05d}-{place:05d}", (group, place), [group, place + 1])


def cells(file: str, group: int, column: str) -> list[bytes]:
    """The encoded pictures of a row group's column. Raises UserError or OSError where they can't be read."""
    return _column(file, group, column)


@functools.lru_cache(maxsize=AT_ONCE)
def _column(file: str, group: int, column: str) -> list[bytes]:
    table = _group(_opened(file), file, group, [column])
    return [_picture(cell) for cell in table.column(column).to_pylist()]


def _picture(cell: Any) -> bytes:
    """The encoded picture of a cell; no bytes where there is none, or only a path, which nobody may send us to."""
    data = cell.get("bytes") if isinstance(cell, dict) else cell
    return data if isinstance(data, bytes) else b""


def _group(opened: Any, file: str, group: int, columns: list[str]) -> Any:
    from pyarrow import ArrowException

    try:
        return opened.read_row_group(group, columns=columns, use_threads=False)
    except (ArrowException, OSError, ValueError) as error:
        raise _broken(file, error) from None


def _opened(file: str) -> Any:
    from pyarrow import ArrowException
    from pyarrow.parquet import ParquetFile

    try:
        return ParquetFile(remote.Seekable(file))
    except (ArrowException, OSError, ValueError) as error:
        raise _broken(file, error) from None


def _broken(file: str, error: Exception) -> UserError:
    return UserError("images.dataset", file, f"not a whole Parquet file, or out of reach ({remote.why(error)})")
