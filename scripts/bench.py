"""Speed, one JSON line a case: `python scripts/bench.py cases=[sae,cache]`; `peers=true` adds the other SAE trainers.

Each line has case, tokens_per_s, seconds, gemm_seconds (the encoder product timed beside it in the same run), ratio
(seconds / gemm_seconds) and peak_mb; the first line describes the machine. A case is a module of scripts/bench_cases
with a generator `cases(**settings)` of such records; its settings are the section of its name in conf/bench.yaml.
"""

import json
import platform
from importlib import import_module
from pathlib import Path

import torch
from command import command, plain
from omegaconf import DictConfig

import saelab
from saelab.errors import UserError


@command("bench")
def main(cfg: DictConfig) -> None:
    """Run the chosen cases."""
    torch.set_num_threads(cfg.threads)
    print(json.dumps(machine()), flush=True)
    known = sorted(p.stem for p in (Path(__file__).parent / "bench_cases").glob("[a-z]*.py"))
    for name in [*cfg.cases, *(["peers"] if cfg.peers else [])]:
        if name not in known:
            raise UserError("cases", name, f"unknown; known: {', '.join(known)}")
        settings = plain(cfg.sae if name == "peers" else cfg.get(name) or {})
        for record in import_module(f"bench_cases.{name}").cases(**settings):
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
