"""Wall time by stage."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager


class Timings(dict[str, float]):
    """Seconds by stage. Time of a stage that starts inside another counts for the inner one alone.

    `told`: called with the name of each stage as it begins, unless it begins inside another.
    """

    told: Callable[[str], None] | None = None
    _open = 0  # stages that have begun and not ended

    @contextmanager
    def of(self, stage: str) -> Iterator[None]:
        """Add the block's time to `stage`."""
        if self.told is not None and not self._open:
            self.told(stage)
        inner, start = sum(self.values()), time.perf_counter()
        self._open += 1
        try:
            yield
        finally:
            self._open -= 1
        spent = time.perf_counter() - start - (sum(self.values()) - inner)
        self[stage] = self.get(stage, 0.0) + spent
