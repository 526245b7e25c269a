"""Write the exemplars of a finished run for other people's tools.

`format=milan`: a folder a basis, with each unit's strongest pictures and masks of where it fires, as MILAN's and
MILANNOTATIONS' tools read them. Pictures are copied: mind their licences before you pass them on.
"""

from pathlib import Path

from omegaconf import DictConfig

from saelab import settings
from saelab.cli.edge import command, plain, run_file
from saelab.errors import UserError
from saelab.report import reading
from saelab.run.config import as_tuple
from saelab.run.stages.exemplars import export_milan

FORMATS = ("milan",)


@command(
    "export",
    settings=("run", "format", "bases", "units", "k", "out"),
    examples=(
        "export format=milan",
        "export run=runs/quickstart.json bases=['_blocks.15 sae seed 0'] units='status:ok top:100'",
    ),
)
def main(cfg: DictConfig) -> None:
    """Write a folder for each basis, and say where."""
    given = plain(cfg)
    if given["format"] not in FORMATS:
        raise UserError("format", given["format"], "unknown", f"known: {', '.join(FORMATS)}")
    run = reading.read(run_file(given["run"]))
    out = run.path.parent / "export" / run.path.stem if given["out"] is None else Path(given["out"]).expanduser()
    known = {basis.name: basis for basis in run.bases if basis.of_tokens}
    for name in known if given["bases"] is None else as_tuple(given["bases"]):
        if name not in known:
            near = settings.nearest(name, list(known))
            raise UserError("bases", name, f"not in {run.path}", f"{near}it has {', '.join(known)}")
        folder, count = export_milan(run, known[name], str(given["units"]), given["k"], out)
        print(f"{name}: {count} units in {folder}")


if __name__ == "__main__":
    main()
