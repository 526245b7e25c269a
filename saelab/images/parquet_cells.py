"""The cells of Parquet files, a row group at a time."""

import functools
from typing import Any

from saelab.errors import UserError
from saelab.images import remote

AT_ONCE = 2  # columns of row groups that a process remembers: a batch rarely ends where a group does


def cells(file: str, group: int, column: str) -> list[bytes]:
    """The encoded pictures of a row group's column. Raises UserError or OSError where they can't be read."""
    return _column(file, group, column)


@functools.lru_cache(maxsize=AT_ONCE)
def _column(file: str, group: int, column: str) -> list[bytes]:
    table = read_group(open_parquet(file), file, group, [column])
    return [picture_of(cell) for cell in table.column(column).to_pylist()]


def picture_of(cell: Any) -> bytes:
    """The encoded picture of a cell; no bytes where there is none, or only a path, which nobody may send us to."""
    data = cell.get("bytes") if isinstance(cell, dict) else cell
    return data if isinstance(data, bytes) else b""


def read_group(opened: Any, file: str, group: int, columns: list[str]) -> Any:
    """Some columns of a row group, as a table. Raises UserError where it is broken."""
    from pyarrow import ArrowException

    try:
        return opened.read_row_group(group, columns=columns, use_threads=False)
    except (ArrowException, OSError, ValueError) as error:
        raise _broken(file, error) from None


def open_parquet(file: str) -> Any:
    """A Parquet file, local or remote. Raises UserError where it is none."""
    from pyarrow import ArrowException
    from pyarrow.parquet import ParquetFile

    try:
        return ParquetFile(remote.Seekable(file))
    except (ArrowException, OSError, ValueError) as error:
        raise _broken(file, error) from None


def _broken(file: str, error: Exception) -> UserError:
    return UserError("images.dataset", file, f"not a whole Parquet file, or out of reach ({remote.why(error)})")
