"""Planted units: what they fire for is known, on real pictures. Which labeller names it?

A unit is drawn from what people wrote of the pictures: it fires for one concept (`mono`), for either of two (`or`), or
for two together (`and`), with the noise of `saelab.planted`'s worlds. The kinds are those of MAIA's synthetic neurons
(Shaham et al., ICML 2024, section 4.2), which are made from masks and mix pictures; ours need no pictures of their own.
"""

import itertools
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor

from saelab.errors import UserError

KINDS = ("mono", "or", "and")
EACH = 40  # units of a kind at most
FEWEST = 8  # mined pictures that a unit's concept has to hold on
COMMONEST = 0.5  # share of the mined pictures that a unit may fire for
APART = 0.1  # share of their pictures that both concepts of an `or` unit hold on, at most
TOGETHER = 0.8  # share of either concept's pictures that both of an `and` unit hold on, at most: else it is a `mono`
VARYING, NOISE, BIAS = 0.25, 0.12, 0.05  # sd of a concept's strength, sd of the noise, what is subtracted before ReLU


@dataclass(frozen=True)
class Planted:
    """Units with their truth."""

    acts: Float[Tensor, "images units"]  # float32
    kinds: tuple[str, ...]  # of each unit, one of KINDS
    concepts: tuple[tuple[str, ...], ...]  # of each unit: one label, or the two of a pair


def plant(names: Sequence[str], member: Bool[Tensor, "images concepts"], mine: Tensor, seed: int = 0) -> Planted:
    """Draw up to EACH units of each kind, mono first. The same table and seed give the same units.

    `names`: a label for each concept. `mine`: ids of the mined pictures. Raises UserError where no concept holds on
    FEWEST of them (and on at most COMMONEST of them).
    """
    rng = np.random.default_rng(seed)
    generator = torch.Generator().manual_seed(seed)
    there = member[mine].numpy().astype(np.int64)
    both = there.T @ there  # mined pictures of every two concepts
    counts = both.diagonal()
    usable = np.flatnonzero((counts >= FEWEST) & (counts <= COMMONEST * len(mine)))
    if not len(usable):
        what = f"no label of the vocabulary holds on {FEWEST} mined pictures or more, and on at most half of them"
        raise UserError(
            "bases", "planted", what, "give pictures with captions or classes, or label.vocabulary=[classes]"
        )
    pairs = [(int(a), int(b)) for a, b in itertools.combinations(usable, 2)]
    least = {pair: int(counts[list(pair)].min()) for pair in pairs}
    chosen: dict[str, list[tuple[int, ...]]] = {
        "mono": [(int(c),) for c in usable],
        "or": [p for p in pairs if both[p] <= APART * least[p] and counts[list(p)].sum() <= COMMONEST * len(mine)],
        "and": [p for p in pairs if FEWEST <= both[p] <= TOGETHER * least[p]],
    }
    drives, kinds, concepts = [], [], []
    for kind in KINDS:
        order = rng.permutation(len(chosen[kind]))[:EACH]
        for own in (chosen[kind][i] for i in np.sort(order)):
            joined = member[:, list(own)]
            drives.append(joined.any(1) if kind == "or" else joined.all(1))
            kinds.append(kind)
            concepts.append(tuple(names[c] for c in own))
    return Planted(_respond(torch.stack(drives, dim=1), generator), tuple(kinds), tuple(concepts))


def _respond(drive: Bool[Tensor, "images units"], g: torch.Generator) -> Float[Tensor, "images units"]:
    """About 1 where the unit's condition holds, noise elsewhere; ReLU; a scale for each unit."""
    strength = drive.float() * (1 + VARYING * torch.randn(drive.shape, generator=g))
    acts = (strength + NOISE * torch.randn(drive.shape, generator=g) - BIAS).relu()
    return acts * (2 + 6 * torch.rand(drive.shape[1], generator=g))


def measure(
    rows: Sequence[dict[str, Any]],
    kinds: Sequence[str],
    concepts: Sequence[Sequence[str]],
    same: Callable[[str], Any],
    seen: Collection[Any] = (),
) -> list[dict[str, Any]]:
    """Recall and precision of every labeller on planted units: a row a labeller and kind, `all` kinds first.

    `rows`: of labels.jsonl, in the order of units. `same`: what two names of one concept share (None: no concept). A
    `seen`: concepts, by what their names share, that the labellers' encoder can tell from others. A labeller names as
    many labels as its unit has concepts, best first: its label and runners-up; `final` its label alone and nothing
    where it abstains; `meanings` one label for each meaning; a proposer its candidates, over the units that it was
    asked about (`proposed` of a row: its `Proposal`, or None).

    `recall`: share of the planted concepts that are named, over all units. `precision`: share of the labels named that
    are planted in their unit; None where nothing is named. `dealt`: the precision of the same labels dealt out among
    the units of the kind. `concepts`: how many are planted, a concept as often as units have it; `seen` of them are
    among `seen`, and `recall_seen` is the recall of those; None where there are none.
    """
    planted = [[same(name) for name in own] for own in concepts]
    said = {name: [_named(row, name, len(own)) for row, own in zip(rows, planted)] for name in _labellers(rows)}
    found = []
    asked = [row.get("proposed") for row in rows]
    said |= {
        f"{name} (proposer)": [p.labels[: len(own)] if p is not None else [] for p, own in zip(asked, planted)]
        for name in dict.fromkeys(p.proposer for p in asked if p is not None)
    }
    for name, labels in said.items():
        among = [name in _labellers(rows) or p is not None for p in asked]
        for kind in ("all", *KINDS):
            of = [u for u, own in enumerate(kinds) if kind in ("all", own) and among[u]]
            if of:
                found.append(
                    {
                        "labeller": name,
                        "kind": kind,
                        **_rates([labels[u] for u in of], [planted[u] for u in of], same, seen),
                    }
                )
    return found


def _labellers(rows: Sequence[dict[str, Any]]) -> list[str]:
    scorers = dict.fromkeys(name for row in rows for name in row["scores"])
    return ["final", *scorers, *(["meanings"] if any(row.get("meanings") for row in rows) else [])]


def _named(row: dict[str, Any], labeller: str, count: int) -> list[str]:
    if labeller == "final":
        return [] if row["abstained"] or row["label"] is None else [row["label"]]
    if labeller == "meanings":
        return [own["label"] for own in row.get("meanings") or ()]
    entry = row["scores"].get(labeller)
    if entry is None or entry["label"] is None:
        return []
    return [entry["label"], *(label for label, _ in entry["runners_up"])][:count]


def _rates(
    said: Sequence[Sequence[str]],
    planted: Sequence[Sequence[Any]],
    same: Callable[[str], Any],
    seen: Collection[Any],
) -> dict[str, Any]:
    keys = [[same(label) for label in labels] for labels in said]
    named = sum(map(len, keys))
    right = sum(key in own for labels, own in zip(keys, planted) for key in labels)
    hit = sum(concept in labels for labels, own in zip(keys, planted) for concept in own)
    told = [concept in labels for labels, own in zip(keys, planted) for concept in own if concept in seen]
    dealt = sum(key in own for labels in keys for key in labels for own in planted) / len(planted)
    return {
        "units": len(planted),
        "recall": hit / sum(map(len, planted)),
        "precision": right / named if named else None,
        "dealt": dealt / named if named else None,
        "concepts": sum(map(len, planted)),
        "seen": len(told),
        "recall_seen": sum(told) / len(told) if told else None,
    }
