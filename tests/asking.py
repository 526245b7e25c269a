"""How tests ask a server about units: the openai proposer over pictures made on the spot, quick to give up."""

from pathlib import Path
from typing import Any

from pictures import Pictures, exemplars
from servers import FaultServer

from saelab.label import propose
from saelab.label.propose import load_proposer

IMAGES = Pictures()
FAST = {"model": "toy", "backoff": 0.001, "timeout": 20, "sheet_px": 448, "concurrency": 1}


def ask(server: FaultServer, folder: Path, units: range, **more: Any) -> tuple[list[propose.Proposal], dict[str, Any]]:
    """The proposals about units of one positive and one contrast each, and their summary."""
    proposer = load_proposer("openai", **{"base_url": server.url, **FAST, **more})
    rows = propose.run(proposer, exemplars(len(units), 1), IMAGES, units, folder, progress=False)
    return rows, propose.summary(rows, units)
