"""Sanity tests of metrics (Oikarinen et al., NeuronEval, ICML 2025): does a metric notice a label that is wrong?

A perfect unit fires exactly where its concept holds. *Missing labels*: the label loses half of the concept's images.
*Extra labels*: as many other images are added. A metric that does not fall either time can't tell a right label from
one that is too narrow or too broad. `python -m saelab.metrics.sanity` prints the table.
"""

import argparse
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from saelab import metrics, tables

Metric = Callable[[Tensor, Tensor], Tensor]  # (activations, truth) [images, units] -> [units]
FALL = 1e-3  # least fall of the normalised score that counts (the authors' epsilon)
PASS = 0.9  # share of units that must show it, at every frequency


@dataclass(frozen=True)
class SanityRow:
    """One metric's answer."""

    metric: str  # its name
    missing: dict[float, float]  # by how many of the images the concept holds on: share of units whose score falls
    extra: dict[float, float]  # the same, for extra labels

    @property
    def passes(self) -> tuple[bool, bool]:
        """Missing-label and extra-label test passed at every frequency."""
        return min(self.missing.values()) >= PASS, min(self.extra.values()) >= PASS


def _recall(acts: Tensor, truth: Tensor) -> Tensor:
    """Share of the images the unit fires on that have the label (NeuronEval's recall: of the unit by the label)."""
    return (truth & (acts > 0)).sum(dim=0) / (acts > 0).sum(dim=0)


def _precision(acts: Tensor, truth: Tensor) -> Tensor:
    """Share of the label's images that the unit fires on."""
    return (truth & (acts > 0)).sum(dim=0) / truth.sum(dim=0)


def _accuracy(acts: Tensor, truth: Tensor) -> Tensor:
    return (truth == (acts > 0)).float().mean(dim=0)


def _auroc(acts: Tensor, truth: Tensor) -> Tensor:
    """Half-credit AUROC of the label by the unit, unit by unit: each has its own images."""
    columns = zip(acts.T, truth.T, strict=True)
    return torch.cat([metrics.auroc(a[t][:, None], a[~t][:, None]) for a, t in columns])


def _mean_difference(acts: Tensor, truth: Tensor) -> Tensor:
    inside = (acts * truth).sum(dim=0) / truth.sum(dim=0)
    return inside - (acts * ~truth).sum(dim=0) / (~truth).sum(dim=0)


def _wpmi(acts: Tensor, truth: Tensor) -> Tensor:
    """Mean log-likelihood of the label where the unit fires, less the log of the label's frequency; floor 1e-8."""
    fires = (acts > 0).float()
    seen = (fires * truth.float().clamp(min=1e-8).log()).sum(dim=0) / fires.sum(dim=0)
    return seen - truth.float().mean(dim=0).log()


METRICS: dict[str, Metric] = {
    "correlation": lambda a, t: metrics.correlation(a, t),
    "cosine": lambda a, t: metrics.cosine(a, t),
    "auprc": lambda a, t: metrics.auprc(a, t),
    "f1": lambda a, t: metrics.f1(a, t, torch.full((a.shape[1],), 0.5)),
    "iou": lambda a, t: metrics.iou(a, t, torch.full((a.shape[1],), 0.5)),
    "recall": _recall,
    "precision": _precision,
    "accuracy": _accuracy,
    "auroc": _auroc,
    "mad": _mean_difference,
    "wpmi": _wpmi,
}


def sanity_table(
    images: int = 10_000,
    units: int = 20,
    frequencies: tuple[float, ...] = (0.4, 0.1, 0.01, 0.001),
    seed: int = 0,
    chosen: dict[str, Metric] | None = None,
) -> list[SanityRow]:
    """The two tests for each metric, at several shares of images that have the concept.

    A score has fallen if it is lower by more than 0.001 of the distance between the right label's score and the mean
    score of labels drawn at random, which makes metrics of different ranges comparable.
    """
    generator = torch.Generator().manual_seed(seed)
    rows = []
    tables = {f: _labels(images, units, f, generator) for f in frequencies}
    for name, metric in (chosen or METRICS).items():
        missing: dict[float, float] = {}
        extra: dict[float, float] = {}
        for frequency, (right, fewer, more, chance) in tables.items():
            acts = right.float()
            best = metric(acts, right).double()
            scale = (best - metric(acts, chance).double().mean()).abs().clamp(min=1e-12)
            for found, label in ((missing, fewer), (extra, more)):
                found[frequency] = float(((best - metric(acts, label).double()) / scale > FALL).double().mean())
        rows.append(SanityRow(name, missing, extra))
    return rows


def _labels(images: int, units: int, frequency: float, generator: torch.Generator) -> tuple[Tensor, ...]:
    """Right labels, those with half of them missing, those with as many too many, and random ones."""
    n = max(2, round(images * frequency))
    order = torch.rand(images, units, generator=generator).argsort(dim=0).argsort(dim=0)
    chance = torch.rand(images, units, generator=generator).argsort(dim=0).argsort(dim=0)
    return order < n, order < n - n // 2, order < min(2 * n, images - 1), chance < n


def as_text(rows: list[SanityRow]) -> str:
    """The table in Markdown."""
    lines = []
    for row in rows:
        cells = []
        for found, good in zip((row.missing, row.extra), row.passes, strict=True):
            numbers = " ".join(f"{share:.2f}" for share in found.values())
            cells.append(f"{'pass' if good else 'FAIL'} ({numbers})")
        lines.append([row.metric, *cells])
    shares = ", ".join(f"{f:g}" for f in rows[0].missing)
    table = tables.draw_markdown(("metric", "missing labels", "extra labels"), lines)
    return f"{table}\n\nShare of units whose score falls, where the concept holds on {shares} of the images."


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="Which metrics notice a label that is too narrow or too broad?")
    parser.add_argument("--images", type=int, default=10_000)
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    print(as_text(sanity_table(images=given.images, seed=given.seed)))
