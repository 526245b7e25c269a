"""Do random crops help where pictures are few? FVU on whole held-out pictures after equal steps, with and without.

`python scripts/studies/crop_study.py [EPOCHS]`: the packaged photos, the quickstart's SAE, three seeds of its weights
in one pass; order and crops of seed 0. Each epoch of crops is a pass of the host: 348 pictures.
"""

import sys
import tempfile

import numpy as np
import torch

from saelab import cache, hosts, images
from saelab.run.presets import preset
from saelab.run.stages.sae import sae_configs
from saelab.sae import fit_layers
from saelab.sae.quality import quality

LAYER = "_blocks.15"
SEEDS = (0, 1, 2)


def main(epochs: int, folder: str) -> None:
    """Print, for whole pictures and for crops, the FVU of every seed on pictures of training and on held-out ones.

    `folder`: for the moments.
    """
    torch.set_num_threads(1)
    photos, host = images.load("packaged"), hosts.load("efficientnet_lite0")
    (store,) = cache.recompute(photos, host, [LAYER], folder).values()
    held = store.tokens[store.rows("test")]
    given = preset("sae", "quickstart")
    given["train"] = {**given["train"], "epochs": epochs}
    configs, train = sae_configs(given, LAYER, store.d_in, SEEDS)
    print("crop    steps  FVU by seed, mean: pictures of training; held-out pictures")
    for crop in (None, "random"):
        made = cache.stream({LAYER: store}, train.batch_size, train.seed, crop=crop)
        fits = fit_layers(made, {LAYER: configs}, train, progress=False)[LAYER]
        found = [[fit.quality["fvu"] for fit in fits], [quality(fit.sae, held)["fvu"] for fit in fits]]
        steps = train.total(made[LAYER].steps_per_epoch)
        each = "; ".join(f"{' '.join(f'{fvu:.4f}' for fvu in own)}, {np.mean(own):.4f}" for own in found)
        print(f"{crop or 'none':6s}  {steps:5d}  {each}", flush=True)


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as folder:
        main(int(sys.argv[1]) if len(sys.argv) > 1 else 12, folder)
