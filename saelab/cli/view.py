"""Serve a finished run on this machine and open the browser: search, decisions about units, blind rating.

`do=sheets` writes rating sheets for a human study, `do=analyse returned=[a.csv,b.csv]` reads them back.
"""

import socket
import sys
import threading
import webbrowser
from dataclasses import replace
from pathlib import Path

from omegaconf import DictConfig

from saelab.artifacts import write_json
from saelab.cli.edge import command, plain, run_file
from saelab.errors import UserError
from saelab.label.search import ALONE
from saelab.report import build, reading
from saelab.report.build import check_shown
from saelab.report.live import Models, Search, analysis, application, rating, sheets, store
from saelab.run.making import Stages
from saelab.run.record import read_config
from saelab.settings import make


@command(
    "view",
    settings=(
        "run",
        "do",
        "port",
        "browser",
        "device",
        "shown",
        "study.per_basis",
        "study.checks",
        "raters",
        "sheets",
        "returned",
    ),
    examples=(
        "view",
        "view run=runs/comparison.json port=0",
        "view do=sheets raters=5",
        "view do=analyse returned=[a.csv,b.csv]",
    ),
    types={"port": int, "browser": bool, "shown": int, "raters": int, "sheets": str | None, "returned": list},
)
def main(cfg: DictConfig) -> None:
    """Serve, write rating sheets, or analyse ratings."""
    tasks = {"serve": serve, "sheets": write_sheets, "analyse": analyse}
    if cfg.do not in tasks:
        raise UserError("do", cfg.do, "unknown", f"known: {', '.join(tasks)}")
    check_port(cfg.port)
    check_shown(cfg.shown)
    path = run_file(cfg.run)
    run = reading.read(path)
    tasks[cfg.do](cfg, run, path.parent / "live" / path.stem)


def serve(cfg: DictConfig, run: reading.Run, folder: Path) -> None:
    """Answer on loopback until interrupted."""
    import uvicorn

    search = Search(run, models(cfg, run))
    threading.Thread(target=search.warm, daemon=True).start()  # while the report is made and its first page read
    report = build(run, run.path.parent / "report" / run.path.stem, shown=cfg.shown).parent
    app = application(report, search, study(cfg, run), folder)
    listening = listen(cfg.port)
    address = f"http://127.0.0.1:{listening.getsockname()[1]}/"
    print(f"viewer  {address}\n        Ctrl-C ends it", flush=True)
    show(address, wanted=cfg.browser)
    uvicorn.Server(uvicorn.Config(app, log_level="warning")).run(sockets=[listening])


def show(address: str, wanted: bool) -> threading.Thread | None:
    """Open the browser where somebody looks on and wants it; its thread. The socket listens, so the page waits."""
    if not (wanted and sys.stdout.isatty()):
        return None
    opening = threading.Thread(target=webbrowser.open, args=[address], daemon=True)
    opening.start()
    return opening


def write_sheets(cfg: DictConfig, run: reading.Run, folder: Path) -> None:
    """Write a page and an empty CSV for each rater, and the key."""
    where = sheets_folder(cfg, folder)
    drawn = study(cfg, run)
    pages = sheets.write(drawn, run.images, cfg.raters, where)
    checks = sum(item.check for item in drawn.items)
    print(f"sheets  {where}: {len(pages)} raters, {len(drawn.items)} items of which {checks} are attention checks")
    print("        hand out sheet-*.html, keep key.json")


def analyse(cfg: DictConfig, run: reading.Run, folder: Path) -> None:
    """Print what the ratings say and write it to analysis.json."""
    if cfg.returned:
        where = sheets_folder(cfg, folder)
        asked = sheets.read_key(where / "key.json")
        answers = sheets.read([Path(p) for p in cfg.returned], asked)
    else:
        where, asked = folder, study(cfg, run)
        answers = store.Ratings(asked, folder).answers()
    if not answers:
        raise UserError("returned", list(cfg.returned), "there are no ratings yet", "give returned sheets or rate live")
    found = analysis.analyse(asked, answers)
    write_json(where / "analysis.json", found)
    print(analysis.table(found) + f"\n\n{where / 'analysis.json'}")


def models(cfg: DictConfig, run: reading.Run) -> Models:
    """The models of the run's own config, loaded when they are first asked for."""
    made = Stages(replace(read_config(run.path), device=cfg.device))
    own = made.config
    return Models(
        embed=made.embed_texts,
        embeddings=lambda: made.embeddings.images,
        host=lambda: made.host,
        mining=own.label.mining,
        scorer=own.label.final if own.label.final in ALONE else "pearson",
        policy=own.policy,
        pool=own.pool,
    )


def study(cfg: DictConfig, run: reading.Run) -> rating.Study:
    """The study that the config asks for."""
    return rating.draw(run, make(rating.StudySettings, plain(cfg.study), "study."))


def sheets_folder(cfg: DictConfig, folder: Path) -> Path:
    """Where rating sheets lie."""
    return Path(cfg.sheets) if cfg.sheets else folder / "sheets"


def check_port(port: int) -> None:
    """Raise UserError for what no port can be."""
    if not 0 <= port <= 65535:
        raise UserError("port", port, "expected 0 to 65535", "0 takes any that is free")


def listen(port: int) -> socket.socket:
    """A socket on loopback, and nowhere else."""
    check_port(port)
    listening = socket.socket()
    listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listening.bind(("127.0.0.1", port))
        listening.listen()
    except OSError as error:
        raise UserError("port", port, f"is not free ({error})", "give another one, or port=0 for any") from None
    return listening


if __name__ == "__main__":
    main()
