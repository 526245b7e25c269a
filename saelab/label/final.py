"""Which scorer's best label becomes the unit's label, where nobody says so."""

from collections.abc import Sequence

AUTO = "auto"
FEW = 1000  # mining images below which graded correlation alone has the power to tell a label from chance


def final_scorer(asked: str, scorers: Sequence[str], images: int) -> str:
    """`asked` itself, or for "auto" the scorer that measured best on so many mining images (docs/scorers.md).

    That is `contrast_evidence` from 1000 images on and `pearson` with fewer; the other one of the two where only that
    is among the scorers that run, and the first of these where neither is.
    """
    if asked != AUTO:
        return asked
    order = ("pearson", "contrast_evidence") if images < FEW else ("contrast_evidence", "pearson")
    return next((name for name in order if name in scorers), next(iter(scorers), AUTO))
