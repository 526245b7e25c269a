"""Make pictures that raise units, and say of each how far it can be believed.

Pictures and numbers go to <root>/synthesised/<basis>-<hash>/; after a kill, or for more units, the same command goes
on. Unit pages then show them below the photos, never instead of them.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from omegaconf import DictConfig

from saelab import tables
from saelab.artifacts import read_json
from saelab.cli.edge import command, plain, run_file
from saelab.cli.effects import choose
from saelab.run.making import Stages
from saelab.run.record import read_config
from saelab.run.stages.synthesis import SUMMARY, read_request

COLUMNS = (
    "units",
    "reached",
    "beyond photos",
    "ratio",
    "retrieval",
    "se",
    "photo's",
    "top-1",
    "label",
    "se",
    "path",
    "photos'",
)


@command(
    "synthesise",
    settings=(
        "run",
        "bases",
        "units",
        "method",
        "count",
        "steps",
        "crops",
        "pool",
        "diversity",
        "penalty",
        "natural",
        "seconds",
    ),
    examples=(
        "synthesise",
        "synthesise bases=[sae] units='status:ok top:50' method=maco",
        "synthesise units=3,17 count=4 diversity=0.2 steps=256 crops=6",
        "synthesise bases=[neuron] units=top:20 method=accentuate",
    ),
)
def main(cfg: DictConfig) -> None:
    """Make pictures, and print a line for each basis."""
    given = plain(cfg)
    run, wanted = run_file(given.pop("run")), given.pop("bases")
    own = read_request(given)
    made = Stages(read_config(run))
    bases = choose(wanted, made.acting)
    folders = [made.synthesise_units(basis, own) for basis in bases]
    found = [read_json(folder / SUMMARY) for folder in folders]
    print(table(found))
    print(notes(found))
    for basis, folder in zip(bases, folders):
        print(f"{basis.name}: {folder}")
    print(f"pages: saelab report run={run}")


def table(found: Sequence[Mapping[str, Any]]) -> str:
    """Basis x numbers, aligned."""
    rows = []
    for one in found:
        seen, says, way, most = (one[key] or {} for key in ("retrieval", "label_agrees", "path", "path_most"))
        photo = (one.get("retrieval_photo") or {}).get("mean")
        numbers = [one["ratio"], seen.get("mean"), seen.get("se"), photo, one["top1"], says.get("mean"), says.get("se")]
        texts = [str(one["units"]), f"{one['reached']}/{one['pictures']}", f"{one['beyond']}/{one['pictures']}"]
        rows.append(
            [
                f"{one['layer']} {one['basis']}",
                *texts,
                *map(tables.number, (*numbers, way.get("mean"), most.get("mean"))),
            ]
        )
    return tables.draw(("basis", *COLUMNS), rows)


def notes(found: Sequence[Mapping[str, Any]]) -> str:
    """What the table's numbers mean, and what it leaves out."""
    lines = [
        "Chance: retrieval .5, label .5, path 0 (photos among themselves: the last column).",
        "Photo's: the retrieval of each unit's strongest photo for testing, which nobody mined.",
        "A picture that does not reach its unit's median photo is not its face.",
    ]
    chance = [one["top1_chance"] for one in found if one["top1_chance"] is not None]
    if chance:
        lines[0] = lines[0].replace("label .5", f"top-1 {max(chance):.4f}, label .5")
    lines += [f"{one['basis']}: {one['left']} units not made" for one in found if one["left"]]
    if not all(one["independent"] for one in found):
        lines.append("The encoder is the host's own network, so retrieval and label are no independent opinion.")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
