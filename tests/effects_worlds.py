"""Planted hosts: logits = head(mean over tokens of relu(token)), with units that write a class, or only read one."""

import numpy as np
import torch
from torch import Tensor

from saelab.effects import Ground
from saelab.effects.targets import Outputs, find_targets
from saelab.units.bases import Projection

IMAGES, TOKENS, OUTPUTS = 60, 3, 40
KINDS = ("writes", "reads", "elsewhere")


class Planted:
    """Answers of a host whose rest is relu, mean over tokens, and a linear head."""

    def __init__(self, tokens: Tensor, head: Tensor) -> None:
        self.all, self.head = tokens, head

    def tokens(self, ids: np.ndarray) -> Tensor:
        return self.all[torch.as_tensor(ids)]

    def logits(self, ids: np.ndarray, edited: Tensor) -> Tensor:
        return edited.relu().mean(-2) @ self.head

    def gradient(self, ids: np.ndarray, tokens: Tensor, weights: Tensor) -> Tensor:
        leaf = tokens.clone().requires_grad_()
        return torch.autograd.grad((leaf.relu().mean(1) @ self.head @ weights.to(leaf)).sum(), leaf)[0]


def world(seed: int, kinds: list[str], strength: float = 8.0) -> Ground:
    """A basis of neurons, each firing on the pictures of one class, which is its label.

    `writes`: a unit's row of the head raises that class. `reads`: it is noise. `elsewhere`: it raises another class.
    """
    rng = np.random.default_rng(seed)
    units = len(kinds)
    classes = rng.permutation(OUTPUTS)[:units]
    shown = rng.choice(classes, IMAGES)
    often = rng.random((IMAGES, TOKENS, units)) < 0.3
    tokens = np.abs(rng.normal(0, 0.3, (IMAGES, TOKENS, units))) * often
    tokens += 2.0 * (shown[:, None, None] == classes) * rng.random((IMAGES, TOKENS, units))
    head = rng.normal(0, 1, (units, OUTPUTS))
    other = (classes + rng.integers(1, OUTPUTS, units)) % OUTPUTS
    for unit, kind in enumerate(kinds):
        if kind != "reads":
            head[unit, classes[unit] if kind == "writes" else other[unit]] += strength
    return ground(tokens, head, [f"class {c}" for c in classes])


def ground(tokens: np.ndarray, head: np.ndarray, labels: list[str | None], project: Projection | None = None) -> Ground:
    """A ground over the neurons of these tokens, or the units of a projection."""
    outputs = Outputs(tuple(f"class {i}" for i in range(head.shape[1])))
    real, project = torch.from_numpy(tokens).float(), project or Projection()
    flat = project(real.flatten(0, 1))
    acts = flat.unflatten(0, real.shape[:2]).amax(1)
    usual = [float(np.quantile(a[a > 0], 0.95)) if (a > 0).any() else np.nan for a in flat.T.numpy()]
    targets = find_targets([label for label in labels if label], outputs, ("exact",))
    answers = Planted(real, torch.from_numpy(head).float())
    writes, ids = project.writes(real.shape[2]), np.arange(len(real))
    return Ground(
        answers, project, writes, acts, ids, labels, targets, outputs.names, flat.mean(0), torch.tensor(usual)
    )
