"""Write activation caches: several layers in one pass over the images, in shards, resumable, by one process or many.

A shard is a range of images. When its rows are on disk, a small record says so and holds its checksum and moments; a
resumed run does the shards without a record. With torch.distributed, rank r of w does every w-th of them in the same
file (on a disk that all see), and the first rank puts the records together: the bytes are those of one process.
"""

import logging
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from saelab import artifacts
from saelab.cache import layout
from saelab.cache.passes import LayerWriter, Plan, merge_records, pending, plan_of, record, run_pass
from saelab.cache.ranks import Ranks
from saelab.cache.store import ActivationCache
from saelab.errors import UserError
from saelab.files import check_folder

if TYPE_CHECKING:
    from saelab.hosts import Host
    from saelab.images import ImageSet

log = logging.getLogger("saelab")
CODE = 1  # version of this stage; part of every recipe
SHARD_BYTES = 64 << 20  # about so many of the widest layer
MARGIN = 64 << 20  # bytes of disk to leave free
PLAN = "plan.json"


@dataclass(frozen=True)
class _Pass:
    """What the passes of one call have in common."""

    images: "ImageSet"
    host: "Host"
    plans: dict[str, Plan]
    attributes: dict[str, dict[str, Any]]
    batch_size: int
    workers: int
    ranks: Ranks


def write(
    images: "ImageSet",
    host: "Host",
    layers: Sequence[str],
    root: Path | str,
    policy: str = "all",
    dtype: str = "float16",
    batch_size: int = 32,
    workers: int = 0,
    tokens_per_image: int | None = None,
    seed: int = 0,
) -> dict[str, ActivationCache]:
    """Caches of several layers (names or patterns), made in one pass, or reused where they are there.

    `policy`: all, patches, cls, no_registers or token:<number>. `dtype`: float16, bfloat16 or float32.
    `tokens_per_image`: keep so many, drawn without replacement by (seed, image id); pooled values still see all.
    Raises UserError for an unknown layer, a policy that it can't give, too little disk, values beyond the dtype; what
    was written by then stays, and the next call goes on from there.
    Ten parameters: images, host, layers and root are enough; the others are settings of a notebook's one call.
    """
    check(images, dtype, tokens_per_image, batch_size)
    check_folder("root", Path(root))
    names = host.resolve([layers] if isinstance(layers, str) else layers)
    settings = (policy, dtype, tokens_per_image, seed)
    planned = {n: plan_of(images, host, n, *settings) for n in names}
    recipes = {n: recipe(images, host, n, *settings) for n in names}
    plans, attributes = ({n: pair[i] for n, pair in planned.items()} for i in (0, 1))
    job = _Pass(images, host, plans, attributes, batch_size, workers, Ranks.current())  # type: ignore[arg-type]
    # One order for every process: two that want the same layers must not wait for each other's locks.
    order = sorted(names, key=lambda n: artifacts.digest(recipes[n]))
    wanted = [(f"{host.name}-{n}", recipes[n]) for n in order]

    def make() -> None:
        artifacts.ensure_all(
            root, "activations", wanted, lambda folders: _fill(job, {order[i]: f for i, f in folders.items()})
        )

    job.ranks.run(make, lambda work: _write_shards(job, *work))
    return {n: ActivationCache(artifacts.folder(root, "activations", f"{host.name}-{n}", recipes[n])) for n in names}


def recipe(
    images: "ImageSet", host: "Host", layer: str, policy: str, dtype: str, tokens_per_image: int | None, seed: int
) -> dict[str, Any]:
    """What decides the bytes of a cache."""
    facts: dict[str, Any] = {"stage": "activations", "code": CODE, "images": images.fingerprint, "host": host.recipe}
    facts |= {"layer": layer, "policy": policy, "dtype": dtype}
    return facts if tokens_per_image is None else facts | {"tokens_per_image": tokens_per_image, "seed": seed}


