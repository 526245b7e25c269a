"""Causal faithfulness of one unit: does the network use it for what its label says?

The unit's part is taken out of the layer's tokens on the test pictures that fire it most, and the label's own outputs
are ranked among all outputs by how much they lose. Everything here is per unit; `summary` joins the units of a basis.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from saelab import settings
from saelab.acts import dense
from saelab.effects.ablate import Active, effects, moved, percentiles
from saelab.effects.ground import FEWEST, Ground, run_edits
from saelab.effects.steering import steer
from saelab.errors import UserError
from saelab.label.mine import top_images

PICTURES = ("top", "quantiles")
VALUES = ("zero", "mean")
COMPANIONS = 3  # other units on the same pictures, at most
FIRING = 0.75  # share of the pictures that a companion fires on
NEAR = 1.0  # a companion's part is as long as the unit's up to a factor of e
DIRECTIONS = 2  # random directions of the write's length
OFTEN = 0.5  # firing rate from which both ablations are measured
SHOWN = 5  # outputs most raised and most lowered that a row names


@dataclass(frozen=True)
class MeasureSettings:
    """How a unit's effect is measured."""

    count: int = 20  # pictures a unit
    pictures: str = "top"  # top: those that fire it most | quantiles: evenly over all that fire it
    value: str = "zero"  # what an ablated activation becomes: zero | mean (over `mine` tokens)
    seed: int = 0  # of random directions, silent pictures and permuted writes

    def __post_init__(self) -> None:
        """Raise UserError for settings that can't be used."""
        settings.check(self, "", {"count": (FEWEST, float("inf"))})
        for name, known in (("pictures", PICTURES), ("value", VALUES)):
            value = getattr(self, name)
            if value not in known:
                raise UserError(name, value, "unknown", f"{settings.nearest(value, known)}known: {', '.join(known)}")


def measure(unit: int, ground: Ground, settings: MeasureSettings) -> dict[str, Any]:
    """The row of one unit; numbers that can't be computed are None, and `why` says which kind of unit it is.

    `why`: None | too_few (it fires on fewer than FEWEST test pictures) | unlabelled | no_target (no output means its
    label).
    """
    label = ground.labels[unit]
    how = None if label is None else ground.targets.how.get(label, "none")
    strength = dense(ground.acts, slice(unit, unit + 1))[:, 0].double()
    firing = int((strength > 0).sum())
    row: dict[str, Any] = {"unit": unit, "label": label, "how": how, "fires": firing, "why": None}
    row |= {"pictures": [], "value": settings.value}
    if firing < FEWEST:
        return row | {"why": "too_few"}
    chosen = choose_pictures(strength, settings)
    row["pictures"] = ground.ids[chosen].tolist()
    generator = torch.Generator().manual_seed(1_000_003 * settings.seed + unit)
    found = _ablate(unit, ground, chosen, settings, generator, firing / len(strength))
    row |= found | steer(unit, ground, strength, generator)
    if label is None or how == "none":
        row["why"] = "unlabelled" if label is None else "no_target"
    return row


def choose_pictures(strength: Float[Tensor, "test"], settings: MeasureSettings) -> Int[np.ndarray, "some"]:
    """Places of the pictures that a unit is measured on: of those that fire it, strongest first (`top_images`)."""
    strength, firing = strength.nan_to_num(), int((strength > 0).sum())
    order = top_images(strength[:, None], max(1, firing))[0][0, :firing].numpy()
    if settings.pictures == "top" or len(order) <= settings.count:
        return order[: settings.count]
    return order[np.linspace(0, len(order) - 1, settings.count).round().astype(np.int64)]


def _ablate(
    unit: int, ground: Ground, chosen: np.ndarray, settings: MeasureSettings, generator: torch.Generator, rate: float
) -> dict[str, Any]:
    ids, write = ground.ids[chosen], ground.writes[unit]
    active = Active.of(ground.project, ground.answers.tokens(ids))
    others = companions(active, unit, ground.writes)
    edits = {"zero": active.without(unit, write)}
    if rate >= OFTEN or settings.value == "mean":
        edits["mean"] = active.without(unit, write, float(ground.means[unit]))
    foreign = ground.writes[ground.partner[unit]]
    edits["permuted"] = active.without(unit, foreign * (write.norm() / foreign.norm().clamp(min=1e-12)))
    for i in range(DIRECTIONS):
        random = torch.randn(len(write), generator=generator)
        edits[f"random {i}"] = active.without(unit, random * (write.norm() / random.norm()))
    edits |= {f"other {u}": active.without(u, ground.writes[u]) for u in others}
    before, after = run_edits(ground.answers, ids, active.tokens, list(edits.values()))
    found = dict(zip(edits, effects(before, after)))
    main = found[settings.value]
    sizes = [float(found[f"random {i}"].norm(dim=-1).mean()) for i in range(DIRECTIONS)]
    size, random_size = float(main.norm(dim=-1).mean()), float(np.mean(sizes))
    mean = main.mean(0)
    row: dict[str, Any] = {"size": size, "push": size / random_size if random_size else None, "moved": moved(mean)}
    row |= {"companions": others, **_extremes(mean, ground.names)}
    if unit not in ground.labelled:
        return row
    row |= _of_label(unit, ground, found, settings, before, after[list(edits).index(settings.value)])
    gradient = ground.answers.gradient(ids, active.tokens, _weights(ground, unit))
    row["screen"] = (active.part(unit, write) * gradient).sum((1, 2)).tolist()
    return row


