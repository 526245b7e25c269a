"""Pictures in Parquet files, as Hugging Face datasets hold them: a row group at a time, nothing stored."""

from collections.abc import Callable, Iterator, Mapping
from typing import Any

from saelab.images.parquet_cells import open_parquet, picture_of, read_group
from saelab.images.streams import Found, Item


def samples(
    file: str, columns: list[str], item: Callable[[Mapping[str, Any]], Item], start: list[int] | None
) -> Iterator[Found]:
    """The pictures of a file, row by row, from row `start` = [row group, row in it] on.

    item: makes a picture of a row's `columns`, of which the first holds the pictures. Raises UserError for what is
    no Parquet file.
    """
    opened = open_parquet(file)
    first, skip = start or (0, 0)
    for group in range(first, opened.num_row_groups):
        rows = read_group(opened, file, group, columns).to_pylist()
        for place, row in enumerate(rows):
            if group > first or place >= skip:
                own = row | {columns[0]: {"bytes": picture_of(row[columns[0]]), "path": None}}
                yield Found(item(own), f"{group:05d}-{place:05d}", (group, place), [group, place + 1])
