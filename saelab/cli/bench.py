"""Measure speed, one JSON line a case; the first line describes the machine.

Each line has case, tokens_per_s, seconds, gemm_seconds (the encoder product timed beside it in the same run), ratio
(seconds / gemm_seconds) and peak_mb. `peers=true` times the same step of every other SAE trainer that is installed;
with `cases=[quality]` it compares what they explain of held-out tokens (`fvu`, `dead_or_rare`) instead.
"""

import json
import platform
from importlib import import_module
from pathlib import Path

import torch
from omegaconf import DictConfig

import saelab
from saelab import bench
from saelab.cli.edge import command, plain
from saelab.errors import UserError


@command(
    "bench",
    settings=(
        "cases",
        "peers",
        "threads",
        "sae.shapes",
        "sae.k",
        "sae.rules",
        "sae.rounds",
        "quality.data",
        "sae_gpu.shape",
    ),
    examples=(
        "bench cases=[sae,cache]",
        "bench cases=[] peers=true",
        "bench cases=[quality] quality.data=[PATH] peers=true",
        "bench cases=[sae_gpu]",
    ),
)
def main(cfg: DictConfig) -> None:
    """Run the chosen cases."""
    torch.set_num_threads(cfg.threads)
    print(json.dumps(machine()), flush=True)
    known = sorted(p.stem for p in Path(bench.__file__).parent.glob("[a-z]*.py"))
    for name in [*cfg.cases, *(["peers"] if cfg.peers and "quality" not in cfg.cases else [])]:
        if name not in known:
            raise UserError("cases", name, f"unknown; known: {', '.join(known)}")
        settings = plain(cfg.sae if name == "peers" else cfg.get(name) or {})
        if name == "peers":
            settings.pop("screens")  # ours settles on the fastest
        if name == "quality":
            settings["others"] = cfg.peers
        for record in import_module(f"saelab.bench.{name}").cases(**settings):
            print(json.dumps(record), flush=True)


def machine() -> dict[str, str | int]:
    """What the numbers were measured on."""
    cpu = platform.processor() or platform.machine()
    info = Path("/proc/cpuinfo")
    if info.exists():
        names = [
            line.split(":", 1)[1].strip() for line in info.read_text().splitlines() if line.startswith("model name")
        ]
        cpu = names[0] if names else cpu
    gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else "none"
    versions = f"torch {torch.__version__}, saelab {saelab.__version__}"
    return {"machine": cpu, "threads": torch.get_num_threads(), "gpu": gpu, "versions": versions}


if __name__ == "__main__":
    main()