def _of_label(
    unit: int, ground: Ground, found: dict[str, Tensor], settings: MeasureSettings, before: Tensor, after: Tensor
) -> dict[str, Any]:
    """What the label's own outputs do."""
    places, shares = ground.target(unit)
    ranks = dict(zip(found, percentiles(torch.stack([effect.mean(0) for effect in found.values()]))))
    pct = {name: float(rank[places] @ shares) for name, rank in ranks.items()}
    main, rank = found[settings.value], ranks[settings.value]
    chance = float(rank @ ground.typical)
    others = [value for name, value in pct.items() if name.startswith("other")]
    control = float(np.mean(others)) if others else None
    mean = main.mean(0)
    own = float(mean[places] @ shares)
    all_labels = torch.from_numpy(ground.own[ground.labelled] @ mean.numpy())
    log_p = (before.double().log_softmax(-1) - after.double().log_softmax(-1))[:, places] @ shares
    first, then = np.isin(before.argmax(1).numpy(), places), np.isin(after.argmax(1).numpy(), places)
    best = int(places[int(shares.argmax())])
    return {
        "causal_pct": pct[settings.value],
        "causal_chance": chance,
        "causal": (pct[settings.value] - chance) / ground.left if ground.left > 0 else None,
        "causal_control": control,
        "causal_net": None if control is None else pct[settings.value] - control,
        "causal_p": float((all_labels >= own).sum()) / len(all_labels),  # its own label is among them
        "permuted_pct": pct["permuted"],
        "other_value_pct": next((pct[v] for v in VALUES if v != settings.value and v in pct), None),
        "top1": bool(rank[best] > 1 - 1 / len(mean)),
        "top10": bool(rank[best] > 1 - 10 / len(mean)),
        "drop": own,
        "drop_log_p": float(log_p.mean()),
        "necessity": float((first & ~then).sum() / first.sum()) if first.any() else None,
        "own": (main[:, places] @ shares).tolist(),
        "without": _without_each(unit, ground, [main, *(found[name] for name in found if name.startswith("other"))]),
    }


def _without_each(unit: int, ground: Ground, found: Sequence[Tensor]) -> dict[str, list[float] | None]:
    """`causal` and `causal_net` once more without each picture: what a comparison needs to resample pictures.

    `found`: effects [images, outputs] of the unit, then of its companions.
    """
    places, shares = ground.target(unit)
    left = torch.stack([(effect.sum(0) - effect) / (len(effect) - 1) for effect in found])
    ranks = percentiles(left)  # [unit and companions, images, outputs]
    pct = ranks[..., places] @ shares
    above = (pct[0] - ranks[0] @ ground.typical) / ground.left if ground.left > 0 else None
    return {
        "causal": None if above is None else above.tolist(),
        "causal_net": (pct[0] - pct[1:].mean(0)).tolist() if len(found) > 1 else None,
    }


def companions(active: Active, unit: int, writes: Float[Tensor, "units d_in"]) -> list[int]:
    """Up to COMPANIONS other units that fire on most of the same pictures, their parts most like the unit's in length.

    The pictures that a unit fires on mostly show what its label says, so that whatever supports the prediction there
    speaks for the label. Only what is left above these units belongs to the unit.
    """
    lengths = active.lengths * writes.norm(dim=1)
    apart = (lengths / lengths[unit].clamp(min=1e-30)).log().abs()
    apart[(active.fires_on < FIRING) | (lengths <= 0)] = torch.inf
    apart[unit] = torch.inf
    order = torch.argsort(apart, stable=True)[:COMPANIONS]
    return [int(u) for u in order if apart[u] <= NEAR]


def _weights(ground: Ground, unit: int) -> Float[Tensor, "outputs"]:
    """The label's outputs less the mean of all: of centred logits."""
    places, shares = ground.target(unit)
    weights = torch.full((len(ground.names),), -1 / len(ground.names), dtype=torch.float64)
    weights[places] += shares
    return weights


def _extremes(effect: Float[Tensor, "outputs"], names: Sequence[str]) -> dict[str, list[tuple[str, float]]]:
    """The outputs most raised by the unit and most lowered, with their effects."""
    order = torch.argsort(effect, stable=True).tolist()
    count = min(SHOWN, len(order))
    raised = [(names[i], float(effect[i])) for i in reversed(order[-count:])]
    return {"raised": raised, "lowered": [(names[i], float(effect[i])) for i in order[:count]]}
