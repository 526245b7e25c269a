"""The training loop: batches in, a folder with a finished SAE out; killed at any moment, it goes on where it was.

Several SAEs train in one pass over the same batches; each ends as if trained alone, to the bit.
"""

import contextlib
import dataclasses
import itertools
import logging
from collections.abc import Callable, Generator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from saelab import bars
from saelab.cache.batches import Batches, check_share, spool
from saelab.cache.pinned import to_device
from saelab.cache.stream import ActivationStream, together
from saelab.errors import UserError
from saelab.sae import rules
from saelab.sae.config import SAEConfig, TrainConfig
from saelab.sae.distributed import World, count_groups
from saelab.sae.job import Data, Fit, Job
from saelab.sae.model import SAE
from saelab.sae.start import check_given, check_pieces
from saelab.sae.watch import PRODUCTS

log = logging.getLogger("saelab")
Logger = Callable[[int, int, dict[str, float]], None]  # (which SAE, step, numbers)
LayerLogger = Callable[[str, int, int, dict[str, float]], None]  # (layer, which SAE of it, step, numbers)


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

    With `train.latent_shards` above 1, processes hold the latents between them (docs/scale.md): they need folders, in
    which their parts meet, and get SAEs that are mapped from there into the CPU's memory.

    Raises UserError for activations with NaN (file and row), a d_in that is not the data's, a folder that is named
    twice or has a checkpoint or an SAE of another recipe, a start of another shape, and a loss that is no longer finite
    (the last good checkpoint stays where it is).
    Eleven parameters: the data and the configs are enough; the others have defaults and stand alone.
    """
    train = train or TrainConfig()
    check_given(data, configs, train, folders)
    world = _grid(configs, train, folders)
    _check_apart(folders or [])
    batches = _batches(data, train)
    held = None if held_out is None else _batches(held_out, train)
    if held is not None and held.d_in != batches.d_in:
        raise UserError("held_out", f"d_in {held.d_in}", f"d_in {batches.d_in}, that of the data", "use its own layer")
    given = None if mean is None or variance is None else (mean, variance)
    jobs = _jobs(batches, configs, train, folders, given, starts, device, world)
    first, total = _span(jobs)
    data, place = world.data, torch.device(device)
    coming = batches.prefetch(first, total, data.rank, data.size, narrow=place.type == "cuda")
    feed = (("", step, x) for step, x in enumerate(to_device(coming, place), first))
    own = None if logger is None else lambda _, which, step, numbers: logger(which, step, numbers)
    _loop({"": jobs}, feed, {"": batches.batch_size}, train, own, progress)
    return _finish({"": jobs}, {"": batches}, {"": held})[""]


def fit_layers(
    streams: Mapping[str, ActivationStream],
    configs: Mapping[str, Sequence[SAEConfig]],
    train: TrainConfig | None = None,
    folders: Mapping[str, Sequence[Path | str]] | None = None,
    *,
    device: str | torch.device = "cpu",
    logger: LayerLogger | None = None,
    progress: bool = True,
) -> dict[str, list[Fit]]:
    """Train SAEs on several layers in one pass of the host: `fit_many` for each, to the bit.

    streams   of `saelab.cache.stream`, by layer; their batch size and seed stand for `train`'s
    configs   of the SAEs of each layer, and `folders` where to write them
    logger    called with (layer, index of the config, step, numbers)

    The other parameters, and what is raised, are `fit_many`'s.
    """
    train = train or TrainConfig()
    world = _grid([config for own in configs.values() for config in own], train, folders)
    places = {layer: None if folders is None else folders[layer] for layer in configs}
    _check_apart([folder for own in places.values() for folder in own or []])
    jobs = {
        layer: _jobs(streams[layer], own, train, places[layer], None, None, device, world)
        for layer, own in configs.items()
    }
    spans = {layer: _span(own) for layer, own in jobs.items()}
    feed = together(streams, spans, world.data.rank, world.data.size)
    _loop(jobs, feed, {layer: streams[layer].batch_size for layer in jobs}, train, logger, progress)
    return _finish(jobs, streams, dict.fromkeys(jobs))


def _jobs(
    batches: Batches,
    configs: Sequence[SAEConfig],
    train: TrainConfig,
    folders: Sequence[Path | str] | None,
    moments: tuple[Any, float] | None,
    starts: Sequence[SAE | None] | None,
    device: str | torch.device,
    world: World,
) -> list[Job]:
    """The SAEs of one layer, each where an earlier call left it.

    Eight parameters: what both ways in hand on, and the processes.
    """
    for config in configs:
        if config.d_in != batches.d_in:
            raise UserError("d_in", config.d_in, f"the activations have {batches.d_in}", "set d_in to the cache's")
    check_share(batches.batch_size, world.data.size)
    for config in configs:
        check_pieces(config, train.accumulate, batches.batch_size // world.data.size)
    facts = dict(batches.facts)
    if moments is None:
        moments, facts = batches.moments(), facts | batches.moments_of
    mean, variance = moments
    if variance and not 1e-36 < variance < 1e36:
        what = "float32, in which training computes, can't hold squares of such numbers"
        raise UserError("activations", f"variance {variance:.3g}", what, "multiply them by a constant")
    starts = starts or [None] * len(configs)
    configs = [dataclasses.replace(c, dead_after=c.dead_within(batches.n_tokens)) for c in configs]
    places = [None] * len(configs) if folders is None else [Path(folder) for folder in folders]
    jobs = [
        Job(config, place, Data(batches, mean, variance, facts), train, torch.device(device), start, world)
        for config, place, start in zip(configs, places, starts, strict=True)
    ]
    _agree(jobs)
    return jobs


def check_shards(configs: Sequence[SAEConfig], train: TrainConfig, processes: int | None = None) -> None:
    """Raise UserError where so many processes (None: any) can't share latents and cut batches as `train` says."""
    shards = train.latent_shards
    for config in configs:
        check_pieces(config, train.accumulate)
    for config in configs if shards > 1 else ():
        if "latent_shards" not in rules.find(config.rule).supports:
            raise UserError("latent_shards", shards, f"needs {rules.name_supporting('latent_shards')}", "set it to 1")
        if config.latents % shards:
            raise UserError("latent_shards", shards, f"has to divide the {config.latents} latents", "choose another")
    if processes is not None:
        groups = count_groups(processes, shards)
        check_share(train.batch_size, groups)
        for config in configs:
            check_pieces(config, train.accumulate, train.batch_size // groups)


def _check_apart(folders: Sequence[Path | str]) -> None:
    """Raise UserError where two SAEs would be written to one folder, however it is named."""
    seen = set[Path]()
    for folder in folders:
        place = Path(folder).resolve()
        if place in seen:
            raise UserError("folders", folder, "is named for two SAEs", "give each SAE a folder of its own")
        seen.add(place)


def _grid(configs: Sequence[SAEConfig], train: TrainConfig, folders: Any) -> World:
    """The processes, as data x latents. Raises UserError where the latents can't be shared as `train` says."""
    check_shards(configs, train)
    if train.latent_shards > 1 and folders is None:
        raise UserError("latent_shards", train.latent_shards, "the parts of an SAE meet in its folder", "name a folder")
    return World(train.latent_shards)


def _span(jobs: list[Job]) -> tuple[int, int]:
    """The first step that one of them has not taken, and the number of all."""
    return min(job.steps for job in jobs), jobs[0].total


def _finish(
    jobs: Mapping[str, list[Job]], batches: Mapping[str, Batches], held: Mapping[str, Batches | None]
) -> dict[str, list[Fit]]:
    fits = {layer: [job.finish(batches[layer], held[layer]) for job in own] for layer, own in jobs.items()}
    for job in itertools.chain(*jobs.values()):
        job.clear()  # not before all are whole: a kill in the final passes is to cost none of them its training
    return fits


def _batches(data: Any, train: TrainConfig) -> Batches:
    if isinstance(data, Batches):
        return data
    if not hasattr(data, "ndim"):
        wanted = None if train.steps is None else train.steps * train.batch_size
        data = spool(data, wanted)
        if wanted is not None and len(data) < wanted:
            times = f"{train.steps} steps of {train.batch_size} go over them {wanted / len(data):.3g} times"
            log.warning("the iterator ended after %d tokens: %s", len(data), times)
    return Batches(data, train.batch_size, train.seed)


def _agree(jobs: list[Job]) -> None:
    """Wait until all processes have looked into the folders. Raises UserError where they found different things, and
    where their processors' instructions settle on different screens.
    """
    device, world = jobs[0].trainer.device, jobs[0].trainer.world
    for job in jobs:
        own = torch.tensor([[job.steps, PRODUCTS.index(job.trainer.screen)]], device=device)
        steps, screens = (sorted(set(column)) for column in world.all.gather(own).T.tolist())
        if len(steps) > 1:
            problem = f"the processes find {' and '.join(map(str, steps))} steps done"
            raise UserError("folder", job.folder, problem, "it has to be one that all of them see")
        if len(screens) > 1:
            problem = f"the processes settle on {' and '.join(PRODUCTS[screen] for screen in screens)}"
            raise UserError("screen", "auto", problem, f"use screen={PRODUCTS[screens[0]]}")


def _loop(
    jobs: Mapping[str, list[Job]],
    feed: Generator[tuple[str, int, Tensor], None, None],
    sizes: Mapping[str, int],
    train: TrainConfig,
    logger: LayerLogger | None,
    progress: bool,
) -> None:
    """The steps of all layers' SAEs, in the order in which `feed` gives (layer, step, batch)."""
    spans = {layer: _span(own) for layer, own in jobs.items()}
    first, total = (sum(sizes[layer] * spans[layer][end] for layer in jobs) for end in (0, 1))
    writes = World().first
    hidden = not progress or not writes or first == total
    logger = logger if writes else None
    if logger is not None:
        for layer, own in jobs.items():
            for i, job in enumerate(own):
                for line in job.lines:
                    logger(layer, i, line["step"], {name: value for name, value in line.items() if name != "step"})
    bar = bars.show(total=total, initial=first, what="train", unit="tok", scaled=True, hidden=hidden)
    with bar, contextlib.closing(feed):  # a stream's host stops where training does
        for layer, step, x in feed:
            last = spans[layer][1]
            logs = step % train.log_every == 0 or step + 1 == last
            saves = (step + 1) % train.checkpoint_every == 0 and step + 1 < last
            for i, job in enumerate(jobs[layer]):
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
                        logger(layer, i, step, numbers)
                if saves:
                    job.save(step + 1)
            bar.update(sizes[layer])
