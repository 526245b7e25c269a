"""Labelling where images are many: mining, scorers, nulls and evaluation of sparse features, with time and memory.

Run it as the only case, for the peak is the whole process's. What contrasts in cells miss stands in the log.
"""

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any, TypeVar

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn.functional import normalize

from saelab.bench.evidence import peak_mb
from saelab.bench.labels import seconds
from saelab.bench.sae import record
from saelab.evaluate import Judges, Splits, evaluate
from saelab.label import assign
from saelab.label.nulls import null_percentiles
from saelab.truth import Similarity, Truth
from saelab.units import UnitActivations
from saelab.units.activations import from_scipy

SCORERS = ("contrast_evidence", "csp", "pearson")
SHOWN, THEME = 3, 20  # labels that each image shows, all of one theme of so many
AT_ONCE = 1 << 22  # numbers of an image block held at once while the world is made
T = TypeVar("T")


@dataclass(frozen=True)
class World:
    """Images that show a few labels each, and sparse units that fire for one label, and at random."""

    acts: Tensor  # CSR [images, units]
    image_emb: Float[Tensor, "images d_text"]
    label_emb: Float[Tensor, "labels d_text"]
    shows: Int[Tensor, "images shown"]  # labels of each image
    label: Int[Tensor, "units"]  # what each unit fires for


def cases(
    images: int = 100_000,
    units: int = 16_384,
    labels: int = 2_000,
    test: int = 25_000,
    density: float = 0.005,
    d_text: int = 512,
    permutations: int = 5,
    resamples: int = 1000,
) -> Iterator[dict]:
    """Each stage of labelling from arrays, then their sum; `tokens_per_s` counts images, `cpu_seconds` all threads'.

    Mined and scored on `images` images, evaluated on `test` more. `gemm_seconds` is the product of images and labels.
    The sum says which share of units each scorer names after the label that they were made for.
    Eight parameters: the sizes that time and memory depend on.
    """
    start = time.perf_counter(), time.process_time()
    world = make(images + test, units, labels, density, d_text)
    making = time.perf_counter() - start[0], time.process_time() - start[1]
    every = UnitActivations(world.acts, "planted", {})
    mine, splits = every.rows(np.arange(images)), Splits(np.arange(images), np.arange(images, images + test))
    few = world.image_emb[: max(1, images // 25)]
    product = seconds(lambda: few @ world.label_emb.T) * images / len(few)
    size, spent = f"csr {images}x{units}x{labels}", []

    def timed(case: str, work: Callable[[], T]) -> tuple[T, dict[str, Any]]:
        found: list[T] = []
        start = time.process_time()
        spent.append((seconds(lambda: found.append(work())), time.process_time() - start))
        return found[0], line(case, *spent[-1])

    def line(case: str, own: float, cpu: float) -> dict[str, Any]:
        return record(f"{case}, {size}", own, product, images, peak_mb()) | {"cpu_seconds": round(cpu, 2)}

    yield line("making the arrays (not in the sum)", *making)
    evidence, told = timed("mining", lambda: assign.Evidence.mined(mine, world.image_emb[:images], world.label_emb))
    yield told
    found: dict[str, assign.Ranking] = {}
    for name in SCORERS:
        best, told = timed(name, partial(assign.rankings, [name], evidence))
        found |= best
        yield told
    own = {name: top.score for name, top in found.items()}
    nulls, told = timed(
        f"{permutations} permutations", lambda: null_percentiles(SCORERS, evidence, permutations, best=own)
    )
    yield told
    del evidence
    rows, judges = label_rows(found, nulls), judges_of(world)
    yield timed(f"evaluation on {test}", lambda: evaluate(every, rows, judges, splits, resamples=resamples))[1]
    right = {name: round(float((top.label == world.label).float().mean()), 3) for name, top in found.items()}
    yield line("all", *map(sum, zip(*spent, strict=True))) | {"named_right": right}


def make(images: int, units: int, labels: int, density: float, d_text: int, seed: int = 0) -> World:
    """A planted world, never dense: units fire where their label is shown, and elsewhere weakly at random."""
    g = torch.Generator().manual_seed(seed)
    label_emb = normalize(torch.randn(labels, d_text, generator=g), dim=1)
    theme = torch.randint(max(1, labels // THEME), (images, 1), generator=g)
    shows = (theme * THEME + torch.randint(THEME, (images, SHOWN), generator=g)).clamp(max=labels - 1)
    parts = []
    for some in shows.split(max(1, AT_ONCE // d_text)):
        noise = normalize(torch.randn(len(some), d_text, generator=g), dim=1)
        parts.append(normalize(0.5 * label_emb[some].sum(dim=1) + noise, dim=1))
    label = torch.randint(labels, (units,), generator=g)
    return World(_acts(shows, label, labels, density, g), torch.cat(parts), label_emb, shows, label)


def _acts(shows: Tensor, label: Tensor, labels: int, density: float, g: torch.Generator) -> Tensor:
    """CSR: about 1 where a unit's label is shown, about 0.2 on random images, `density` in all."""
    from scipy.sparse import coo_array

    images, units = len(shows), len(label)
    image = torch.arange(images).repeat_interleave(shows.shape[1])
    order = shows.flatten().argsort(stable=True)
    starts = torch.bincount(shows.flatten(), minlength=labels).cumsum(0)
    rows, columns, values = [], [], []
    for unit, own in enumerate(label.tolist()):
        there = image[order[int(starts[own - 1]) if own else 0 : int(starts[own])]].unique()
        others = torch.randint(images, (max(0, int(density * images) - len(there)),), generator=g)
        ids = torch.cat([there, others]).unique()
        strength = 0.2 * torch.rand(len(ids), generator=g)
        strength[torch.isin(ids, there)] += 0.5 + 0.5 * torch.rand(len(there), generator=g)
        rows.append(ids)
        columns.append(torch.full_like(ids, unit))
        values.append(strength)
    parts = [torch.cat(part).numpy() for part in (values, rows, columns)]
    return from_scipy(coo_array((parts[0], (parts[1], parts[2])), shape=(images, units)).tocsr())


def judges_of(world: World) -> Judges:
    """The world's own embeddings as judge, and what it shows as truth."""
    names = [str(name_of(i)) for i in range(len(world.label_emb))]
    member: Bool[Tensor, "images labels"] = torch.zeros(len(world.shows), len(names), dtype=torch.bool)
    member.scatter_(1, world.shows, True)
    known = torch.ones(len(member), dtype=torch.bool)
    truth = Truth(member, {name: i for i, name in enumerate(names)}, tuple(names), known, "planted", True)
    return Judges(Similarity.of("planted", world.image_emb, names, world.label_emb), None, truth)


def label_rows(found: dict[str, assign.Ranking], nulls: dict[str, Tensor]) -> list[dict[str, Any]]:
    """Rows as of labels.jsonl, with the first scorer's labels as final ones."""
    final = next(iter(found.values()))
    rows = []
    for unit, label in enumerate(final.label.tolist()):
        scores = {
            name: {
                "label": name_of(int(top.label[unit])),
                "null_percentile": float(nulls[name][unit]),
            }
            for name, top in found.items()
        }
        text = name_of(label)
        rows.append({"unit": unit, "status": "ok", "label": text, "abstained": text is None, "scores": scores})
    return rows


def name_of(label: int) -> str | None:
    """What a label is called; None for no label."""
    return None if label < 0 else f"label {label}"
