"""How labels are assigned: the settings, what makes them wrong, and the scorer that decides where nobody says which."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from saelab import settings as fields
from saelab.errors import UserError
from saelab.files import added
from saelab.label import sets
from saelab.label.assign import SCORERS

RANGES = {
    "sets": (0, 1),
    "nulls": (0, math.inf),
    "rival_nulls": (0, math.inf),
    "abstain_below": (0, 1),
    "seed": (0, math.inf),
    "runners_up": (0, math.inf),
}
AUTO = "auto"
FEW = 1000  # mining images below which graded correlation alone has the power to tell a label from chance


@dataclass(frozen=True)
class LabelSettings:
    """How labels are assigned. The presets in conf/label set all of it."""

    scorers: tuple[str, ...] = ("contrast_evidence", "csp", "csp_0.5", "semanticlens", "pearson", "cos_cubed")
    final: str = "contrast_evidence"  # the scorer whose best label becomes the unit's label
    templates: tuple[str, ...] | None = None  # None: the encoder's own
    renormalize: bool = True  # unit length after the mean over templates (csp_paper: False)
    nulls: int = 200  # permutations behind the final scorer's null_percentile; 0 leaves all of them null
    rival_nulls: int | None = added(None)  # of these, the first so many for the other scorers; None: all
    abstain_below: float = 0.95  # a final label that luck gives in more than 1 - this of cases is marked `abstained`
    seed: int = 0  # of the permutations, and of the random images that meanings are held against
    runners_up: int = 5  # next best labels kept per scorer
    meanings: bool = True  # split the positives of units that fall apart, with a label for each part
    sets: float = added(0.0)  # coverage of each unit's label set (label.sets); 0: no sets


def check(settings: LabelSettings) -> None:
    """Raise UserError for values that can't be meant, scorers that don't exist and a final scorer that is not run."""
    fields.check(settings, "label.", RANGES)
    if not settings.scorers:
        raise UserError("scorer", "[]", "expected at least one scorer", "for example scorer=[contrast_evidence]")
    for name in settings.scorers:
        if name not in SCORERS:
            remedy = f"{fields.nearest(name, list(SCORERS))}known: {', '.join(sorted(SCORERS))}"
            raise UserError("scorer", name, "unknown", remedy)
    if settings.final not in settings.scorers:
        remedy = f"add it to scorer, or choose one of {', '.join(settings.scorers)}"
        if settings.final not in SCORERS:
            remedy = f"{fields.nearest(settings.final, [AUTO, *SCORERS])}choose one of {', '.join(settings.scorers)}"
        raise UserError("label.final", settings.final, "is not among the scorers", remedy)
    if settings.sets:
        sets.check(settings.final, settings.sets)


def by_luck(percentile: float, settings: LabelSettings) -> bool:
    """Whether luck gives so good a label in more than 1 - `abstain_below` of cases.

    The exact p of a permutation test, (1 + permutations whose best is as good) / (1 + permutations), so that labels of
    noise pass in 5 % of cases at 0.95, however few the permutations (Phipson and Smyth, 2010).
    """
    as_good = round((1 - percentile) * settings.nulls)
    return (1 + as_good) / (1 + settings.nulls) > 1 - settings.abstain_below + 1e-9


def final_scorer(asked: str, scorers: Sequence[str], images: int) -> str:
    """`asked` itself, or for "auto" the scorer that measured best on so many mining images (docs/scorers.md).

    That is `contrast_evidence` from 1000 images on and `pearson` with fewer; the other one of the two where only that
    is among the scorers that run, and the first of these where neither is.
    """
    if asked != AUTO:
        return asked
    order = ("pearson", "contrast_evidence") if images < FEW else ("contrast_evidence", "pearson")
    return next((name for name in order if name in scorers), next(iter(scorers), AUTO))
