"""Whether pictures that are read in every epoch stay what they were: activations that nobody stores rest on it."""

from typing import TYPE_CHECKING

import numpy as np
from jaxtyping import Int

from saelab.errors import UserError

if TYPE_CHECKING:
    from saelab.images import ImageSet


class Unchanged:
    """Each file's size and time when it was first read, in 8 bytes; a stream's pictures are held to their hashes."""

    def __init__(self, images: "ImageSet") -> None:
        self.images, self.marks = images, np.zeros(0 if images.spots else len(images), dtype=np.int64)

    def require(self, numbers: Int[np.ndarray, "batch"]) -> None:
        """Raise UserError where the file of a picture that was just read is not what it was the first time."""
        for i in numbers.tolist() if len(self.marks) else ():
            path = self.images.path(i)
            try:
                seen = path.stat()
            except OSError:  # gone by now: whoever reads it next says so
                continue
            mark = hash((seen.st_size, seen.st_mtime_ns))
            if self.marks[i] not in (0, mark):
                what = "has changed since this run first read it"
                raise UserError("images", path, what, "run again: with other pictures it is another run")
            self.marks[i] = mark
