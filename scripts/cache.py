"""Cache activations: `python scripts/cache.py host=resnet50 layers=[layer4] images=folder images.root=PATH`.

`verify=FOLDER` checks a cache. `arrays.activations=FILE` takes activations that you have. On several processes:
`torchrun --nproc-per-node 2 scripts/cache.py ...`; the files are those of one process.
"""

import os
import sys
from datetime import timedelta

import torch
import torch.distributed as dist
from command import command, plain
from omegaconf import DictConfig, open_dict
from stages import Run

from saelab import cache


@command("cache")
def main(cfg: DictConfig) -> None:
    """Write, adopt or verify."""
    if cfg.verify:
        return verify(cfg.verify)
    joined = join()
    try:
        if joined and torch.cuda.is_available():
            with open_dict(cfg):
                cfg.device = f"cuda:{os.environ['LOCAL_RANK']}"
        run = Run(cfg)
        if cfg.arrays.activations:
            settings = plain(cfg.arrays)
            made = [cache.adopt(settings.pop("activations"), run.root, run.images, dtype=cfg.dtype, **settings)]
        else:
            made = list(run.caches.values())
    finally:
        if joined:
            dist.destroy_process_group()
    if int(os.environ.get("RANK", 0)) == 0:
        for store in made:
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