def images_of_shard(images: int, row_bytes: int, batch_size: int) -> int:
    """Images of a shard: whole batches, of about SHARD_BYTES together. `row_bytes`: of an image in the widest layer."""
    return max(1, min(-(-images // batch_size), SHARD_BYTES // (row_bytes * batch_size))) * batch_size


def estimate(images: int, plan: Plan) -> int:
    """Bytes that a layer's cache takes on disk."""
    return layout.size(images, images * plan.stored, plan.d_in, plan.dtype)


def check(images: "ImageSet", dtype: str, tokens_per_image: int | None, batch_size: int) -> None:
    """Raise UserError for settings that no cache could be made with."""
    if dtype not in layout.STORED:
        raise UserError("dtype", dtype, "unknown", f"known: {', '.join(layout.STORED)}")
    if tokens_per_image is not None and tokens_per_image < 1:
        raise UserError("tokens_per_image", tokens_per_image, "at least 1, or null for all tokens")
    if batch_size < 1:
        raise UserError("batch_size", batch_size, "at least 1")
    if not (np.asarray(images.splits) == "mine").any():
        raise UserError(
            "images", images.name, "has no image in the mine split", "give more pictures or other fractions"
        )


def _fill(job: _Pass, folders: dict[str, Path]) -> None:
    """Make the files, have all ranks write the missing shards, put the records together. Runs in the first rank."""
    count = len(job.images)
    unfinished = {n: f for n, f in folders.items() if not (f / layout.CHECKSUMS).exists()}
    if not unfinished:
        return
    widest = max(job.plans[n].row_bytes for n in unfinished)
    shard_images = images_of_shard(count, widest, job.batch_size)
    _check_disk(job, unfinished)
    groups: dict[int, list[str]] = {}  # by shard size: a cache begun with another one keeps it
    for name, folder in unfinished.items():
        groups.setdefault(_prepare(job, name, folder, shard_images), []).append(name)
    for shard_images, names in groups.items():
        own = {n: str(unfinished[n]) for n in names}
        shards = sorted({s for n in names for s in pending(unfinished[n], count, shard_images)})
        if shards:
            job.ranks.hand_out((own, shards, shard_images))
            _write_shards(job, own, shards, shard_images)
        for name in names:
            _finish(unfinished[name], count, shard_images, job.plans[name])


def _prepare(job: _Pass, name: str, folder: Path, shard_images: int) -> int:
    """Make the layer's file unless it is there; return how many images its shards have."""
    plan, attributes = job.plans[name], dict(job.attributes[name])
    if (folder / PLAN).exists():
        begun = artifacts.read_json(folder / PLAN)
        if (folder / layout.FILE).is_file() and (folder / layout.FILE).stat().st_size == begun["bytes"]:
            return begun["shard_images"]
        log.warning("%s has lost bytes: starting again", folder)
    shutil.rmtree(folder / "shards", ignore_errors=True)
    (folder / "shards").mkdir()
    count = len(job.images)
    height, width = attributes.pop("grid_height"), attributes.pop("grid_width")
    layout.create(folder, layout.datasets(count, count * plan.stored, plan.d_in, plan.dtype), attributes)
    known = {
        "offsets": np.arange(count + 1, dtype="<i8") * plan.stored,
        "grid": np.tile(np.array([height, width], dtype="<i4"), (count, 1)),
        "split": np.array([layout.SPLITS.index(s) for s in job.images.splits], dtype="u1"),
    }
    with layout.full_disk(folder):
        layout.write_datasets(folder / layout.FILE, known)
        facts = {"shard_images": shard_images, "bytes": (folder / layout.FILE).stat().st_size}
        artifacts.write_json(folder / PLAN, facts)
    return shard_images


def _write_shards(job: _Pass, folders: dict[str, str], shards: list[int], shard_images: int) -> None:
    """This rank's share of the shards; every rank returns when all have done theirs."""
    ranks, count = job.ranks, len(job.images)
    own = shards[ranks.rank :: ranks.world]

    def action() -> None:
        writers = [LayerWriter(Path(f), job.plans[n], shard_images, count) for n, f in folders.items()]
        try:
            with layout.full_disk(Path(next(iter(folders.values()))).parent, "finished shards are kept"):
                run_pass(job.images, job.host, writers, own, job.batch_size, job.workers, quiet=ranks.rank > 0)
        finally:
            for writer in writers:
                writer.close()

    ranks.together(action if own else lambda: None)


def _finish(folder: Path, count: int, shard_images: int, plan: Plan) -> None:
    """Statistics and checksums from the shards' records; then the records go."""
    shards = -(-count // shard_images)
    moments, checksums = merge_records(folder, shards)
    variance = (moments.m2 / moments.tokens).numpy()
    with layout.full_disk(folder, "finished shards are kept"):
        values = {"mean": moments.mean.numpy(), "variance": variance, "count": np.array([moments.tokens], dtype="<i8")}
        layout.write_datasets(folder / layout.FILE, values)
        if not np.isfinite(variance).all():
            log.warning("%s: %d of %d dimensions hold NaN", plan.layer, (~np.isfinite(variance)).sum(), plan.d_in)
        start = layout.places(folder / layout.FILE)[0]["tokens"].offset
        edges = [start + min(s * shard_images, count) * plan.row_bytes for s in range(shards + 1)]
        layout.write_checksums(folder, list(zip(edges[:-1], edges[1:], checksums, strict=True)))
    for shard in range(shards):
        record(folder, shard).unlink()
    (folder / "shards").rmdir()
    (folder / PLAN).unlink()


def _check_disk(job: _Pass, folders: dict[str, Path]) -> None:
    """Say how much will be written; raise UserError where it does not fit on the disk."""
    need = 0
    for name, folder in folders.items():
        file, plan = folder / layout.FILE, job.plans[name]
        there = file.stat().st_blocks * 512 if file.exists() else 0
        need += max(0, estimate(len(job.images), plan) - there)
        log.info("%s: %d images x %d tokens x %d, %s", name, len(job.images), plan.stored, plan.d_in, plan.dtype)
    some = next(iter(folders.values()))
    free = shutil.disk_usage(some).free
    log.info("%.2f GB to write, %.1f GB free", need / 1e9, free / 1e9)
    if need + MARGIN > free:
        short = f"{need / 1e9:.2f} GB of activations to write, {free / 1e9:.2f} GB free"
        raise UserError("disk", some.parent, short, "free some, set tokens_per_image, fewer layers, or another root")
