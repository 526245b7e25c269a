"""Does the comparison itself tell the truth? A table of worlds whose answer is planted.

`python -m saelab.compare.validity` prints it: per kind of world how often a difference is called that isn't there, how
often the interval holds the difference that is there, and how often a gain of 0.1 in quality is seen. It ends with 1
where a bound is broken.
"""

import argparse
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from saelab import tables
from saelab.compare import whole_way
from saelab.compare.worlds import KINDS, Kind, compared

HEAD = ("world", "false alarms", "interval holds the truth", "a gain of 0.1 is called", "true gain", "bias", "error")
GAIN = 0.1
FALSE_ALARMS = 0.09  # at most: the bound of an exact 5 % test for 100 worlds
COVERED = 0.90  # at least, of intervals of a nominal 95 %
CAREFUL = 1.3  # standard errors over the actual spread, at most: wider intervals would cover for nothing
BIAS = 0.01  # at most, where nothing differs
LARGE, REPEATS = 1500, 16  # images and worlds from which the true difference is known


@dataclass(frozen=True)
class Line:
    """One kind of world."""

    kind: str
    false: float  # share of worlds without a difference in which one is called
    covered: float  # share of intervals that hold the true difference of worlds with one
    power: float  # share of worlds with a difference in which it is called
    truth: float  # the difference that a gain of 0.1 makes
    bias: float  # mean difference where there is none
    error: float  # mean standard error over the actual spread: 1 is right, more is careful

    @property
    def passed(self) -> bool:
        """Whether false alarms, coverage, bias and width keep their bounds."""
        honest = self.false <= FALSE_ALARMS and self.covered >= COVERED and abs(self.bias) <= BIAS
        return honest and self.error <= CAREFUL


def check_kind(kind: Kind, worlds: int) -> Line:
    """Worlds of one kind: so many without a difference, and as many with a gain."""
    without = [compared(kind, seed) for seed in range(worlds)]
    gained = [compared(kind, 1_000_000 + seed, GAIN) for seed in range(worlds)]
    large = [compared(kind, 2_000_000 + seed, GAIN, LARGE).difference for seed in range(REPEATS)]
    truth = float(np.mean([x for x in large if x is not None]))
    gaps = np.array([x.difference for x in without])
    errors = np.array([sum(x.variance.values()) for x in without])
    return Line(
        kind.name,
        float(np.mean([x.p is not None and x.p < 0.05 for x in without])),
        float(np.mean([x.low <= truth <= x.high for x in gained if x.low is not None and x.high is not None])),
        float(np.mean([x.p is not None and x.p < 0.05 for x in gained])),
        truth,
        float(gaps.mean()),
        float(np.sqrt(errors.mean()) / gaps.std()),
    )


def table(worlds: int) -> Iterator[Line]:
    """A line for each kind of world."""
    for kind in KINDS:
        yield check_kind(kind, worlds)


def show(line: Line) -> str:
    """A line as a row of the table in docs/comparison.md."""
    shares = f"{line.false:.2f} | {line.covered:.2f} | {line.power:.2f}"
    return f"| {line.kind} | {shares} | {line.truth:.3f} | {line.bias:+.3f} | {line.error:.2f} |"


def main() -> int:
    """Print the table, then the checks of the whole way from labels to verdict; 1 where a bound is broken."""
    parser = argparse.ArgumentParser(description="Check the comparison on planted worlds.")
    parser.add_argument("--worlds", type=int, default=100, help="seeds of each world")
    worlds = parser.parse_args().worlds
    print(tables.draw_markdown(HEAD, []), flush=True)
    failed = False
    for line in table(worlds):
        print(show(line), flush=True)
        failed |= not line.passed
    for report in whole_way.check_whole_way(worlds):
        print(report["check"] + ": " + report["detail"], flush=True)
        failed |= not report["passed"]
    return int(failed)


if __name__ == "__main__":
    raise SystemExit(main())
