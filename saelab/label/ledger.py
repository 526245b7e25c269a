"""Rows of a run that asks about units one by one: on disk as they come, so that a killed run can go on."""

import json
import os
from pathlib import Path
from typing import Any

from saelab import artifacts
from saelab.errors import UserError

Key = Any  # what a row is found by: the unit's number, or (unit, trial) where a unit is asked about several times


class Ledger:
    """`<folder>/<name>.jsonl`, a row a question, and `<folder>/<name>.json`, the recipe and in the end a summary.

    A row is found by its unit, or by unit and trial where it has a `trial`. `kept` holds the rows of an earlier run,
    save those of status "failed", which are to be asked again: they stay in the file until a new row follows. A line
    that a kill cut off is gone. Raises UserError for a folder that holds the rows of another recipe.
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
            if not isinstance(row, dict) or "status" not in row or not _numbered(row):
                raise UserError("file", self.file, f"line {number} is no row of {name}", "delete the line")
        last: dict[Key, dict[str, Any]] = {key_of(row): row for row in rows}
        self.kept = {key: row for key, row in last.items() if row["status"] != "failed"}
        self._failed = {key: row.get("record", row) for key, row in last.items() if row["status"] == "failed"}
        artifacts.write_jsonl(self.file, list(last.values()))

    def tries(self, key: Key) -> tuple[int, int]:
        """(attempts, those that may have been charged) of an earlier run that got no answer to the question."""
        failed = self._failed.get(key, {})
        return failed.get("attempts", 0), failed.get("uncertain", 0)

    def add(self, *rows: Any) -> None:
        """Append rows (dataclasses with `unit` and `status`); they are on disk when this returns.

        Waiting for the disk takes milliseconds, however many they are: rows that come together are added together.
        """
        with self.file.open("a", encoding="utf-8") as file:
            file.writelines(json.dumps(artifacts.plain(row), ensure_ascii=False) + "\n" for row in rows)
            file.flush()
            os.fsync(file.fileno())

    def rows(self) -> list[dict[str, Any]]:
        """All rows, those kept and those added, in the order of units and trials."""
        rows = {key_of(row): row for row in artifacts.read_jsonl(self.file)}
        return sorted(rows.values(), key=lambda row: (row["unit"], row.get("trial", 0)))

    def close(self, summary: dict[str, Any]) -> None:
        """Put the rows in the order of units and the summary beside the recipe."""
        artifacts.write_jsonl(self.file, self.rows())
        artifacts.write_json(self.header, {"recipe": self.recipe, "summary": summary})


def key_of(row: dict[str, Any]) -> Key:
    """What a ledger finds this row by."""
    return (row["unit"], row["trial"]) if "trial" in row else row["unit"]


def _numbered(row: dict[str, Any]) -> bool:
    """Whether the row says which unit it is about and, if it names a trial, which."""
    return type(row.get("unit")) is int and type(row.get("trial", 0)) is int
