"""One SAE of a pass: its trainer, its folder, its lines of metrics; where it stands when a call begins."""

import dataclasses
import logging
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from saelab import artifacts
from saelab.cache.batches import Batches
from saelab.errors import UserError
from saelab.sae import checkpoints, record, rules, summary
from saelab.sae.average import SHARED, Average
from saelab.sae.config import SAEConfig, TrainConfig, drop_rounding
from saelab.sae.distributed import World
from saelab.sae.model import SAE
from saelab.sae.parts import Holding
from saelab.sae.quality import compare_held_out, quality
from saelab.sae.train import Trainer

log = logging.getLogger("saelab")
SHORT, SLOW = 2000, 1e-3  # steps and rate under which lr=None leaves much unexplained (docs/sae.md)
LATER = {"jumprelu": 2}  # rules that train otherwise than they once did: since 2, silent latents are revived
WASTED = 0.1  # share of dead latents from which on the log says so, with what helps
EXCEEDS = 1.05  # times k: mean L0 of held-out tokens from which on the log says that thresholds don't keep k
DIVERGED = 10.0  # times the FVU of the first line (or of the mean): then training is given up


@dataclass(frozen=True)
class Fit:
    """What training leaves."""

    sae: SAE
    quality: dict[str, Any]  # of a final pass over the training rows, and over held-out ones under "held_out"
    folder: Path | None  # sae.safetensors, training.json, quality.json, metrics.jsonl, summary.png


@dataclass(frozen=True)
class Data:
    """What a pass trains on, with the moments that centre and scale it."""

    batches: Batches
    mean: Any  # [d_in], of an array or a tensor
    variance: float  # total, over all dimensions
    facts: dict[str, Any]  # for recipes: what decides the order besides the seed, and what the moments are of


