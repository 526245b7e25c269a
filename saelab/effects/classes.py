"""What a class is made of, where a picture shows it, and how typical a picture is of its class.

After WWW (Ahn et al., CVPR 2024): *why* is a matrix class x unit, *where* the maps of the five units that carry a
class, and a picture is typical when the units that carry the class on it are those that usually do, at the same places.
Plain functions; values are of centred logits. A class is an output of the host that pictures belong to.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from saelab import bars
from saelab.effects.ablate import Active
from saelab.effects.answers import Answers
from saelab.effects.attribute import by_token, of_output
from saelab.effects.targets import Outputs
from saelab.label.vocabulary import key
from saelab.units.bases import Projection

CARRIERS = 5  # units that count as carrying a class
PER_CLASS = 50  # pictures of a class that are looked at: its mean changes little with more
AT_ONCE = 1 << 23  # values of (picture, token, unit) held at once


@dataclass(frozen=True)
class Usual:
    """What units do on the pictures of a class, on average."""

    scores: Float[Tensor, "units"]  # contribution to the class
    strength: Float[Tensor, "units"]  # activation at the strongest token


@dataclass(frozen=True)
class ClassUnits:
    """How much each unit raises each class, on pictures of the class."""

    outputs: Int[np.ndarray, "classes"]  # ascending; outputs that no picture belongs to are left out
    scores: Float[Tensor, "classes units"]  # float64: mean over the class' pictures of gradient x part
    strength: Float[Tensor, "classes units"]  # float64: mean over them of the activation at the strongest token
    ids: Int[np.ndarray, "images"]  # the pictures that were looked at
    of: Int[np.ndarray, "images"]  # the output that each belongs to
    typicality: Float[np.ndarray, "images"]  # of each, the class taken without it; NaN where it is undefined

    def usual(self, output: int) -> "Usual | None":
        """What units usually do on pictures of an output; None where no picture belonged to it."""
        place = np.flatnonzero(self.outputs == output)
        return Usual(self.scores[int(place[0])], self.strength[int(place[0])]) if len(place) else None

    def pictures(self, output: int) -> int:
        """How many pictures of an output were looked at."""
        return int((self.of == output).sum())


def outputs_of(
    classes: Sequence[Sequence[str]], outputs: Outputs, predicted: Int[np.ndarray, "images"]
) -> tuple[Int[np.ndarray, "images"], int]:
    """The output that each picture belongs to, and for how many it is the picture's own class.

    A picture's class counts where exactly one output has this name or synonym; else the host's own prediction stands.
    """
    found, own = predicted.copy(), 0
    for place, names in enumerate(classes):
        known = [outputs.by_name.get(key(name)) or outputs.by_synonym.get(key(name)) or [] for name in names]
        certain = next((places[0] for places in known if len(places) == 1), None)
        if certain is not None:
            found[place], own = certain, own + 1
    return found, own


def find_class_units(
    answers: Answers,
    ids: Int[np.ndarray, "images"],
    of: Int[np.ndarray, "images"],
    project: Projection,
    writes: Float[Tensor, "units d_in"],
    n_outputs: int,
    grid: tuple[int, int] | None = None,
) -> ClassUnits:
    """The matrix class x unit, and the typicality of each picture with its class taken without it.

    `of`: the output that each picture belongs to; at most PER_CLASS of each are used, the first ones. `grid`: of the
    layer's tokens; None where they have no place, and typicality is undefined. Seven parameters: host, pictures and
    basis have two each.
    """
    outputs = np.unique(of)
    first = [np.flatnonzero(of == c)[:PER_CLASS] for c in outputs]
    kept = np.sort(np.concatenate([*first, np.zeros(0, np.int64)]))
    ids, of = ids[kept], of[kept]
    scores = torch.zeros(len(outputs), len(writes), dtype=torch.float64)
    strength = torch.zeros_like(scores)
    typicality = np.full(len(ids), np.nan)
    for place, output in enumerate(bars.show(outputs, what="class units", unit="class")):
        own = np.flatnonzero(of == output)
        weights = of_output(int(output), n_outputs)
        parts = [_values(answers, ids[at], project, writes, weights) for at in _batches(own, answers, ids)]
        values, fires = (torch.cat(found) for found in zip(*parts))
        scores[place], strength[place] = values.mean(0), fires.mean(0)
        if grid is None or len(own) < 2:
            continue
        for at, value, fire in zip(own, values, fires):
            others = Usual(*((x.sum(0) - y) / (len(own) - 1) for x, y in ((values, value), (fires, fire))))
            active = Active.of(project, answers.tokens(ids[[at]]))
            found = compare_to_class(active, value, others, grid)
            typicality[at] = np.nan if found.typicality is None else found.typicality
    return ClassUnits(outputs, scores, strength, ids, of, typicality)


@dataclass(frozen=True)
class Carried:
    """The units that carry a class on one picture: those that usually do, and those that do here."""

    units: list[int]  # that usually carry it, strongest first
    shares: list[float]  # of each in what the five contribute
    maps: Float[Tensor, "units places"]  # where each fires here; 1: as strongly as usual on the class, or more
    usual: Float[Tensor, "places"]  # their maps, weighted by their shares
    here: Float[Tensor, "places"]  # the same of the five that carry it on this picture
    own_units: list[int]  # those five
    typicality: float | None  # cosine of `usual` and `here`; None where no unit carries the class

    @property
    def shown(self) -> Float[Tensor, "units places"]:
        """The maps above their own 90th percentile, 0 elsewhere."""
        bars = self.maps.quantile(0.9, dim=1, keepdim=True) if len(self.maps) else self.maps
        return torch.where(self.maps >= bars, self.maps, torch.zeros(()))


def compare_to_class(active: Active, values: Float[Tensor, "units"], usual: Usual, grid: tuple[int, int]) -> Carried:
    """Where the units that usually carry a class fire on a picture, and whether they are those that carry it here.

    `active`: the one picture. `values`: what each unit contributes to the output on it. Only positive contributions
    carry. A map is divided by the unit's usual strength on the class, or its strength here where that is more: shares
    say how much a unit counts, and one that hardly fires looks so. Typicality is 0 where no unit that usually carries
    the class fires, None where no unit carries it at all, there or here.
    """
    units, shares = carriers(usual.scores)
    own, own_shares = carriers(values)
    maps, own_maps = _maps(active, units, usual, grid), _maps(active, own, usual, grid)
    whole = shares @ maps if units else torch.zeros(grid[0] * grid[1])
    here = own_shares @ own_maps if own else torch.zeros(grid[0] * grid[1])
    same = _cosine(whole, here) if units and own else None
    return Carried(units, shares.tolist(), maps, whole, here, own, same)


def carriers(scores: Float[Tensor, "units"], count: int = CARRIERS) -> tuple[list[int], Float[Tensor, "some"]]:
    """The units with the largest positive scores, strongest first (ties to the lower), and their shares of the sum."""
    order = torch.argsort(scores, descending=True, stable=True)[:count]
    order = order[scores[order] > 0]
    values = scores[order]
    return order.tolist(), (values / values.sum()).float() if len(order) else values.float()


def _maps(active: Active, units: Sequence[int], usual: Usual, grid: tuple[int, int]) -> Float[Tensor, "units places"]:
    """Activations of units on the one picture's grid, as shares of what is usual or, if that is more, strongest."""
    amounts = active.acts[0, :, list(units)].T.float()
    top = torch.maximum(amounts.amax(1), usual.strength[list(units)].float()) if len(units) else amounts[:, 0]
    return (amounts / top[:, None].clamp(min=1e-30))[:, -grid[0] * grid[1] :]


def _cosine(a: Float[Tensor, "places"], b: Float[Tensor, "places"]) -> float:
    return min(1.0, float((a @ b) / (a.norm() * b.norm()).clamp(min=1e-30)))


def _values(
    answers: Answers, ids: np.ndarray, project: Projection, writes: Tensor, weights: Tensor
) -> tuple[Float[Tensor, "images units"], Float[Tensor, "images units"]]:
    """Gradient x part, summed over tokens, and activations at the strongest token."""
    active = Active.of(project, answers.tokens(ids))
    values = by_token(active, writes, answers.gradient(ids, active.tokens, weights))
    return values.sum(1), active.acts.amax(1).double()


def _batches(own: Int[np.ndarray, "some"], answers: Answers, ids: np.ndarray) -> list[np.ndarray]:
    """Pictures in parts that fit into memory."""
    tokens = answers.tokens(ids[own[:1]])
    size = max(1, AT_ONCE // (8 * tokens[0].numel()))
    return list(np.array_split(own, -(-len(own) // size)))
