"""Labelling where images are many: mining, scorers, nulls and evaluation of sparse features, with time and memory.

Run it as the only case, for the peak is the whole process's, and with `threads=2` for the numbers of docs/scale.md.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
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

SCORERS = ("contrast_evidence", "csp", "pearson")
SHOWN = 3  # labels that each image shows
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
    """Each stage of labelling from arrays, then their sum; `tokens_per_s` counts images.

    Mined and scored on `images` images, evaluated on `test` more. `gemm_seconds` is the product of images and labels.
    The sum says which share of units each scorer names after the label that they were made for.
    Eight parameters: the sizes that time and memory depend on.
    """
    world = make(images + test, units, labels, density, d_text)
    mine = UnitActivations(world.acts, "planted", {}).rows(np.arange(images))
    few = world.image_emb[: max(1, images // 25)]
    product = seconds(lambda: few @ world.label_emb.T) * images / len(few)
    size, spent = f"csr {images}x{units}x{labels}", []

    def timed(case: str, work: Callable[[], T]) -> tuple[T, dict[str, Any]]:
        found: list[T] = []
        spent.append(seconds(lambda: found.append(work())))
        return found[0], record(f"{case}, {size}", spent[-1], product, images, peak_mb())

    yield record(f"the arrays, {size}", 1e-9, product, images, peak_mb())
    evidence, line = timed("mining", lambda: assign.Evidence.mined(mine, world.image_emb[:images], world.label_emb))
    yield line
    found: dict[str, assign.Ranking] = {}
    for name in SCORERS:
        best, line = timed(name, lambda name=name: assign.rankings([name], evidence))  # type: ignore[misc]
        found |= best
        yield line
    best_scores = {name: top.score for name, top in found.items()}
    nulls, line = timed(
        f"{permutations} permutations", lambda: null_percentiles(SCORERS, evidence, permutations, best=best_scores)
    )
    yield line
    del evidence
    splits = Splits(np.arange(images), np.arange(images, images + test))
    names, judges = [f"label {i}" for i in range(labels)], judges_of(world)
    rows = label_rows(found, nulls, names)
    _, line = timed(
        f"evaluation on {test}",
        lambda: evaluate(UnitActivations(world.acts, "planted", {}), rows, judges, splits, resamples=resamples),
    )
    yield line
    right = {name: round(float((top.label == world.label).float().mean()), 3) for name, top in found.items()}
    yield record(f"all, {size}", sum(spent), product, images, peak_mb()) | {"named_right": right}


def make(images: int, units: int, labels: int, density: float, d_text: int, seed: int = 0) -> World:
    """A planted world, never dense: units fire where their label is shown, and elsewhere weakly at random."""
    g = torch.Generator().manual_seed(seed)
    label_emb = normalize(torch.randn(labels, d_text, generator=g), dim=1)
    shows = torch.rand(images, labels, generator=g).topk(SHOWN, dim=1).indices if labels < 64 else None
    if shows is None:
        shows = torch.randint(labels, (images, SHOWN), generator=g)
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
    csr = coo_array((parts[0], (parts[1], parts[2])), shape=(images, units)).tocsr()
    return torch.sparse_csr_tensor(
        torch.from_numpy(csr.indptr.astype(np.int64)),
        torch.from_numpy(csr.indices.astype(np.int64)),
        torch.from_numpy(csr.data),
        csr.shape,
    )


def judges_of(world: World) -> Judges:
    """The world's own embeddings as judge, and what it shows as truth."""
    names = [f"label {i}" for i in range(len(world.label_emb))]
    member: Bool[Tensor, "images labels"] = torch.zeros(len(world.shows), len(names), dtype=torch.bool)
    member.scatter_(1, world.shows, True)
    known = torch.ones(len(member), dtype=torch.bool)
    truth = Truth(member, {name: i for i, name in enumerate(names)}, tuple(names), known, "planted", True)
    return Judges(Similarity.of("planted", world.image_emb, names, world.label_emb), None, truth)


def label_rows(
    found: dict[str, assign.Ranking], nulls: dict[str, Tensor], names: Sequence[str]
) -> list[dict[str, Any]]:
    """Rows as of labels.jsonl, with the first scorer's labels as final ones."""
    final = next(iter(found.values()))
    rows = []
    for unit, label in enumerate(final.label.tolist()):
        scores = {
            name: {
                "label": None if top.label[unit] < 0 else names[int(top.label[unit])],
                "null_percentile": float(nulls[name][unit]),
            }
            for name, top in found.items()
        }
        text = None if label < 0 else names[label]
        rows.append({"unit": unit, "status": "ok", "label": text, "abstained": text is None, "scores": scores})
    return rows
