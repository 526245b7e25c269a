"""Train sparse autoencoders on a layer's cached activations, one for each seed, in one pass.

Writes what is missing of the activations, then <root>/sae/; after a kill the same command resumes. `stream=true`
writes no activations: the host computes them while the SAEs train (docs/scale.md).
`wandb.project=NAME` logs to W&B as well. Several processes: `torchrun --nproc-per-node 2 -m saelab train ...`.
"""

import json
import logging
import os
from typing import Any

from omegaconf import DictConfig

from saelab.artifacts import Artifact, digest, read_json
from saelab.cli.edge import command, plain, stages
from saelab.errors import UserError
from saelab.run.config import as_tuple
from saelab.run.distributed import count_processes, join

log = logging.getLogger("saelab")


@command(
    "train",
    settings=(
        "sae",
        "sae.rule",
        "sae.k",
        "sae.expansion",
        "sae.latents",
        "sae.lr",
        "sae.train.batch_size",
        "sae.train.epochs",
        "sae.train.latent_shards",
        "sae.train.accumulate",
        "sae.train.graph",
        "layers",
        "seeds",
        "stream",
        "images",
        "host",
        "wandb.project",
        "root",
    ),
    examples=(
        "train sae=gao_topk layers=[_blocks.15] seeds=[0,1]",
        "train sae=matryoshka arrays.activations=tokens.npy images=folder images.root=PATH",
        "train --multirun sae.k=8,16,32",
        "train stream=true layers=[_blocks.10,_blocks.15]",
        "train 'stream={crop:random}'",
    ),
)
def main(cfg: DictConfig) -> None:
    """Train every layer's SAEs and print what each came to."""
    with join() as first:
        made = stages(cfg, "wandb")
        made.check_saes(count_processes())
        logs = first and cfg.wandb.project is not None
        loggers = {layer: WandbRuns(cfg, layer, store.digest) for layer, store in made.caches.items()} if logs else None
        for layer, saes in made.train_all(loggers):
            for sae in saes if first else []:
                show(sae)
            if loggers is not None:
                loggers[layer].finish(saes)


def show(sae: Artifact) -> None:
    """Print what an SAE came to, also on the tokens that it never saw, and say so where it overfits."""
    found = read_json(sae.path / "quality.json")
    shown = {name: round(found[name], 4) for name in ("fvu", "l0", "dead", "rare", "dense")}
    held = found.get("held_out")  # of caches, since they have it; not of streams
    if held is not None:
        shown |= {f"held_out_{name}": held[name] and round(held[name], 4) for name in ("fvu", "l0")}
    print(f"{sae.path}: {json.dumps(shown)}")
    if held is not None and held["overfit"]:
        log.warning("%s: %s", sae.path, held["overfit"])


class WandbRuns:
    """One W&B run for each seed, under an id that is the same after a resume; called as saelab.sae.fit's logger.

    Offline where nobody is logged in; the files lie under `root`/wandb. A kill loses what W&B holds in memory, so after
    a resume all lines are logged again; a server ignores what it has.
    """

    def __init__(self, cfg: DictConfig, layer: str, cache: str) -> None:
        self.cfg, self.layer, self.cache = cfg, layer, cache
        self.seeds = as_tuple(plain(cfg.seeds))
        self.mode: Any = cfg.wandb.mode or os.environ.get("WANDB_MODE") or ("online" if logged_in() else "offline")
        self.runs: dict[int, Any] = {}

    def __call__(self, which: int, step: int, numbers: dict[str, float]) -> None:
        if which not in self.runs:
            self.runs[which] = self._open(which)
        if step >= self.runs[which].step:
            self.runs[which].log(numbers, step=step)

    def _open(self, which: int) -> Any:
        import wandb

        seed = self.seeds[which]
        settings = self.settings(seed)
        try:
            return wandb.init(
                project=self.cfg.wandb.project,
                id=digest(settings)[:16],
                resume="allow",
                mode=self.mode,
                name=f"{self.layer}-seed{seed}",
                config=settings,
                dir=str(self.cfg.root),
                reinit="create_new",
            )
        except wandb.Error as error:
            what = f"W&B is out of reach ({str(error).splitlines()[0]})"
            remedy = "wandb.mode=offline writes the run to files; `wandb sync` uploads them later"
            raise UserError("wandb.mode", self.mode, what, remedy) from None

    def settings(self, seed: int) -> dict[str, Any]:
        """The settings that W&B keeps of a run, from which its id is made: less what changes rounding alone."""
        sae = plain(self.cfg.sae)
        for name in ("latent_shards", "graph"):  # others stay, though some change no result: ids are older
            sae["train"].pop(name, None)
        if not (sae.get("choose_by_piece") and sae["train"].get("accumulate", 1) > 1):
            sae.pop("choose_by_piece", None)
            sae["train"].pop("accumulate", None)
        stream = plain(self.cfg.stream)
        crop = {"crop": stream["crop"]} if isinstance(stream, dict) and stream.get("crop") else {}
        return {**sae, **crop, "layer": self.layer, "seed": seed, "host": plain(self.cfg.host), "cache": self.cache}

    def finish(self, saes: list[Artifact]) -> None:
        """Add the final pass' numbers to each run, and close it."""
        for which, opened in self.runs.items():
            found = read_json(saes[which].path / "quality.json")
            found |= {f"held_out/{name}": value for name, value in found.pop("held_out", {}).items()}
            final = {f"final/{name}": value for name, value in found.items() if not name.endswith("density")}
            opened.summary.update(final)
            opened.finish()


def logged_in() -> bool:
    """Whether there is a key for W&B's server: in the environment, or in the file that `wandb login` writes."""
    from requests.utils import get_netrc_auth

    server = os.environ.get("WANDB_BASE_URL", "https://api.wandb.ai")
    return bool(os.environ.get("WANDB_API_KEY")) or get_netrc_auth(server) is not None


if __name__ == "__main__":
    main()