class Job:
    """One SAE of the pass: its trainer, its folder, its lines of metrics."""

    def __init__(
        self,
        config: SAEConfig,
        folder: Path | None,
        data: Data,
        train: TrainConfig,
        device: torch.device,
        start: SAE | None = None,
        world: World | None = None,
    ) -> None:
        self.folder, self.train = folder, train
        self.total = train.total(data.batches.steps_per_epoch)
        self.trainer = Trainer(
            config, device, torch.as_tensor(data.mean), data.variance, start, world, train.accumulate, train.graph
        )
        self.average = Average(train.ema) if train.ema else None
        self.recipe = self._recipe(config, data)
        if start is not None:
            self.recipe["start"] = checkpoints.checksum(start.tensors())
        # however many processes: they change how sums are rounded, so a run may go on with others
        self.digest = artifacts.digest({**self.recipe, "data": {**self.recipe["data"], "processes": 1}})
        self.lines: list[dict[str, Any]] = []
        self.finished: Fit | None = None  # by an earlier call
        self._resume()
        self._advise()

    def _advise(self) -> None:
        """Say so where the rate of long runs is taken for a short one."""
        config = self.trainer.config
        short = config.lr is None and self.total < SHORT and config.learning_rate < SLOW and config.frozen != "all"
        if short and self.finished is None:
            rate = f"lr=None means {config.learning_rate:.1e}, made for long runs"
            log.warning("%s: in %d steps, lr=1e-3 to 2e-3 explains more", rate, self.total)

    def _recipe(self, config: SAEConfig, data: Data) -> record.Recipe:
        """Everything that the SAE, its metrics and its quality depend on."""
        batches = data.batches
        later = {"code": LATER[config.rule]} if config.rule in LATER else {}
        config, train = drop_rounding(config, self.train)
        silent = {"keep", "checkpoint_every", "steps"}
        screen = self.trainer.screen
        chosen = screen == "bfloat16" if screen in ("float32", "bfloat16") else screen  # as older folders say it
        return {
            "sae": {**artifacts.plain(config), "screen": chosen, **later},
            "train": {name: value for name, value in artifacts.plain(train).items() if name not in silent},
            "steps": self.total,
            "data": {
                "tokens": batches.n_tokens,
                "batch_size": batches.batch_size,
                "seed": batches.seed,
                "processes": self.world.all.size,
                "rows": batches.fingerprint(),
                **data.facts,
                "variance": float(data.variance),
                "mean": [float(m) for m in data.mean],
            },
        }

    def _resume(self) -> None:
        """Go on from what lies in the folder. Raises UserError where that is another recipe's."""
        folder = self.folder
        if folder is None:
            return
        finished = record.holds(folder, self.recipe)
        self.holding.check_same(folder, finished)
        if finished:
            self.finished = Fit(self._load(), artifacts.read_json(folder / "quality.json"), folder)
            self.lines = _lines(folder, self.total)
            log.info("%s is finished: nothing to train", folder)
            return
        if self.world.first:
            folder.mkdir(parents=True, exist_ok=True)
        before = artifacts.digest(self.recipe)  # as checkpoints say that are older than shards
        found = checkpoints.latest(folder / "checkpoints", self.digest, self.holding, before)
        if found is None:
            return
        step, state = found
        self.trainer.restore(state)
        if self.average is not None:
            self.average.restore(state, self.trainer.device)
        self.lines = _lines(folder, step)
        log.info("resuming %s at step %d of %d", folder, step, self.total)

    @property
    def holding(self) -> Holding:
        """What of a checkpoint this process holds: of the trainer, and of the mean of its weights."""
        own = self.trainer.holding
        return dataclasses.replace(own, shared=own.shared | {SHARED})

    @property
    def steps(self) -> int:
        """Steps that are behind it."""
        return self.trainer.steps if self.finished is None else self.total

    def step(self, x: Tensor) -> dict[str, Tensor]:
        now = self.trainer.steps
        found = self.trainer.step(x, self.train.lr_factor(now, self.total))
        if self.average is not None:
            self.average.follow(self.trainer.weights, self.trainer.steps)
        return found

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
        if self.folder is None or self.world.data.rank:
            return
        if self.world.first:
            artifacts.write_jsonl(self.folder / "metrics.jsonl", self.lines)
        where, trainer = self.folder / "checkpoints", self.trainer
        state = trainer.state() | ({} if self.average is None else self.average.state())
        checkpoints.write(where, step, state, self.digest, self.train.keep, self.holding)

    def finish(self, batches: Batches, held_out: Batches | None) -> Fit:
        """Measure, and write the SAE; last of all its weights, for a folder that has these is finished."""
        if self.finished is not None:
            return self._finish_again(self.finished, held_out)
        if self.average is not None:
            self.average.put_into(self.trainer.weights)
        sae = self.trainer.sae
        found = quality(sae, batches)
        if held_out is not None:
            found["held_out"] = compare_held_out(sae, found, held_out)
        self._judge(found)
        if self.folder is not None and self.world.first:
            artifacts.write_jsonl(self.folder / "metrics.jsonl", self.lines)
            artifacts.write_json(self.folder / "quality.json", found)
            summary.draw(self.lines, found, self.folder / "summary.png")
            record.write(self.folder, self.recipe)
        if self.folder is not None and not self.world.data.rank:
            sae.save(self.folder)
        if sae.group.size > 1:
            self.world.all.wait(self.trainer.device)
            sae = self._load()
            self.world.all.wait(self.trainer.device)  # the first process may move the folder
        return Fit(sae, found, self.folder)

    def _judge(self, found: dict[str, Any]) -> None:
        """Say so where many latents are dead, and where thresholds let more through than k, with what helps."""
        config, name = self.trainer.config, self.folder or "the SAE"
        if found["dead"] > WASTED:
            share = f"{found['dead']:.0%} of its {config.latents} latents"
            log.warning("%s: no token of training fires %s; take fewer latents or more tokens", name, share)
        held_out = found.get("held_out", {}).get("l0", 0.0)
        if rules.find(config.rule).has_k and held_out > EXCEEDS * config.k:
            exceed = f"{held_out:.3g} latents a held-out token exceed their thresholds, k is {config.k}"
            log.warning("%s: %s; compare SAEs at held_out.l0 of quality.json, or take rule=topk", name, exceed)

    def _load(self) -> SAE:
        """The finished SAE: on the device, or where processes share it in the CPU's memory, which maps the file."""
        assert self.folder is not None
        return SAE.load(self.folder, self.trainer.device if self.world.latents.size == 1 else "cpu")

    @property
    def world(self) -> World:
        return self.trainer.world

    def _finish_again(self, fit: Fit, held_out: Batches | None) -> Fit:
        """An SAE that was finished before; held-out rows that quality.json doesn't cover are measured, not written."""
        there = fit.quality.get("held_out", {}).get("rows")
        if held_out is None or there == held_out.fingerprint():
            return fit
        measured = compare_held_out(fit.sae, fit.quality, held_out)
        return dataclasses.replace(fit, quality={**fit.quality, "held_out": measured})

    def clear(self) -> None:
        """Delete the checkpoints, which the finished SAE replaces."""
        if self.folder is not None and self.world.first:
            checkpoints.clear(self.folder / "checkpoints")


def _lines(folder: Path, before: int) -> list[dict[str, Any]]:
    """What metrics.jsonl holds of the steps before this one."""
    metrics = folder / "metrics.jsonl"
    return [row for row in artifacts.read_jsonl(metrics) if row["step"] < before] if metrics.exists() else []
