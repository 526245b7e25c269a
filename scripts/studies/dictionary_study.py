"""Which dictionary do few photos allow? Held-out FVU by width, k and epochs, cross-validated inside `mine`.

`python scripts/studies/dictionary_study.py CACHE [CACHE ...]` with folders of `saelab cache`; prints a table a layer.
`--latents`, `--k`, `--epochs` name other values. No test photo is looked at: the mining photos are cut in three.
"""

import argparse
import itertools

import numpy as np

from saelab import cache
from saelab.cache import ActivationCache
from saelab.sae import SAEConfig, TrainConfig, fit, quality

FOLDS = 3
RATE = 1e-3


def main() -> None:
    """Print a row a setting: FVU on the folds it was trained on and on those left out, dead latents."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("caches", nargs="+")
    parser.add_argument("--latents", nargs="+", type=int, help="default: 1, 2 and 4 times the layer's width")
    parser.add_argument("--k", nargs="+", type=int, default=[16, 32])
    parser.add_argument("--epochs", nargs="+", type=int, default=[5, 10, 20, 40])
    asked = parser.parse_args()
    for path in asked.caches:
        store = cache.open(path)
        tokens, fold_of = mine_tokens(store)
        print(f"\n{store.layer}: {len(tokens)} mine tokens x {store.d_in}")
        print(f"{'latents':>8}{'k':>5}{'epochs':>8}{'train':>8}{'held out':>10}{'dead':>7}")
        widths = asked.latents or [times * store.d_in for times in (1, 2, 4)]
        for latents, k, epochs in itertools.product(widths, asked.k, asked.epochs):
            rows = [measure(tokens, fold_of, fold, latents, k, epochs) for fold in range(FOLDS)]
            train, held, dead = np.mean(rows, axis=0)
            print(f"{latents:>8}{k:>5}{epochs:>8}{train:>8.3f}{held:>10.3f}{dead:>7.2f}", flush=True)


def mine_tokens(store: ActivationCache) -> tuple[np.ndarray, np.ndarray]:
    """The mining photos' tokens, and each token's fold: whole photos, dealt out by seed."""
    rows = store.rows("mine")
    image = np.searchsorted(store.offsets, rows, side="right") - 1
    own = np.unique(image)
    fold = dict(zip(own.tolist(), np.random.default_rng(0).permutation(len(own)) % FOLDS))
    return np.asarray(store.tokens[rows], dtype=np.float32), np.array([fold[i] for i in image.tolist()])


def measure(
    tokens: np.ndarray, fold_of: np.ndarray, fold: int, latents: int, k: int, epochs: int
) -> tuple[float, float, float]:
    """FVU on the other folds, on this one, and the share of latents dead on the others."""
    inside, outside = tokens[fold_of != fold], tokens[fold_of == fold]
    config = SAEConfig(tokens.shape[1], latents, k=k, lr=RATE, dead_after=20_000)
    sae = fit(inside, config, TrainConfig(batch_size=1024, epochs=epochs), progress=False).sae
    train, held = quality(sae, inside), quality(sae, outside)
    return train["fvu"], held["fvu"], train["dead"]


if __name__ == "__main__":
    main()
