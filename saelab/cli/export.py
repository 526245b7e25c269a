"""Write the exemplars of a finished run for other people's tools.

`format=milan`: a folder a basis, with each unit's strongest pictures and masks of where it fires, as MILAN's and
MILANNOTATIONS' tools read them. Pictures are copied: mind their licences before you pass them on.
"""

from pathlib import Path

from omegaconf import DictConfig

from saelab.cli.edge import command, plain, run_file
from saelab.errors import UserError
from saelab.report import reading
from saelab.run.stages.exemplars import export_milan

FORMATS = ("milan",)


@command(
    "export",
    settings=("run", "format", "bases", "units", "k", "out"),
    examples=(
        "export format=milan",
        "export run=runs/quickstart.json bases=['_blocks.15 sae seed 0'] units='status:ok top:100'",
    ),
    types={"format": str, "k": int, "out": str | None},
)
def main(cfg: DictConfig) -> None:
    """Write a folder for each basis, and say where."""
    given = plain(cfg)
    if given["format"] not in FORMATS:
        raise UserError("format", given["format"], "unknown", f"known: {', '.join(FORMATS)}")
    run = reading.read(run_file(given["run"]))
    out = run.path.parent / "export" / run.path.stem if given["out"] is None else Path(given["out"]).expanduser()
    for basis in reading.choose(given["bases"], [basis for basis in run.bases if basis.of_tokens]):
        folder, count = export_milan(run, basis, str(given["units"]), given["k"], out)
        print(f"{basis.name}: {count} units in {folder}")


if __name__ == "__main__":
    main()
