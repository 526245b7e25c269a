"""Cache the activations of one or several layers, in one pass over the images.

`arrays.activations=FILE` adopts activations that you have; `verify=FOLDER` checks a cache. Several processes:
`torchrun --nproc-per-node 2 -m saelab cache ...` writes the files of one process.
"""

import os
import sys
from datetime import timedelta

import torch
import torch.distributed as dist
from omegaconf import DictConfig

from saelab import cache
from saelab.cli.edge import command, stages
from saelab.errors import UserError


@command(
    "cache",
    settings=(
        "images",
        "images.root",
        "host",
        "layers",
        "policy",
        "dtype",
        "tokens_per_image",
        "batch_size",
        "workers",
        "arrays.activations",
        "arrays.offsets",
        "verify",
        "root",
    ),
    examples=(
        "cache host=resnet50 layers=[layer4] images=folder images.root=PATH",
        "cache arrays.activations=tokens.npy images=folder images.root=PATH",
        "cache verify=runs/activations/_blocks.15-0123456789",
    ),
)
def main(cfg: DictConfig) -> None:
    """Write, adopt or verify."""
    if cfg.verify:
        return verify(cfg.verify)
    if cfg.stream:
        raise UserError("stream", cfg.stream, "stores nothing that could be cached", "use it with train or quickstart")
    joined = join()
    try:
        own = {"device": f"cuda:{os.environ['LOCAL_RANK']}"} if joined and torch.cuda.is_available() else {}
        stores = list(stages(cfg, "verify", **own).caches.values())
    finally:
        if joined:
            dist.destroy_process_group()
    if int(os.environ.get("RANK", 0)) == 0:
        for store in stores:
            print(f"{store.layer}: {store.n_images} images, {store.n_tokens} tokens x {store.d_in}, {store.path}")
    return None


def join() -> bool:
    """Join the processes that torchrun started, if it did. gloo: only names and failures pass between them."""
    if int(os.environ.get("WORLD_SIZE", 1)) == 1:
        return False
    dist.init_process_group("gloo", timeout=timedelta(days=7))  # ranks may end hours apart
    return True


def verify(path: str) -> None:
    """Check every byte of a cache; status 1 if one differs."""
    store = cache.open(path)
    wrong = store.verify()
    if wrong:
        print(f"damaged: {path}: {'; '.join(wrong)}; delete this folder to have it made again", file=sys.stderr)
        sys.exit(1)
    print(f"whole: {path}: {store.n_tokens} tokens x {store.d_in} of {store.layer}")


if __name__ == "__main__":
    main()
