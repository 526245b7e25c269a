"""Train SAEs on a layer's cached tokens: `python scripts/train.py sae=gao_topk layers=[_blocks.15] seeds=[0,1]`.

Writes what is missing of the activations, then one SAE for each layer and seed under runs/sae/; killed, the same
command goes on. `wandb.project=NAME` logs to W&B as well. Widths, k and learning rates: `--multirun sae.k=8,16,32`.
Several processes: `torchrun --nproc-per-node 2 scripts/train.py ...`.
"""

import json
import os
from collections.abc import Callable
from typing import Any

import torch
import torch.distributed as dist
from command import command, plain
from omegaconf import DictConfig
from stages import Run

from saelab.artifacts import digest, read_json


@command("train")
def main(cfg: DictConfig) -> None:
    """Train every layer's SAEs and print what each came to."""
    joined = int(os.environ.get("WORLD_SIZE", 1)) > 1
    if joined:
        dist.init_process_group("nccl" if torch.cuda.is_available() else "gloo")
    try:
        run = Run(cfg)
        for layer in run.caches:
            for sae in run.saes(layer, wandb_logger(cfg, layer)):
                found = read_json(sae.path / "quality.json")
                shown = {name: round(found[name], 4) for name in ("fvu", "l0", "dead", "rare", "dense")}
                print(f"{sae.path}: {json.dumps(shown)}")
    finally:
        if joined:
            dist.destroy_process_group()


def wandb_logger(cfg: DictConfig, layer: str) -> Callable[[int, int, dict[str, float]], None] | None:
    """A logger that keeps one W&B run for each seed, under an id that is the same after a resume; None if not asked."""
    if cfg.wandb.project is None or int(os.environ.get("RANK", 0)):
        return None
    import wandb

    mode: Any = cfg.wandb.mode or ("online" if wandb.api.api_key else "offline")
    runs: dict[int, Any] = {}

    def log(which: int, step: int, numbers: dict[str, float]) -> None:
        if which not in runs:
            settings = {**plain(cfg.sae), "layer": layer, "seed": cfg.seeds[which], "host": plain(cfg.host)}
            identity = digest(settings)[:16]
            name = f"{layer}-seed{cfg.seeds[which]}"
            runs[which] = wandb.init(
                project=cfg.wandb.project,
                id=identity,
                resume="allow",
                mode=mode,
                name=name,
                config=settings,
                reinit="create_new",
            )
        runs[which].log(numbers, step=step)

    return log


if __name__ == "__main__":
    main()
