"""What all units of a basis are measured on, and the passes of edited tokens that every measurement makes."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from saelab.acts import Acts
from saelab.effects.ablate import Tokens
from saelab.effects.answers import Answers
from saelab.effects.targets import Targets
from saelab.units.bases import Projection

FEWEST = 5  # pictures that a unit has to fire on, and be silent on to be steered


@dataclass(frozen=True)
class Ground:
    """What all units of a basis are measured on."""

    answers: Answers
    project: Projection
    writes: Float[Tensor, "units d_in"]
    acts: Acts = field(repr=False)  # [test images, units], one number an image
    ids: Int[np.ndarray, "test"]  # the test images, as `answers` knows them
    labels: Sequence[str | None]  # of every unit
    targets: Targets
    names: Sequence[str]  # of the outputs
    means: Float[Tensor, "units"]  # mean activation over `mine` tokens
    usual: Float[Tensor, "units"]  # 95th percentile of the positive ones; NaN: silent on all of them
    seed: int = 0  # of the permuted writes

    @cached_property
    def own(self) -> Any:
        """CSR [units, outputs], float64: the shares of what each label means; 0 without label or targets."""
        return self.targets.matrix(["" if label is None else label for label in self.labels])

    @cached_property
    def labelled(self) -> Int[np.ndarray, "some"]:
        """Units whose label means some output."""
        return np.flatnonzero(np.diff(self.own.indptr) > 0)

    @cached_property
    def typical(self) -> Float[Tensor, "outputs"]:
        """What the labels of the basis mean on average: a label dealt out at random."""
        return torch.from_numpy(np.asarray(self.own.sum(0)).ravel() / max(1, len(self.labelled)))

    @cached_property
    def left(self) -> float:
        """1 - sum p^2: the share of deals that bring a unit other outputs than its own."""
        rows = [self.targets.weights[label] for label in self.labels if label in self.targets]  # type: ignore[index]
        counts = Counter((places.tobytes(), shares.tobytes()) for places, shares in rows)
        return 1 - sum((n / len(rows)) ** 2 for n in counts.values())

    def target(self, unit: int) -> tuple[np.ndarray, Float[Tensor, "some"]]:
        """Outputs that the unit's label means, and their shares."""
        label = self.labels[unit]
        assert label is not None
        places, shares = self.targets.weights[label]
        return places, torch.from_numpy(shares)

    @cached_property
    def partner(self) -> Int[np.ndarray, "units"]:
        """For each unit another one, whose write the control `permuted` takes: a cycle through all, by seed."""
        order = np.random.default_rng(self.seed).permutation(len(self.labels))
        partner = np.empty_like(order)
        partner[order] = np.roll(order, 1)
        return partner


def run_edits(
    answers: Answers, ids: Int[np.ndarray, "images"], tokens: Tokens, edits: Sequence[Tokens]
) -> tuple[Float[Tensor, "images outputs"], Float[Tensor, "edits images outputs"]]:
    """Outputs of the tokens as they are and of each edit; a picture that an edit leaves alone keeps its bits."""
    found = answers.logits(ids, torch.stack([tokens, *edits]))
    before, after = found[0], found[1:].clone()
    for i, edit in enumerate(edits):
        same = (edit == tokens).all(-1).all(-1)
        after[i, same] = before[same]
    return before, after
