"""What saelab knows of a scorer, as one row: its scores, null, words and source, and whether it can judge alone."""

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from jaxtyping import Float
from torch import Tensor

from saelab.errors import UserError
from saelab.label.scorers.evidence import Evidence
from saelab.label.scorers.frame import Frame
from saelab.label.scorers.permuted import Best, whole

Rows = Callable[[slice], Float[Tensor, "some labels"]]  # scores of a run of units; NaN where there is none
Null = Callable[["Scorer", Frame], Best]  # best scores under permutation, draw by draw
Moved = Callable[[Evidence], Float[Tensor, "units"]]  # best scores on evidence whose pictures have moved
Explain = Callable[[Float[Tensor, "units labels"], Evidence, Sequence[str]], list[dict[str, Any]]]
KEPT = 1 << 26  # numbers that a scorer may keep of the units from one move of the pictures to the next
NEEDS = ("positives", "pairs", "images", "concepts", "maps", "decoder", "templates")


@dataclass(frozen=True)
class Citation:
    """A paper."""

    short: str  # as pages name it: authors and year
    bibtex: str  # its BibTeX entry

    @property
    def key(self) -> str:
        """The entry's citation key."""
        found = re.match(r"@\w+\{([^,\s]+),", self.bibtex)
        if found is None:
            raise UserError("citation", self.short, "its BibTeX entry has no key", "begin with @article{key,")
        return found[1]


@dataclass(frozen=True)
class Scorer:
    """A scorer. Adding one is adding its row to its family's `SCORERS`."""

    name: str  # what users write
    needs: str  # what it looks at, one of NEEDS: images is the whole set, pairs are positives and their contrasts
    title: str  # as pages name it
    explanation: str  # what it measures, in a newcomer's words
    start: Callable[[Evidence], Rows]  # does what concerns all units once, then scores runs of them
    null: Null | None = whole  # its best scores under permutation; None: it does not look at pooled activations
    citation: Citation | None = None  # what a paper cites for it
    source: str = ""  # as pages name its source, where that is more, or other, than the citation's short form
    by_parts: bool = False  # where images x labels are many, each run of units computes the similarities anew, in parts
    alone: bool = False  # a label's score does not depend on which other labels there are
    moved: Callable[[Evidence], Moved | None] | None = None  # best scores where series move; None: it scores anew
    explain: Explain | None = None  # what its authors give a unit beside the best label: a dict a unit, for JSON

    def __post_init__(self) -> None:
        if self.needs not in NEEDS:
            raise UserError("needs", self.needs, f"expected one of {', '.join(NEEDS)}", f"in the row of {self.name}")

    @property
    def reference(self) -> str:
        """Its source as pages name it."""
        return self.source or (self.citation.short if self.citation else "")

    def under(self, frame: Frame) -> Best | None:
        """Its best scores under permutation; None where it has no null."""
        return None if self.null is None else self.null(self, frame)


def fits(e: Evidence) -> bool:
    """Whether what a scorer prepares of all units, and their scores, may be kept from one move to the next."""
    return e.n_units * max(e.n_images, len(e.label_emb)) <= KEPT


def of_all(scores_of: Callable[[Evidence], Tensor]) -> Callable[[Evidence], Rows]:
    """The start of a scorer that must see all units before it can score one."""

    def start(e: Evidence) -> Rows:
        scores = scores_of(e)
        return lambda units: scores[units]

    return start
