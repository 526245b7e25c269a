"""What bases are called where people read: "SAE features, seed 1" in place of the name that settings take."""

from collections.abc import Sequence
from typing import NamedTuple

from saelab.report.glossary import TERMS


class Called(NamedTuple):
    """What decides how a basis is called."""

    short: str  # its name on its layer, as settings take it
    kind: str
    layer: str
    seed: int | None
    control: bool


def in_few_words(bases: Sequence[Called]) -> list[str]:
    """A name for each where the layer is known: its kind, with the seed or the short name where several are alike."""
    return [_call(basis, bases) for basis in bases]


def in_words(bases: Sequence[Called]) -> list[str]:
    """The same with the layer, where they are of several."""
    several = len({basis.layer for basis in bases}) > 1
    few = in_few_words(bases)
    return [f"{name} of {basis.layer}" if several else name for name, basis in zip(few, bases, strict=True)]


def _call(basis: Called, bases: Sequence[Called]) -> str:
    if _strange(basis):
        return basis.short
    alike = [b for b in bases if (b.kind, b.layer) == (basis.kind, basis.layer) and not _strange(b)]
    kind = TERMS[basis.kind][0] if basis.kind in TERMS else basis.short
    if len(alike) == 1:
        return kind
    told_apart = basis.seed is not None and len({b.seed for b in alike}) == len(alike)
    return f"{kind}, seed {basis.seed}" if told_apart else f"{kind}, {basis.short}"


def _strange(basis: Called) -> bool:
    """An SAE that is a control, on a random host: its name says all."""
    return basis.kind == "sae" and basis.control
