"""The training loop: batches in, a folder with a finished SAE out; killed at any moment, it goes on where it was.

Several SAEs train in one pass over the same batches; each ends as if trained alone, to the bit.
"""

import dataclasses
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tqdm.auto import tqdm

from saelab.cache.batches import Batches, spool
from saelab.errors import UserError
from saelab.sae.config import SAEConfig, TrainConfig
from saelab.sae.distributed import World
from saelab.sae.job import Data, Fit, Job
from saelab.sae.model import SAE

Logger = Callable[[int, int, dict[str, float]], None]  # (which SAE, step, numbers)


def fit(
    data: Any,
    config: SAEConfig,
    train: TrainConfig | None = None,
    folder: Path | str | None = None,
    *,
    mean: Any = None,
    variance: float | None = None,
    start: SAE | None = None,
    held_out: Any = None,
    device: str | torch.device = "cpu",
    logger: Logger | None = None,
    progress: bool = True,
) -> Fit:
    """Train one SAE. See `fit_many`, of which this is the case of one.

    Eleven parameters: the data and one config are enough; the others have defaults and stand alone.
    """
    return fit_many(
        data,
        [config],
        train,
        None if folder is None else [folder],
        mean=mean,
        variance=variance,
        starts=[start],
        held_out=held_out,
        device=device,
        logger=logger,
        progress=progress,
    )[0]


def fit_many(
    data: Any,
    configs: Sequence[SAEConfig],
    train: TrainConfig | None = None,
    folders: Sequence[Path | str] | None = None,
    *,
    mean: Any = None,
    variance: float | None = None,
    starts: Sequence[SAE | None] | None = None,
    held_out: Any = None,
    device: str | torch.device = "cpu",
    logger: Logger | None = None,
    progress: bool = True,
) -> list[Fit]:
    """Train several SAEs in one pass over the same batches.

    data      an array, memory map or tensor [tokens, d_in], any float dtype; or a Batches (its batch size and seed then
              stand for `train`'s); or an iterable of chunks [n, d_in], which is written to a temporary file first (no
              more of it than `train.steps` batches, where that is given)
    mean      [d_in], and total `variance`, of the data, where known (a cache's header); else computed, in float64
    folders   where to write, one for each config; checkpoints lie in `checkpoints/` while training, and the same call
              after a kill goes on from the last; an SAE of the same recipe that is finished is returned as it lies
              there. None: nothing is written, nothing can be resumed
    starts    an SAE for each config from whose weights training begins (None: weights drawn from the seed); of the same
              shape. training.json then says its checksum
    held_out  tokens that training never sees, in any of the forms of `data`: their quality stands under
              "held_out" in quality.json, with a sentence where the SAE overfits
    logger    called with (index of the config, step, numbers) each time a line goes to metrics.jsonl; after a kill
              first with the lines that are there already, so that it has seen them all

    Raises UserError for activations with NaN (file and row), a d_in that is not the data's, a folder with a checkpoint
    or an SAE of another recipe, a start of another shape, and a loss that is no longer finite (the last good checkpoint
    stays where it is).
    Eleven parameters: the data and the configs are enough; the others have defaults and stand alone.
    """
    train = train or TrainConfig()
    batches = _batches(data, train)
    for config in configs:
        if config.d_in != batches.d_in:
            raise UserError("d_in", config.d_in, f"the activations have {batches.d_in}", "set d_in to the cache's")
    held = None if held_out is None else _batches(held_out, train)
    if held is not None and held.d_in != batches.d_in:
        raise UserError("held_out", f"d_in {held.d_in}", f"d_in {batches.d_in}, that of the data", "use its own layer")
    if mean is None or variance is None:
        mean, variance = moments(batches)
    if variance and not 1e-36 < variance < 1e36:
        what = "float32, in which training computes, can't hold squares of such numbers"
        raise UserError("activations", f"variance {variance:.3g}", what, "multiply them by a constant")
    starts = starts or [None] * len(configs)
    configs = [dataclasses.replace(c, dead_after=min(c.dead_after, batches.n_tokens)) for c in configs]
    places = [None] * len(configs) if folders is None else [Path(folder) for folder in folders]
    jobs = [
        Job(config, place, Data(batches, mean, variance), train, torch.device(device), start)
        for config, place, start in zip(configs, places, starts, strict=True)
    ]
    _agree(jobs)
    _loop(jobs, batches, train, logger, progress)
    fits = [job.finish(batches, held) for job in jobs]
    for job in jobs:  # not before all are whole: a kill in the final passes is to cost none of them its training
        job.clear()
    return fits


def _batches(data: Any, train: TrainConfig) -> Batches:
    if isinstance(data, Batches):
        return data
    if not hasattr(data, "ndim"):
        data = spool(data, None if train.steps is None else train.steps * train.batch_size)
    return Batches(data, train.batch_size, train.seed)


def moments(batches: Batches, chunk: int = 16_384) -> tuple[np.ndarray, float]:
    """Mean [d_in] and total variance of the rows, in float64 (Chan et al.'s pairwise update)."""
    rows = np.arange(batches.n_tokens) if batches.rows is None else np.sort(batches.rows)
    mean, squares, seen = torch.zeros(batches.d_in, dtype=torch.float64), 0.0, 0
    for i in range(0, len(rows), chunk):
        x = batches.read(rows[i : i + chunk]).cpu().double()
        own = x.mean(0)
        step = own - mean
        both = seen + len(x)
        squares += float((x - own).square().sum()) + float(step.square().sum()) * seen * len(x) / both
        mean += step * (len(x) / both)
        seen = both
    return mean.numpy(), squares / seen


def _agree(jobs: list[Job]) -> None:
    """Wait until all processes have looked into the folders. Raises UserError where they found different things."""
    device, world = jobs[0].trainer.device, jobs[0].trainer.world
    for job in jobs:
        found = world.gather(torch.tensor([job.steps], device=device)).tolist()
        if len(set(found)) > 1:
            problem = f"the processes find {' and '.join(map(str, sorted(set(found))))} steps done"
            raise UserError("folder", job.folder, problem, "it has to be one that all of them see")


def _loop(jobs: list[Job], batches: Batches, train: TrainConfig, logger: Logger | None, progress: bool) -> None:
    world, total, size = World(), jobs[0].total, batches.batch_size
    first = min(job.steps for job in jobs)
    hidden = not progress or world.rank > 0 or first == total
    logger = None if world.rank else logger
    if logger is not None:
        for i, job in enumerate(jobs):
            for line in job.lines:
                logger(i, line["step"], {name: value for name, value in line.items() if name != "step"})
    with tqdm(total=total * size, initial=first * size, unit="tok", unit_scale=True, disable=hidden) as bar:
        for step, x in enumerate(batches.prefetch(first, total, world.rank, world.size), start=first):
            logs = step % train.log_every == 0 or step + 1 == total
            saves = (step + 1) % train.checkpoint_every == 0 and step + 1 < total
            for i, job in enumerate(jobs):
                if job.steps > step:
                    continue
                metrics = job.step(x)
                if not (logs or saves):
                    continue
                numbers = job.numbers(step, metrics)
                if logs:
                    job.lines.append({"step": step, **numbers})
                    bar.set_postfix({n: f"{numbers[n]:.3g}" for n in ("loss", "fvu", "l0", "silent")}, refresh=False)
                    if logger is not None:
                        logger(i, step, numbers)
                if saves:
                    job.save(step + 1)
            bar.update(size)
