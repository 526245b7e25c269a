"""Neurons beside the SAE features that fire with them, drawn by a fixed seed: matched pairs, and neurons split."""

from collections.abc import Iterable
from typing import Any

import numpy as np

from saelab.report.reading import Run

DRAWN = 6  # rows of each sort
TOGETHER = 0.2  # from this correlation over images on, two units count as firing together


class Pairs:
    """Takes in records as they come, and draws from them in the end."""

    def __init__(self, run: Run) -> None:
        self._neuron = next((i for i, b in enumerate(run.bases) if b.kind == "neuron"), None)
        layer = None if self._neuron is None else run.bases[self._neuron].layer
        self._sae = next((b.name for b in run.bases if b.kind == "sae" and b.layer == layer), None)
        self._name = None if self._neuron is None else run.bases[self._neuron].name
        self._links: list[list[list[Any]]] = []  # of each neuron, with features of the SAE, the closest first
        self._labelled: list[bool] = []
        self._numbers: list[float | None] = []  # polysemanticity

    def add(self, number: int, records: Iterable[dict[str, Any]]) -> None:
        """Records of basis `number`, in the order of units."""
        if number != self._neuron:
            return
        for row in records:
            self._links.append([link for link in row["near"].get("links", []) if link[0] == self._sae])
            self._labelled.append(row["label"] is not None)
            self._numbers.append(row["measured"]["polysemanticity"])

    def draw(self, seed: int = 0) -> dict[str, Any] | None:
        """`{"bases", "pairs": [[neuron, feature]], "splits": [[neuron, feature, ...]]}`; a unit is [basis, unit, r].

        Pairs: labelled neurons drawn at random, each with the feature of the first SAE that fires most like it. Splits:
        drawn from the tenth of neurons with the highest polysemanticity (of at least 5), each with the features (two or
        three) whose correlation is at least 0.2. None without both neurons and an SAE.
        """
        if self._neuron is None or self._sae is None:
            return None
        rng, name, links = np.random.default_rng(seed), self._name, self._links
        paired = [u for u, own in enumerate(links) if self._labelled[u] and own]
        split = [u for u in _most(self._numbers) if len(links[u]) > 1 and links[u][1][2] >= TOGETHER]
        return {
            "bases": [name, self._sae],
            "pairs": [[[name, u], links[u][0]] for u in _draw(paired, rng)],
            "splits": [[[name, u], *(link for link in links[u] if link[2] >= TOGETHER)] for u in _draw(split, rng)],
        }


def _most(numbers: list[float | None]) -> list[int]:
    """The tenth of units with the largest numbers, at least five."""
    known = [u for _, u in sorted((-x, u) for u, x in enumerate(numbers) if x is not None)]
    return known[: max(5, len(known) // 10)]


def _draw(units: list[int], rng: np.random.Generator) -> list[int]:
    return sorted(rng.permutation(np.array(units, dtype=int))[:DRAWN].tolist())
