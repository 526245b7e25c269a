"""Neurons beside the SAE features that fire with them, drawn by a fixed seed: matched pairs, and neurons split."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from saelab.report.reading import Run

DRAWN = 6  # rows of each sort
TOGETHER = 0.2  # from this correlation over images on, two units count as firing together


def drawn(run: Run, made: Sequence[Sequence[dict[str, Any]]], seed: int = 0) -> dict[str, Any] | None:
    """`{"bases", "pairs": [[neuron, feature]], "splits": [[neuron, feature, ...]]}`; a unit is [basis, unit, r].

    Pairs: labelled neurons drawn at random, each with the feature of the first SAE that fires most like it. Splits:
    drawn from the tenth of neurons with the highest polysemanticity (of at least 5), each with the features (two or
    three) whose correlation is at least 0.2. None without both neurons and an SAE.
    """
    neuron = next((i for i, b in enumerate(run.bases) if b.kind == "neuron"), None)
    if neuron is None:
        return None
    layer = run.bases[neuron].layer
    sae = next((b.name for b in run.bases if b.kind == "sae" and b.layer == layer), None)
    if sae is None:
        return None
    rng = np.random.default_rng(seed)
    links, labelled, numbers = [], [], []
    for row in made[neuron]:
        links.append([link for link in row["near"].get("links", []) if link[0] == sae])
        labelled.append(row["label"] is not None)
        numbers.append(row["measured"]["polysemanticity"])
    paired = [u for u, own in enumerate(links) if labelled[u] and own]
    split = [u for u in _most(numbers) if len(links[u]) > 1 and links[u][1][2] >= TOGETHER]
    name = run.bases[neuron].name
    return {
        "bases": [name, sae],
        "pairs": [[[name, u], links[u][0]] for u in _draw(paired, rng)],
        "splits": [[[name, u], *(link for link in links[u] if link[2] >= TOGETHER)] for u in _draw(split, rng)],
    }


def _most(numbers: list[float | None]) -> list[int]:
    """The tenth of units with the largest numbers, at least five."""
    known = [u for _, u in sorted((-x, u) for u, x in enumerate(numbers) if x is not None)]
    return known[: max(5, len(known) // 10)]


def _draw(units: list[int], rng: np.random.Generator) -> list[int]:
    return sorted(rng.permutation(np.array(units, dtype=int))[:DRAWN].tolist())
