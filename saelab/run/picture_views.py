"""What a pipeline shows of synthesised pictures."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from PIL import Image

from saelab.run.stages.synthesis import chosen_pictures
from saelab.synthesise.summary import summarise_pictures

if TYPE_CHECKING:
    from pandas import DataFrame

COLUMNS = ("unit", "number", "label", "activation", "ratio", "percentile", "reached", "path_share", "label_agrees")


@dataclass(frozen=True)
class Pictures:
    """Pictures made to raise units of one basis, each with what it is worth. Never look at them without the photos."""

    folder: Path  # of the pictures and synthesised.jsonl
    units: Sequence[int]  # that were asked for

    def rows(self) -> list[dict[str, Any]]:
        """The lines of synthesised.jsonl of these units."""
        return chosen_pictures(self.folder, self.units)

    @property
    def summary(self) -> dict[str, Any]:
        """Means of the numbers of these pictures, beside chance."""
        return summarise_pictures(self.rows())

    def images(self) -> dict[int, list[Image.Image]]:
        """Unit -> its pictures, RGB."""
        found: dict[int, list[Image.Image]] = {}
        for row in self.rows():
            with Image.open(self.folder / row["file"]) as picture:
                found.setdefault(row["unit"], []).append(picture.convert("RGB"))
        return found

    def table(self) -> "DataFrame":
        """A row a picture, with `retrieval` as a percentile."""
        import pandas as pd

        rows = self.rows()
        lines = [{name: row[name] for name in COLUMNS} for row in rows]
        places = [row["retrieval"] and row["retrieval"]["percentile"] for row in rows]
        return pd.DataFrame(
            [line | {"retrieval": p} for line, p in zip(lines, places)], columns=[*COLUMNS, "retrieval"]
        )

    def _repr_html_(self) -> str:
        return str(self.table().to_html(index=False))
