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

    item: makes a picture of a row's `columns`. Raises UserError for what is no Parquet file.
    """
    opened = _opened(file)
    first, skip = start or (0, 0)
    for group in range(first, opened.num_row_groups):
        rows = opened.read_row_group(group, columns=columns, use_threads=False).to_pylist()
        for place, row in enumerate(rows):
            if group > first or place >= skip:
                yield Found(item(row), f"{group:05d}-{place:05d}", (group, place), [group, place + 1])


def cells(file: str, group: int, column: str) -> list[bytes]:
    """The encoded pictures of a row group's column. Raises OSError where they can't be read."""
    return _column(file, group, column)


@functools.lru_cache(maxsize=AT_ONCE)
def _column(file: str, group: int, column: str) -> list[bytes]:
    table = _opened(file).read_row_group(group, columns=[column], use_threads=False)
    return [cell["bytes"] or b"" for cell in table.column(column).to_pylist()]


def _opened(file: str) -> Any:
    from pyarrow import ArrowInvalid
    from pyarrow.parquet import ParquetFile

    try:
        return ParquetFile(remote.Seekable(file))
    except ArrowInvalid as error:
        raise UserError("images.dataset", file, f"not a whole Parquet file ({remote.why(error)})") from None
