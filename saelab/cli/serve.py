"""Serve the units of a finished run to programs and agents: over HTTP on this machine, or over MCP (mcp=true).

`GET /tools` lists the calls and `POST /tools/NAME` asks one: activate pictures, exemplars, contrasts, labels, effects,
ablate, steer. Over MCP the same calls are tools, on standard input and output.
"""

import contextlib
import os
import sys
from collections.abc import Iterator
from typing import BinaryIO

from omegaconf import DictConfig

from saelab.cli.edge import command, run_file
from saelab.cli.view import check_port, listen, models
from saelab.label.tools import Toolbox
from saelab.report import reading
from saelab.serve import mcp, units, web

ABOUT = (
    "Units (neurons, SAE features, controls) of a vision model. Call `bases` first; a unit is named by its basis and "
    "its number. Only images for mining are exemplars; judge a label on other images with `activate`."
)


@command(
    "serve",
    settings=("run", "port", "mcp", "device"),
    examples=("serve", "serve run=runs/comparison.json port=0", "serve mcp=true"),
    types={"port": int, "mcp": bool},
)
def main(cfg: DictConfig) -> None:
    """Answer until interrupted, or until standard input ends."""
    check_port(cfg.port)
    run = reading.read(run_file(cfg.run))
    box = Toolbox(units.tools(run, models(cfg, run)))
    if cfg.mcp:
        with own_output() as sink:
            mcp.Server(box, ABOUT).run(sys.stdin.buffer, sink)
        return
    import uvicorn

    listening = listen(cfg.port)
    print(f"units   http://127.0.0.1:{listening.getsockname()[1]}/tools\n        Ctrl-C ends it", flush=True)
    uvicorn.Server(uvicorn.Config(web.application(box), log_level="warning")).run(sockets=[listening])


@contextlib.contextmanager
def own_output() -> Iterator[BinaryIO]:
    """Standard output for messages alone: whatever else is printed meanwhile goes to standard error."""
    sys.stdout.flush()
    kept = os.dup(1)
    os.dup2(2, 1)
    try:
        with os.fdopen(kept, "wb") as sink:
            yield sink
    finally:
        sys.stdout.flush()


if __name__ == "__main__":
    main()
