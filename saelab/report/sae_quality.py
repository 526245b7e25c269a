"""How good the run's SAEs are, for its pages: reconstruction on tokens seen and unseen, sparsity, stability."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from saelab.report.reading import ReadBasis


def of_basis(basis: ReadBasis) -> dict[str, Any] | None:
    """One SAE: what a page shows of its quality.json; None where it was not measured.

    fvu, fvu_test   share of variance unexplained on the tokens it was trained on, and on held-out ones
    l0, dead, rare, dense, density   on held-out tokens; density as in `saelab.sae.quality`
    overfit         a sentence, or None
    shared, by_chance   share of its features that other seeds have too (mean over them), and of random dictionaries
    recovered       share of the host's loss that it recovers, where that was measured
    """
    found = basis.quality
    if found is None:
        return None
    mine, held, loss = found["mine"], found["held_out"], found.get("loss_recovered")
    stable = found.get("stability") or []
    return {
        "fvu": mine["fvu"],
        "fvu_test": held["fvu"],
        **{key: held[key] for key in ("l0", "dead", "rare", "dense", "density", "overfit")},
        "shared": _mean([row["shared"] for row in stable]),
        "by_chance": _mean([row["null_shared"] for row in stable]),
        "recovered": loss and loss["ce_recovered"],
    }


def sentence(bases: Sequence[ReadBasis]) -> str | None:
    """The quality of SAEs that differ by their seed alone, in one sentence; None where none was measured."""
    found = [quality for basis in bases if (quality := of_basis(basis)) is not None]
    if not found:
        return None

    def mean(key: str) -> float | None:
        return _mean([quality[key] for quality in found])

    parts = [
        f"{_of_seeds(len(found))} leave{'s' if len(found) == 1 else ''} {_three(mean('fvu'))} of the variance of the "
        f"tokens that trained {'it' if len(found) == 1 else 'them'} unexplained (FVU), {_three(mean('fvu_test'))} of "
        "the test images' tokens"
    ]
    parts.append(f"L0 {mean('l0'):.1f}, {100 * (mean('dead') or 0):.1f} % of the features dead on those")
    if mean("shared") is not None:
        shared, chance = 100 * (mean("shared") or 0), 100 * (mean("by_chance") or 0)
        parts.append(
            f"{shared:.0f} % of the features found again by another seed (random dictionaries: {chance:.0f} %)"
        )
    return "; ".join(parts) + "."


def _of_seeds(count: int) -> str:
    return "The SAE" if count == 1 else f"The {count} SAEs"


def _three(value: float | None) -> str:
    return "an undefined share" if value is None else f"{value:.3f}"


def _mean(values: Sequence[float | None]) -> float | None:
    there = [value for value in values if value is not None]
    return float(np.mean(there)) if there else None
