"""The whole record of every unit, out of all that a run knows of it, one unit after another."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from itertools import count, islice
from pathlib import Path
from typing import Any

from saelab.artifacts import digest
from saelab.report import (
    enriched,
    label_pictures,
    maps,
    meaning,
    members,
    random_directions,
    records,
    synthesised,
    vlm_answers,
    write,
)
from saelab.report.reading import ReadBasis, Run

KEPT = ("unit", "label", "status", "badge", "abstained", "measured", "interval", "said_of")  # in a light record
Row = dict[str, Any]
Taker = Callable[[int, int, list[Row]], None]  # of a basis' number, the place of a chunk in it, and its records


@dataclass
class Assembled:
    """What is left of the records of every basis, in the order of bases."""

    light: list[list[Row]] = field(default_factory=list)  # what summaries need: `KEPT`, `several`, first `positives`
    prompts: dict[str, int] = field(default_factory=dict)  # that proposers were given, with their numbers
    images: set[int] = field(default_factory=set)  # that any record shows


def assemble(run: Run, out: Path, shown: int, take: Taker) -> Assembled:
    """Make all records; writes the maps, and the pictures that are not of the run's own images, into folder `out`.

    `shown` limits the strongest images of a unit. `take` gets every record once, `write.CHUNK` of a basis at a time,
    and what it doesn't keep is gone: as objects, the records of 100,000 units would fill 5 GB and more.
    """
    draw, means = enriched.draw_of(run.images), meaning.of_bases(run)
    write.put(out, "maps", meaning.maps(run, means))
    near, shares = records.neighbours(run, means), random_directions.of_bases(run)
    sheets, unstored = _copy_sheets(run, out), dict[str, Any]()
    found = Assembled()
    for number, basis in enumerate(run.bases):
        kept = records.exemplars_shown(basis, shown, run.images.groups)
        positives = [ids[own].tolist() for ids, own in zip(basis.exemplars["positives"], kept, strict=True)]
        labels = digest(basis.recipes["labels"])
        parts = {
            "maps": maps.of_basis(run, basis, positives, unstored),
            "synthesised": synthesised.of_basis(basis.synthesised, len(kept), labels, number, out),
            "members": members.of_basis(basis, run.bases),
            "label_pictures": label_pictures.of_basis(run.path.parent, basis, out),
            "proposals": _proposals(basis, number, sheets, found.prompts),
        }
        rows = records.of_basis(run, basis, draw, near.pop(basis.name), kept)
        found.light.append([])
        whole = _joined(rows, shares[number], parts, found)
        for place in count():
            if not (some := list(islice(whole, write.CHUNK))):
                break
            take(number, place, some)
    return found


def _joined(
    rows: Iterator[Row], shares: list[float | None], parts: dict[str, Iterator[Any]], found: Assembled
) -> Iterator[Row]:
    """The whole record of each unit of the last basis of `found`, which gets the light one and the images."""
    for record, share, *own in zip(rows, shares, *parts.values(), strict=True):
        record["measured"]["random_percentile"] = share
        found.images.update(record["names"])
        light = {key: record[key] for key in KEPT} | {"several": len(record["meanings"]) > 1}
        found.light[-1].append(light | {"positives": record["positives"][: write.THUMBS]})
        yield record | dict(zip(parts, own, strict=True))


def _copy_sheets(run: Run, out: Path) -> dict[str, str]:
    """Small copies of the sheets that proposers saw, where they are still there: what `vlm_answers.shown` needs."""
    wanted = [
        (number, basis.sheets, name)
        for number, basis in enumerate(run.bases)
        for rows in basis.proposals.values()
        for name in (name for row in rows for name in row.get("sheets") or [])
        if basis.sheets is not None and (basis.sheets / name).is_file()
    ]
    return vlm_answers.copy_sheets(wanted, out)


def _proposals(basis: ReadBasis, number: int, sheets: dict[str, str], prompts: dict[str, int]) -> Iterator[list[Row]]:
    """Per unit what proposers said; prompts that are not in use yet are added to `prompts`."""
    for row in basis.labels:
        rows = basis.proposals.get(row["unit"], [])
        talk = vlm_answers.transcript(basis.sheets, row["unit"]) if rows else []
        yield [vlm_answers.shown(said, number, sheets, prompts, talk) for said in rows]
