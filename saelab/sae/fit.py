"""The training loop: batches in, a folder with a finished SAE out; killed at any moment, it goes on where it was.

Several SAEs train in one pass over the same batches; each comes out as if trained alone, to the bit.
"""

import dataclasses
import logging
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from saelab import artifacts
from saelab.cache.batches import Batches, spooled
from saelab.errors import UserError
from saelab.sae import checkpoints, summary
from saelab.sae.config import SAEConfig, TrainConfig
from saelab.sae.model import SAE
from saelab.sae.quality import quality
from saelab.sae.train import Trainer
from saelab.sae.world import World

log = logging.getLogger("saelab")
DIVERGED = 10.0  # times the FVU of the first line (or of the mean): then training is given up
Logger = Callable[[int, int, dict[str, float]], None]  # (which SAE, step, numbers)


@dataclass(frozen=True)
class Fit:
    """What training leaves."""

    sae: SAE
    quality: dict[str, Any]  # of a final pass over the training rows; see saelab.sae.quality
    folder: Path | None  # sae.safetensors, quality.json, metrics.jsonl, summary.png


def fit(
    data: Any,
    config: SAEConfig,
    train: TrainConfig | None = None,
    folder: Path | str | None = None,
    *,
    mean: Any = None,
    variance: float | None = None,
    device: str | torch.device = "cpu",
    logger: Logger | None = None,
    progress: bool = True,
) -> Fit:
    """Train one SAE. See `fit_many`, of which this is the case of one."""
    return fit_many(
        data,
        [config],
        train,
        None if folder is None else [folder],
        mean=mean,
        variance=variance,
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
              after a kill goes on from the last. None: nothing is written, nothing can be resumed
    logger    called with (index of the config, step, numbers) each time a line goes to metrics.jsonl; after a kill
              first with the lines that are there already, so that it has seen them all

    Raises UserError for activations with NaN (file and row), a d_in that is not the data's, a checkpoint of another
    recipe, and a loss that is no longer finite (the last good checkpoint then stays where it is).
    """
    train = train or TrainConfig()
    batches = _batches(data, train)
    for config in configs:
        if config.d_in != batches.d_in:
            raise UserError("d_in", config.d_in, f"the activations have {batches.d_in}", "set d_in to the cache's")
    if mean is None or variance is None:
        mean, variance = moments(batches)
    configs = [dataclasses.replace(c, dead_after=min(c.dead_after, batches.n_tokens)) for c in configs]
    runs = [
        _Run(c, None if folders is None else Path(folders[i]), batches, train, torch.device(device), mean, variance)
        for i, c in enumerate(configs)
    ]
    _loop(runs, batches, train, logger, progress)
    fits = [run.finish(batches) for run in runs]
    for run in runs:  # not before all are whole: a kill in the final passes is to cost none of them its training
        run.clear()
    return fits


def _batches(data: Any, train: TrainConfig) -> Batches:
    if isinstance(data, Batches):
        return data
    if not hasattr(data, "ndim"):
        data = spooled(data, None if train.steps is None else train.steps * train.batch_size)
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


class _Run:
    """One SAE of the pass: its trainer, its folder, its lines of metrics."""

    def __init__(
        self,
        config: SAEConfig,
        folder: Path | None,
        batches: Batches,
        train: TrainConfig,
        device: torch.device,
        mean: Any,
        variance: float,
    ) -> None:
        self.folder, self.train = folder, train
        self.total = train.total(batches.steps_per_epoch)
        self.trainer = Trainer(config, device, torch.as_tensor(mean), variance)
        schedule = {
            k: v for k, v in dataclasses.asdict(train).items() if k not in ("keep", "checkpoint_every", "steps")
        }
        seen: dict[str, Any] = {"tokens": batches.n_tokens, "batch_size": batches.batch_size, "seed": batches.seed}
        seen |= {"mean": [float(m) for m in mean], "variance": float(variance), "processes": self.trainer.world.size}
        self.recipe = artifacts.digest(
            {
                "sae": {**dataclasses.asdict(config), "screen": self.trainer.screened},
                "train": schedule,
                "steps": self.total,
                "data": seen,
            }
        )
        self.lines: list[dict[str, Any]] = []
        self._resume()

    def _resume(self) -> None:
        if self.folder is None:
            return
        if not self.trainer.world.rank:
            self.folder.mkdir(parents=True, exist_ok=True)
        found = checkpoints.latest(self.folder / "checkpoints", self.recipe)
        if found is None:
            return
        step, state = found
        self.trainer.restore(state)
        metrics = self.folder / "metrics.jsonl"
        self.lines = [row for row in artifacts.read_jsonl(metrics) if row["step"] < step] if metrics.exists() else []
        log.info("resuming %s at step %d of %d", self.folder, step, self.total)

    def step(self, x: Tensor) -> dict[str, Tensor]:
        now = self.trainer.steps
        return self.trainer.step(x, self.train.lr_factor(now, self.total))

    def numbers(self, step: int, metrics: dict[str, Tensor]) -> dict[str, float]:
        """A step's metrics as floats (this waits for the device). Raises UserError where training has diverged."""
        found = {name: float(value) for name, value in metrics.items()}
        limit = DIVERGED * max(1.0, self.lines[0]["fvu"] if self.lines else found["fvu"])
        if not (math.isfinite(found["loss"]) and found["fvu"] <= limit):
            lr = self.trainer.config.learning_rate
            expected = f"training diverged: loss {found['loss']:.3g}, FVU {found['fvu']:.3g} at step {step}"
            kept = "; the last good checkpoint is kept" if self.folder else ""
            raise UserError("lr", f"{lr:.1e}", expected, f"try lr={lr / 3:.1e} or clip=1.0{kept}")
        return found

    def save(self, step: int) -> None:
        """Write the metrics so far, then the checkpoint that follows from them."""
        if self.folder is None or self.trainer.world.rank:
            return
        artifacts.write_jsonl(self.folder / "metrics.jsonl", self.lines)
        checkpoints.write(self.folder / "checkpoints", step, self.trainer.state(), self.recipe, self.train.keep)

    def finish(self, batches: Batches) -> Fit:
        """Measure, and write the SAE."""
        sae = self.trainer.sae
        found = quality(sae, batches)
        if self.folder is not None and not self.trainer.world.rank:
            artifacts.write_jsonl(self.folder / "metrics.jsonl", self.lines)
            artifacts.write_json(self.folder / "quality.json", found)
            summary.draw(self.lines, found, self.folder / "summary.png")
            sae.save(self.folder)
        return Fit(sae, found, self.folder)

    def clear(self) -> None:
        """Delete the checkpoints, which the finished SAE replaces."""
        if self.folder is not None and not self.trainer.world.rank:
            checkpoints.clear(self.folder / "checkpoints")


def _loop(runs: list[_Run], batches: Batches, train: TrainConfig, logger: Logger | None, progress: bool) -> None:
    world, total, size = World(), runs[0].total, batches.batch_size
    first = min(run.trainer.steps for run in runs)
    hidden = not progress or world.rank > 0
    logger = None if world.rank else logger
    if logger is not None:
        for i, run in enumerate(runs):
            for line in run.lines:
                logger(i, line["step"], {name: value for name, value in line.items() if name != "step"})
    with tqdm(total=total * size, initial=first * size, unit="tok", unit_scale=True, disable=hidden) as bar:
        for step, x in enumerate(batches.prefetched(first, total, world.rank, world.size), start=first):
            logs = step % train.log_every == 0 or step + 1 == total
            saves = (step + 1) % train.checkpoint_every == 0 and step + 1 < total
            for i, run in enumerate(runs):
                if run.trainer.steps > step:
                    continue
                metrics = run.step(x)
                if not (logs or saves):
                    continue
                numbers = run.numbers(step, metrics)
                if logs:
                    run.lines.append({"step": step, **numbers})
                    bar.set_postfix({n: f"{numbers[n]:.3g}" for n in ("loss", "fvu", "l0", "silent")}, refresh=False)
                    if logger is not None:
                        logger(i, step, numbers)
                if saves:
                    run.save(step + 1)
            bar.update(size)
