"""The key: read from the environment, sent to the server, and blotted out of everything that comes back."""

import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager
from urllib.parse import quote

from saelab.errors import UserError

BLOT = "***"
SHORTEST = 6  # characters; what is shorter ("EMPTY", "none") stands where a server wants some key but checks none
CLIENTS = ("openai", "httpx", "httpx2", "httpcore", "httpcore2", "h11", "h2", "hpack")  # they log what they receive


class Secret:
    """A key, and the texts that it must not stand in.

    Pieces of it are blotted as well, from half of it or 16 characters on: answers are cut in the middle of a key too.
    """

    def __init__(self, key_env: str) -> None:
        self.key = os.environ.get(key_env, "").strip()
        if not self.key.isascii() or not self.key.isprintable() or " " in self.key:
            raise UserError("proposer.key_env", key_env, "holds characters that no key has", "check the variable")
        guarded = self.key if len(self.key) >= SHORTEST else ""
        self._forms = [guarded, quote(guarded, safe="")] if guarded else []
        self._piece = min(16, max(8, -(-len(guarded) // 2)))
        self._pieces = {guarded[i : i + self._piece] for i in range(len(guarded) - self._piece + 1)}

    def blot(self, text: str) -> str:
        """The text without the key and without long pieces of it."""
        for form in self._forms:
            text = text.replace(form, BLOT)
        if not any(piece in text for piece in self._pieces):
            return text
        kept: list[str] = []  # what stands between pieces
        end = 0  # of the last piece
        for at in range(len(text) - self._piece + 1):
            if text[at : at + self._piece] in self._pieces:
                kept += [text[end:at], BLOT] if at > end or not kept else []
                end = at + self._piece
        return "".join([*kept, text[end:]])

    @contextmanager
    def out_of_logs(self) -> Iterator[None]:
        """Within the block, the packages that talk to the server log nothing that holds the key."""
        loggers = [
            logging.getLogger(name) for name in list(logging.root.manager.loggerDict) if name.split(".")[0] in CLIENTS
        ]
        for logger in loggers:
            logger.addFilter(self._blot)
        try:
            yield
        finally:
            for logger in loggers:
                logger.removeFilter(self._blot)

    def _blot(self, record: logging.LogRecord) -> bool:
        record.msg, record.args = self.blot(record.getMessage()), ()
        return True
