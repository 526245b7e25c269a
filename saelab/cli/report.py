"""Build the pages of a finished run, and the files to take away. They open from disk, without a server or a network."""

import shlex
from pathlib import Path

from omegaconf import DictConfig

from saelab.cli.edge import command, run_file
from saelab.report import build


@command(
    "report",
    settings=("run", "out", "shown", "site"),
    examples=("report", "report run=runs/comparison.json", "report run=runs/quickstart.json out=pages shown=50"),
    types={"out": str | None, "shown": int, "site": str | None},
)
def main(cfg: DictConfig) -> None:
    """Build the report of a run, or find it built."""
    run = run_file(cfg.run)
    out = Path(cfg.out) if cfg.out else run.parent / "report" / run.stem
    index = build(run, out, shown=cfg.shown, site=cfg.site)
    print(f"report  {index.resolve()}\n        open it in a browser; it needs no server and no network")
    print(f"        search it, decide, rate: saelab view run={shlex.quote(str(run))}")


if __name__ == "__main__":
    main()
