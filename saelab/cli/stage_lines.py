"""A line for each stage of a long command: its place among those to come, what it made and reused, how long it took."""

import logging
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from saelab.run.config import RunConfig
from saelab.run.making import Stages

# What a person calls the stages, in their order; stages that run by turns stand in one line.
TITLES = {
    "photos": ("images",),
    "activations": ("activations",),
    "bases": ("sae", "units"),
    "embeddings": ("embeddings",),
    "strongest images": ("mining",),
    "proposals": ("proposals",),
    "labels": ("labels",),
    "evaluation": ("evaluation",),
    "effects": ("effects",),
    "comparison": ("comparison",),
    "quality of SAEs": ("quality",),
    "report": ("report",),
}


class StageLines(logging.Filter):
    """Prints a stage's line on stderr when the next begins, and counts what the artifacts' log would else list."""

    def __init__(self, titles: Sequence[str]) -> None:
        super().__init__()
        self.titles, self.place = titles, -1
        self.start = time.perf_counter()
        self.counts = {"building": 0, "resuming": 0, "reused": 0}

    def begin(self, stage: str) -> None:
        """The stage of this name begins: that of the one before is complete. Nothing leads back to an earlier one."""
        place = next((i for i, title in enumerate(self.titles) if stage in TITLES[title]), self.place)
        if place > self.place:
            self.end()
            self.place = place

    def end(self) -> None:
        """Print the line of the stage that was running, if any was."""
        if self.place >= 0:
            made = self.counts["building"] + self.counts["resuming"]
            counted = [f"{n} {word}" for n, word in ((made, "made"), (self.counts["reused"], "reused")) if n]
            place = f"{self.place + 1}/{len(self.titles)}".rjust(2 * len(str(len(self.titles))) + 1)
            seconds = f"{time.perf_counter() - self.start:.1f} s"
            print(f"{place}  {self.titles[self.place]:<17}{', '.join(counted):<22}{seconds:>9}", file=sys.stderr)
            self.counts = dict.fromkeys(self.counts, 0)
        self.start = time.perf_counter()

    def filter(self, record: logging.LogRecord) -> bool:
        """Whether a line of the log is shown: those that say what is built or reused are counted instead."""
        word = record.getMessage().split(" ", 1)[0]
        if word not in self.counts:
            return True
        self.counts[word] += 1
        return False


@contextmanager
def stage_lines(made: Stages, last: str) -> Iterator[StageLines]:
    """Show a line for each stage of `made` while the block runs. `last`: the title of the command's last stage."""
    lines, logger = StageLines(stages_of(made.config, last)), logging.getLogger("saelab")
    made.timings.told = lines.begin
    logger.addFilter(lines)
    try:
        yield lines
        lines.end()
    finally:
        logger.removeFilter(lines)
        made.timings.told = None


def stages_of(config: RunConfig, last: str) -> list[str]:
    """The titles of the stages that a run by this config goes through, up to `last`."""
    absent = {"effects"} if config.effects is None else set()
    if config.proposer.name == "none":
        absent.add("proposals")
    if "sae" not in config.bases and not config.also:
        absent.add("quality of SAEs")
    titles = list(TITLES)
    return [title for title in titles[: titles.index(last) + 1] if title not in absent]
