"""Of which units a group consists, with their labels, for the pages of groups."""

from collections.abc import Sequence
from typing import Any

from saelab.artifacts import digest, read_json
from saelab.report.reading import ReadBasis


def add(bases: Sequence[ReadBasis], made: Sequence[list[dict[str, Any]]]) -> None:
    """Give each record `members`: the basis that they are of, number and label of each, and their support.

    None for units that are no groups. `basis` is None where the run has no basis of these units.
    """
    for basis, records in zip(bases, made, strict=True):
        info = read_json(basis.units / "units.json")["info"]
        groups = info.get("members")
        own_recipe = basis.recipes["units"].get("of")
        of = next((b for b in bases if groups is not None and digest(b.recipes["units"]) == own_recipe), None)
        for number, record in enumerate(records):
            record["members"] = None
            if groups is not None:
                own = [[u, None if of is None else of.labels[u]["label"]] for u in groups[number]]
                record["members"] = {
                    "basis": None if of is None else of.name,
                    "units": own,
                    "support": info["support"][number],
                }
