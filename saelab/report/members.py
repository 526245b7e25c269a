"""Of which units a group consists, with their labels, for the pages of groups."""

from collections.abc import Iterator, Sequence
from typing import Any

from saelab.artifacts import digest, read_json
from saelab.report.reading import ReadBasis


def of_basis(basis: ReadBasis, bases: Sequence[ReadBasis]) -> Iterator[dict[str, Any] | None]:
    """Per unit its members: the basis that they are of, number and label of each, and their support.

    None for units that are no groups. `basis` is None where none of the run's `bases` is of these units.
    """
    info = read_json(basis.units / "units.json")["info"]
    groups = info.get("members")
    if groups is None:
        yield from [None] * len(basis.labels)
        return
    of = next((b for b in bases if digest(b.recipes["units"]) == basis.recipes["units"].get("of")), None)
    for group, support in zip(groups, info["support"], strict=True):
        own = [[u, None if of is None else of.labels[u]["label"]] for u in group]
        yield {"basis": None if of is None else of.name, "units": own, "support": support}
