"""Causal faithfulness of one unit: does the network use it for what its label says?

The unit's part is taken out of the layer's tokens on the test pictures that fire it most, and the label's own outputs
are ranked among all outputs by how much they lose. Everything here is per unit; `summary` joins the units of a basis.
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from saelab import settings
from saelab.acts import Acts, dense
from saelab.effects.ablate import Active, Tokens, effects, moved, percentiles
from saelab.effects.answers import Answers
from saelab.effects.targets import Targets
from saelab.errors import UserError
from saelab.units.bases import Projection

PICTURES = ("top", "quantiles")
VALUES = ("zero", "mean")
FEWEST = 5  # pictures that a unit has to fire on, and be silent on to be steered
COMPANIONS = 3  # other units on the same pictures, at most
FIRING = 0.75  # share of the pictures that a companion fires on
NEAR = 1.0  # a companion's part is as long as the unit's up to a factor of e
DIRECTIONS = 2  # random directions of the write's length
DOSES = (0.5, 1.0, 2.0, 4.0)  # multiples of the unit's usual activation that are added
STEERED = (0.5, 1.0, 2.0)  # of those, whose percentile and collateral are kept
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

    @cached_property
    def partner(self) -> Int[np.ndarray, "units"]:
        """For each unit another one, whose write the control `permuted` takes: a cycle through all, by seed."""
        order = np.random.default_rng(self.seed).permutation(len(self.labels))
        partner = np.empty_like(order)
        partner[order] = np.roll(order, 1)
        return partner


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
    row |= found | _steer(unit, ground, strength, generator)
    if label is None or how == "none":
        row["why"] = "unlabelled" if label is None else "no_target"
    return row


def choose_pictures(strength: Float[Tensor, "test"], settings: MeasureSettings) -> Int[np.ndarray, "some"]:
    """Places of the pictures that a unit is measured on: of those that fire it, strongest first; ties to the lower."""
    order = np.argsort(-strength.numpy(), kind="stable")[: int((strength > 0).sum())]
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
    places, shares = _target(ground, unit)
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
    places, shares = _target(ground, unit)
    left = torch.stack([(effect.sum(0) - effect) / (len(effect) - 1) for effect in found])
    ranks = percentiles(left)  # [unit and companions, images, outputs]
    pct = ranks[..., places] @ shares
    above = (pct[0] - ranks[0] @ ground.typical) / ground.left if ground.left > 0 else None
    return {
        "causal": None if above is None else above.tolist(),
        "causal_net": (pct[0] - pct[1:].mean(0)).tolist() if len(found) > 1 else None,
    }


def _steer(unit: int, ground: Ground, strength: Tensor, generator: torch.Generator) -> dict[str, Any]:
    """The unit added, in several doses, on pictures where it is silent."""
    silent = np.flatnonzero((strength == 0).numpy())
    usual = float(ground.usual[unit])
    if unit not in ground.labelled or len(silent) < FEWEST or not usual > 0:
        return {}
    from scipy.stats import spearmanr

    count = min(len(silent), 20)
    chosen = np.sort(silent[torch.randperm(len(silent), generator=generator)[:count].numpy()])
    tokens, write = ground.answers.tokens(ground.ids[chosen]), ground.writes[unit]
    active = Active(tokens, tokens.new_zeros(*tokens.shape[:2], 1), _scales(ground.project, tokens))
    edits = [active.with_more(dose * usual, write) for dose in DOSES]
    before, after = run_edits(ground.answers, ground.ids[chosen], tokens, edits)
    places, shares = _target(ground, unit)
    raised = -effects(before, after).mean(1)
    own = [0.0, *(raised[:, places] @ shares).tolist()]
    log_p, log_q = before.double().log_softmax(-1), after.double().log_softmax(-1)
    kl = (log_p.exp() * (log_p - log_q)).sum(-1).mean(-1)
    pct = percentiles(raised)[:, places] @ shares
    kept = [DOSES.index(dose) for dose in STEERED]
    return {
        "steer_pct": {f"{DOSES[i]:g}": float(pct[i]) for i in kept},
        "kl": {f"{DOSES[i]:g}": float(kl[i]) for i in kept},
        "dose": float(spearmanr([0.0, *DOSES], own).statistic) if len(set(own)) > 1 else 0.0,
        "inverted": bool(max(own) > max(own[0], own[-1])),  # more does less: the most is reached in between
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


def _scales(project: Projection, tokens: Tokens) -> Float[Tensor, "images tokens 1"]:
    return project.scale(tokens.flatten(0, 1)).unflatten(0, tokens.shape[:2])


def _target(ground: Ground, unit: int) -> tuple[np.ndarray, Tensor]:
    """Outputs and shares of a unit's label."""
    label = ground.labels[unit]
    assert label is not None
    places, shares = ground.targets.weights[label]
    return places, torch.from_numpy(shares)


def _weights(ground: Ground, unit: int) -> Float[Tensor, "outputs"]:
    """The label's outputs less the mean of all: of centred logits."""
    places, shares = _target(ground, unit)
    weights = torch.full((len(ground.names),), -1 / len(ground.names), dtype=torch.float64)
    weights[places] += shares
    return weights


def _extremes(effect: Float[Tensor, "outputs"], names: Sequence[str]) -> dict[str, list[tuple[str, float]]]:
    """The outputs most raised by the unit and most lowered, with their effects."""
    order = torch.argsort(effect, stable=True).tolist()
    count = min(SHOWN, len(order))
    raised = [(names[i], float(effect[i])) for i in reversed(order[-count:])]
    return {"raised": raised, "lowered": [(names[i], float(effect[i])) for i in order[:count]]}
