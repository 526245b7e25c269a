"""Rows of a run that asks about units one by one: on disk as they come, so that a killed run can go on."""

import json
import os
from pathlib import Path
from typing import Any

from saelab import artifacts
from saelab.errors import UserError


class Ledger:
    """`<folder>/<name>.jsonl`, a row a unit, and `<folder>/<name>.json`, the recipe and in the end a summary.

    `kept` holds the rows of an earlier run by unit, save those of status "failed", which are to be asked again: they
    stay in the file until a new row of the unit follows. A line that a kill cut off is gone. Raises UserError for a
    folder that holds the rows of another recipe.
    """

    def __init__(self, folder: Path, name: str, recipe: dict[str, Any]) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.file, self.header = folder / f"{name}.jsonl", folder / f"{name}.json"
        self.recipe = artifacts.plain(recipe)
        if not self.header.exists():
            artifacts.write_json(self.header, {"recipe": self.recipe})
        elif artifacts.read_json(self.header).get("recipe") != self.recipe:
            raise UserError("folder", folder, f"holds {name} of another recipe", "give these a folder of their own")
        rows = artifacts.read_jsonl(self.file) if self.file.exists() else []
        for number, row in enumerate(rows, start=1):
            if not isinstance(row, dict) or type(row.get("unit")) is not int or "status" not in row:
                raise UserError("file", self.file, f"line {number} is no row of {name}", "delete the line")
        last: dict[int, dict[str, Any]] = {row["unit"]: row for row in rows}
        self.kept = {unit: row for unit, row in last.items() if row["status"] != "failed"}
        self._failed = {unit: row.get("record", row) for unit, row in last.items() if row["status"] == "failed"}
        artifacts.write_jsonl(self.file, list(last.values()))

    def tries(self, unit: int) -> tuple[int, int]:
        """(attempts, those that may have been charged) of an earlier run that got no answer about the unit."""
        failed = self._failed.get(unit, {})
        return failed.get("attempts", 0), failed.get("uncertain", 0)

    def add(self, row: Any) -> None:
        """Append a row (a dataclass with `unit` and `status`); it is on disk when this returns."""
        with self.file.open("a", encoding="utf-8") as file:
            file.write(json.dumps(artifacts.plain(row), ensure_ascii=False) + "\n")
            file.flush()
            os.fsync(file.fileno())

    def rows(self) -> list[dict[str, Any]]:
        """All rows, those kept and those added, in the order of units."""
        rows = {row["unit"]: row for row in artifacts.read_jsonl(self.file)}
        return [rows[unit] for unit in sorted(rows)]

    def close(self, summary: dict[str, Any]) -> None:
        """Put the rows in the order of units and the summary beside the recipe."""
        artifacts.write_jsonl(self.file, self.rows())
        artifacts.write_json(self.header, {"recipe": self.recipe, "summary": summary})
