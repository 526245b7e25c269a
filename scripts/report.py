"""Run -> report: `python scripts/report.py run=runs/quickstart.json`, then open the index.html that it names."""

from pathlib import Path

from command import command
from omegaconf import DictConfig

from saelab.report import build


@command("report")
def main(cfg: DictConfig) -> None:
    """Build the report of a run, or say that it is there already."""
    run = Path(cfg.run)
    out = Path(cfg.out) if cfg.out else run.parent / "report" / run.stem
    index = build(run, out, shown=cfg.shown)
    print(f"report  {index.resolve()}\n        open it in a browser; it needs no server and no network")


if __name__ == "__main__":
    main()
