"""Answers that were paid for, kept by the digest of their request: nothing is bought twice, whatever run asks."""

import json
import logging
import threading
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from saelab import artifacts
from saelab.label.vlm.completion import Completion, restore

log = logging.getLogger("saelab")


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

    def _path(self, digest: str) -> Path | None:
        return self.folder / digest[:2] / f"{digest}.json" if self.folder else None
