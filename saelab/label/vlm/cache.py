"""Answers that were paid for, kept by the digest of their request: nothing is bought twice, whatever run asks.

What is under way is noted beside them, so that requests that a killed run had sent appear in the totals of the next.
"""

import hashlib
import json
import logging
import threading
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from saelab import artifacts
from saelab.errors import UserError
from saelab.label.vlm.completion import Completion, count, restore

log = logging.getLogger("saelab")
NOTED = ("attempts", "uncertain")


class AnswerCache:
    """A folder of answers, `<first 2 digits>/<digest>.json`; without a folder it only keeps threads in turn."""

    def __init__(self, folder: Path | str | None) -> None:
        self.folder = Path(folder) if folder else None
        self._locks: defaultdict[str, threading.Lock] = defaultdict(threading.Lock)

    @contextmanager
    def turn(self, digest: str) -> Iterator[None]:
        """Threads that want the same answer go through here one after the other, so that the second finds it."""
        with self._locks[digest]:
            yield

    def get(self, digest: str) -> Completion | None:
        """What was put under this digest, checked anew; None if there is nothing that can be read."""
        path = self._path(digest)
        if path is None or not path.is_file():
            return None
        try:
            found = restore(json.loads(path.read_text(encoding="utf-8")))
        except (ValueError, RecursionError):
            found = None
        if found is None:
            log.warning("%s holds no answer (damaged): the model is asked again", path)
        return found

    def put(self, digest: str, answer: Completion) -> None:
        """Keep an answer: on disk, whole or not at all, before this returns."""
        if path := self._path(digest):
            path.parent.mkdir(parents=True, exist_ok=True)
            artifacts.write_json(path, answer)
            self.note(digest, answer.buyer)

    def note(self, digest: str, buyer: str, attempts: int = 0, uncertain: int = 0) -> None:
        """Say on disk what a run (`buyer`) has sent of a request that has no answer yet; no attempts: nothing any more.

        uncertain: those of the attempts that may have been charged, should the run be killed now.
        """
        path = self._note(digest, buyer)
        if path is None:
            return
        if not attempts:
            path.unlink(missing_ok=True)
            return
        path.parent.mkdir(parents=True, exist_ok=True)
        artifacts.write_json(path, {"attempts": attempts, "uncertain": uncertain})

    def left_under_way(self, digest: str, buyer: str) -> tuple[int, int]:
        """(attempts, those that may have been charged) that this run had sent of a request when it was killed."""
        path = self._note(digest, buyer)
        if path is None or not path.is_file():
            return 0, 0
        try:
            found = artifacts.read_json(path)
        except UserError:
            return 1, 1  # it was sent, and what the note said is lost
        attempts, uncertain = (count(found.get(name)) if isinstance(found, dict) else None for name in NOTED)
        return attempts or 1, 1 if uncertain is None else uncertain

    def _note(self, digest: str, buyer: str) -> Path | None:
        """One run asks a question once at a time: a note that it finds is of a run before it."""
        path = self._path(digest)
        if path is None or not buyer:
            return None
        return path.with_name(f"{digest}-{hashlib.sha256(buyer.encode()).hexdigest()[:10]}.sent")

    def _path(self, digest: str) -> Path | None:
        return self.folder / digest[:2] / f"{digest}.json" if self.folder else None
