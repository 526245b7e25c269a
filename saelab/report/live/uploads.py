"""Pictures that people asked about, kept beside the run so that an address finds them again."""

import hashlib
import os
from pathlib import Path
from tempfile import NamedTemporaryFile
from threading import Lock

from saelab.errors import UserError

KEPT = 256 * 2**20  # bytes of all pictures together; the ones longest unused go first
NAME = 16  # hex digits of a picture's name, the digest of its bytes


class Uploads:
    """Pictures by the digest of their bytes: the same picture is kept once, and no name leads out of the folder."""

    def __init__(self, folder: Path, kept: int = KEPT) -> None:
        self.folder, self.kept = folder, kept
        self._turn = Lock()

    def add(self, data: bytes) -> str:
        """Keep a picture, whole or not at all, and return its name. One larger than all room there is stays alone."""
        name = hashlib.sha256(data).hexdigest()[:NAME]
        self.folder.mkdir(parents=True, exist_ok=True)
        with self._turn:
            self._keep(name, data)
        return name

    def _keep(self, name: str, data: bytes) -> None:
        with NamedTemporaryFile(dir=self.folder, suffix=".tmp", delete=False) as file:
            file.write(data)
        Path(file.name).replace(self.folder / name)
        self._make_room(name)

    def read(self, name: str) -> bytes:
        """A kept picture's bytes. Raises UserError for one that is not there."""
        path = self.folder / name
        if len(name) != NAME or not set(name) <= set("0123456789abcdef") or not path.is_file():
            raise UserError("upload", name[:40], "is no picture that is kept here", "choose the picture again")
        os.utime(path)
        return path.read_bytes()

    def _make_room(self, newest: str) -> None:
        """Remove the pictures longest unused until the rest fits."""
        found = [(path.stat().st_mtime, path.stat().st_size, path) for path in self.folder.iterdir() if path.is_file()]
        left = sum(size for _, size, _ in found)
        for _, size, path in sorted(found):
            if left <= self.kept:
                break
            if path.name != newest:
                path.unlink(missing_ok=True)
                left -= size
