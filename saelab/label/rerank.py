"""Which of some candidates a unit's pictures speak for: pointwise mutual information (MILAN, Hernandez et al., 2022).

A captioner finds general texts ("objects") likely whatever it sees. MILAN therefore takes the description d of greatest
log p(d | pictures) - weight log p(d), section 3 of the paper; its code has weight .2.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from saelab.errors import UserError

WEIGHT = 0.2


@dataclass(frozen=True)
class Candidate:
    """A description with its log-probabilities, natural logarithms of 0..1."""

    text: str
    log_p: float  # given the pictures
    log_prior: float  # without them


def information(candidate: Candidate, weight: float = WEIGHT) -> float:
    """log p(d | pictures) - weight log p(d); -inf for a candidate that the pictures rule out."""
    if candidate.log_p == -math.inf:
        return -math.inf
    return candidate.log_p - (weight * candidate.log_prior if weight else 0.0)  # no 0 times infinity


def order_by_information(candidates: Sequence[Candidate], weight: float = WEIGHT) -> list[Candidate]:
    """The candidates, most informative first; ties stay in their order. weight 0: by likelihood; 1: by PMI.

    Raises UserError for a weight that is negative or no number, and for log-probabilities above 0 or NaN.
    """
    if not 0 <= weight < math.inf:
        raise UserError("proposer.weight", weight, "expected a number of at least 0", "MILAN takes 0.2")
    for own in candidates:
        if not (own.log_p <= 0 and own.log_prior <= 0):
            found = f"log-probabilities {own.log_p} and {own.log_prior}"
            raise UserError("candidate", own.text, f"has {found}, expected numbers of at most 0")
    return sorted(candidates, key=lambda own: -information(own, weight))
