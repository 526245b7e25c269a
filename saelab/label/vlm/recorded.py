"""Answers from a file: to replay a run, to use a model that answered elsewhere, or to let people answer.

A JSON object a line, with `raw` (the answer) and `name` ("propose/12", "detect/12", "choose/12": what is asked, and of
which unit) or just `unit`. The `proposals.jsonl` of another run is such a file.
"""

import hashlib
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from saelab.artifacts import read_jsonl
from saelab.errors import UserError
from saelab.label.proposal import Estimate
from saelab.label.vlm.chat import Reply, Request
from saelab.label.vlm.completion import amount, count, short_text, text_of


class RecordedChat:
    """Answers every request with what `answers` (a file) holds under its name; a request without one fails."""

    name = "recorded"

    def __init__(self, answers: Path | str) -> None:
        path = Path(answers)
        try:
            rows = read_jsonl(path)
        except RecursionError:
            raise UserError("proposer.answers", path, "holds JSON that is nested too deeply") from None
        self.path = path
        self.rows: dict[str, dict[str, Any]] = {}
        for number, row in enumerate(rows, start=1):
            if not isinstance(row, dict) or not ("name" in row or "unit" in row) or "raw" not in row:
                raise UserError("proposer.answers", path, f"line {number} needs `raw` and `unit` or `name`")
            self.rows[str(row.get("name") or f"propose/{row['unit']}")] = row
        self.recipe = {"name": self.name, "answers": hashlib.sha256(path.read_bytes()).hexdigest()}

    def ask(self, requests: Iterable[Request]) -> Iterator[tuple[Request, Reply]]:
        """Every request with its recorded answer, in order."""
        for request in requests:
            row = self.rows.get(request.name, {})
            raw = None if row.get("raw") is None else text_of(row["raw"])
            missing = None if raw is not None else f"{self.path.name} has no answer for {request.name}"
            taken = count(row.get("prompt_tokens")), count(row.get("completion_tokens")), amount(row.get("cost"))
            yield request, Reply(raw, missing, request.digest, short_text(row.get("model")), *taken, cached=True)

    def estimate(self, request: Request) -> Estimate:
        """Nothing: it is all there."""
        return Estimate()
