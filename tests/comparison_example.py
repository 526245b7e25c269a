"""The example of comparison.json in tests/data: a planted world with every control.

`python tests/comparison_example.py` writes it anew, its numbers rounded.
"""

import dataclasses
import json
from pathlib import Path
from typing import Any

import torch

from saelab.compare import ComparedBasis, compare
from saelab.compare.whole_way import SETTINGS, evaluated, planted, test_images, units
from saelab.label.assign import cos_cubed, cosine, pearson

PATH = Path(__file__).resolve().parent / "data" / "comparison_example.json"
SCORERS = {"pearson": pearson, "cos_cubed": cos_cubed, "cosine": cosine}


def bases() -> list[ComparedBasis]:
    """Neurons, three seeds of an SAE, and the three controls: a rotation, PCA, and an SAE on a random host."""
    world, generator = planted(7), torch.Generator().manual_seed(7)

    def basis(name: str, kind: str, seed: int | None, n: int, quality: float, **more: Any) -> ComparedBasis:
        return evaluated(name, kind, seed, units(world, n, quality, generator), world, scorers=SCORERS, **more)

    made = [basis("neurons", "neuron", None, 60, 0.35)]
    made += [basis(f"SAE seed {s}", "sae", s, 120, 0.55, group="SAE features") for s in range(3)]
    made.append(basis("random rotation", "random_rotation", 0, 60, 0.1, control=True))
    made.append(basis("principal components", "pca", None, 60, 0.15, control=True))
    random_host = basis("SAE on a random host", "sae", 0, 120, 0.05, control=True)
    return [*made, dataclasses.replace(random_host, weights="random")]


def example() -> dict[str, Any]:
    """The comparison as it is written to disk."""
    return compare(bases(), SETTINGS, test_images(planted(7)))


def rounded(value: Any) -> Any:
    """Floats to five digits: what a reader needs, in a file of half the size."""
    if isinstance(value, dict):
        return {name: rounded(x) for name, x in value.items()}
    if isinstance(value, list | tuple):
        return [rounded(x) for x in value]
    return float(f"{value:.5g}") if isinstance(value, float) else value


if __name__ == "__main__":
    PATH.write_text(json.dumps(rounded(example()), ensure_ascii=False) + "\n", encoding="utf-8")
