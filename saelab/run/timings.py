"""Wall time by stage."""

import time
from collections.abc import Iterator
from contextlib import contextmanager


class Timings(dict[str, float]):
    """Seconds by stage. Time of a stage that starts inside another counts for the inner one alone."""

    @contextmanager
    def of(self, stage: str) -> Iterator[None]:
        """Add the block's time to `stage`."""
        inner, start = sum(self.values()), time.perf_counter()
        yield
        spent = time.perf_counter() - start - (sum(self.values()) - inner)
        self[stage] = self.get(stage, 0.0) + spent
