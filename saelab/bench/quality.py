"""What an SAE explains of held-out tokens after equal steps on equal batches, ours beside the other trainers'.

The last 30 % of a data set's tokens are held out, in the order of its pictures: each trainer's rate is the one that is
best on the first half of them (first seed), and all numbers are of the second half, which nothing was chosen on. FVU
can be bought with latents that are hardly used, so the best rate of those that leave few such is measured too.
"""

import statistics
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

import saelab
from saelab import cache
from saelab.bench import peers
from saelab.cache import Batches
from saelab.errors import UserError
from saelab.sae import SAEConfig, TrainConfig, Trainer
from saelab.sae.quality import CHUNK, RARE_TOKENS

HELD_OUT = 0.3  # of the tokens
USED = 0.02  # share of the latents that may be dead or rare where few are unused
START, SHARE = 0.2, 0.1  # our encoder_length and dead_share, as in the presets topk and batchtopk

Rebuild = Callable[[Tensor], tuple[Tensor, Tensor]]  # tokens to reconstructions and dense codes


def cases(
    data: list[str], latents: int, k: int, steps: int, batch: int, rates: list[float], seeds: list[int], others: bool
) -> Iterator[dict[str, Any]]:
    """One line a data set and trainer: FVU of held-out tokens, dead + rare latents, the rate; means over seeds.

    `few_unused` has the same of the best rate that leaves at most 2 % dead + rare with the first seed; None: none does.
    `data`: folders of caches, or .npy files [tokens, d_in]. `latents`: how many times d_in. All trainers see the same
    batches, centred and scaled to one unit of spread, and the same fall of the rate over the last fifth. `others`: also
    the packages that are installed. Raises UserError where a path holds no tokens.
    Eight parameters: the section `quality` of bench.yaml, which no other function takes together.
    """
    if not data:
        raise UserError("quality.data", data, "folders of caches, or .npy files", "write one with saelab cache")
    sets = {path: _load(path) for path in data}
    yield from peers.not_installed() if others else ()
    makers = {"saelab": None, **(peers.installed() if others else {})}
    for path, tokens in sets.items():
        cut, end = int(len(tokens) * (1 - HELD_OUT)), int(len(tokens) * (1 - HELD_OUT / 2))
        rows, tuning, test = tokens[:cut], tokens[cut:end], tokens[end:]
        for name, build in makers.items():
            what = (rows, latents * rows.shape[1], k, steps, batch, build)
            line = {"case": f"quality, {name}, {Path(path).name} {rows.shape[1]}->{latents * rows.shape[1]}"}
            try:
                first = {rate: train(*what, rate, seeds[0]) for rate in rates}
                scores = {rate: fvu(one, tuning) for rate, one in first.items()}
                used = {rate: scores[rate] for rate in rates if dead_or_rare(first[rate], rows) <= USED}
                chosen = {min(some, key=some.__getitem__) for some in (scores, used) if some}
                found = {
                    rate: _measure([first[rate], *(train(*what, rate, seed) for seed in seeds[1:])], rate, rows, test)
                    for rate in chosen
                }
            except UserError:
                raise
            except Exception as error:  # whatever another package raises
                yield {**line, "skipped": f"{type(error).__name__}: {error}".splitlines()[0]}
                continue
            yield {
                **line,
                **found[min(scores, key=scores.__getitem__)],
                "few_unused": found[min(used, key=used.__getitem__)] if used else None,
                "version": saelab.__version__ if build is None else peers.version_of(name),
            }


def _measure(found: list[Rebuild], rate: float, rows: Tensor, test: Tensor) -> dict[str, Any]:
    """What one rate's trainings, one a seed, explain and leave unused."""
    fvus = [fvu(one, test) for one in found]
    return {
        "fvu": round(statistics.mean(fvus), 4),
        "fvu_seeds": [round(value, 4) for value in fvus],
        "dead_or_rare": round(statistics.mean(dead_or_rare(one, rows) for one in found), 4),
        "rate": rate,
    }


def train(
    rows: Float[Tensor, "tokens d_in"],
    latents: int,
    k: int,
    steps: int,
    batch: int,
    build: peers.Builder | None,
    rate: float,
    seed: int,
) -> Rebuild:
    """Train on batches that depend on the seed alone; `build` None: ours. Returns what rebuilds tokens.

    Eight parameters: a training's settings by name.
    """
    torch.manual_seed(seed)
    schedule, batches = TrainConfig(batch, steps=steps, seed=seed), Batches(rows.numpy(), batch, seed)
    if build is None:
        shape = (rows.shape[1], latents)
        config = SAEConfig(*shape, k=k, lr=rate, seed=seed, encoder_length=START, dead_share=SHARE)
        config = replace(config, dead_after=config.dead_within(len(rows)))  # as `fit` does
        variance = float((rows - rows.mean(0)).square().sum(1).mean())
        trainer = Trainer(config, mean=rows.mean(0), variance=variance)
        for step in range(steps):
            trainer.step(batches.batch(step), schedule.lr_factor(step, steps))
        return lambda x: (trainer.sae(x), trainer.sae.encode_dense(x))
    peer = build(rows.shape[1], latents, k, rows.mean(0))
    for step in range(steps):
        peer.step(batches.batch(step), rate * schedule.lr_factor(step, steps))
    return peer.rebuild


@torch.no_grad()
def fvu(rebuild: Rebuild, x: Float[Tensor, "tokens d_in"]) -> float:
    """Residual sum of squares over the sum of squares about the mean, summed in float64."""
    left = sum(float((rebuild(part)[0].double() - part.double()).square().sum()) for part in x.split(CHUNK))
    whole = float((x.double() - x.double().mean(0)).square().sum())
    return left / whole if np.isfinite(left) else np.inf


@torch.no_grad()
def dead_or_rare(rebuild: Rebuild, x: Float[Tensor, "tokens d_in"]) -> float:
    """Share of the latents that fewer than 10 tokens fire."""
    fired = torch.stack([(rebuild(part)[1] > 0).sum(0) for part in x.split(CHUNK)]).sum(0)
    return float((fired < RARE_TOKENS).double().mean())


def _load(path: str) -> Float[Tensor, "tokens d_in"]:
    """All tokens of a cache or a .npy file, in float32, centred and scaled to one unit of spread a dimension."""
    if Path(path).suffix == ".npy":
        if not Path(path).is_file():
            raise UserError("quality.data", path, "there is no such file", "give a cache or a .npy")
        found = np.load(path)
    else:
        found = np.asarray(cache.open(path).tokens[:])
    if found.ndim != 2 or len(found) * HELD_OUT < 2:
        raise UserError("quality.data", path, f"[tokens, d_in], found {list(found.shape)}", "give a cache or a .npy")
    x = torch.from_numpy(found.astype(np.float32))
    x -= x.mean(0)
    return x / x.square().mean().sqrt()
