"""Units of one label taken out together: where a feature is split into several, each alone looks unnecessary."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from saelab.acts import dense
from saelab.effects.ablate import Active, effects, percentiles
from saelab.effects.causal import MeasureSettings, choose_pictures
from saelab.effects.ground import FEWEST, Ground, run_edits
from saelab.effects.summary import mean_of

FEWEST_UNITS = 2  # of a label


def groups_of(labels: Sequence[str | None], known: object) -> dict[str, list[int]]:
    """Label -> its units, for labels of FEWEST_UNITS or more that mean some output (`label in known`)."""
    found: dict[str, list[int]] = {}
    for unit, label in enumerate(labels):
        if label is not None:
            found.setdefault(label, []).append(unit)
    return {label: units for label, units in found.items() if len(units) >= FEWEST_UNITS and label in known}  # type: ignore[operator]


def measure_group(label: str, units: Sequence[int], ground: Ground, settings: MeasureSettings) -> dict[str, Any]:
    """All units of a label ablated together, beside each by itself, on the test pictures that fire them most.

    `drop`: the loss of the label's outputs, in centred logits, without all of them; `singles`: the sum of what each
    alone costs; `beyond`: the difference. 0 where the rest of the model is linear; above 0 where units stand in for
    each other. `causal_pct`, `single_pct`: percentile of the label's outputs without all, and on average without one.
    """
    strength = _strength(units, ground)
    row: dict[str, Any] = {"label": label, "units": list(units), "fires": int((strength > 0).sum()), "why": None}
    if row["fires"] < FEWEST:
        return row | {"why": "too_few", "pictures": []}
    ids = ground.ids[choose_pictures(strength, settings)]
    active = Active.of(ground.project, ground.answers.tokens(ids))
    values = [float(ground.means[unit]) if settings.value == "mean" else 0.0 for unit in units]
    singles = [active.without(unit, ground.writes[unit], value) for unit, value in zip(units, values)]
    together = active.tokens + torch.stack([edit - active.tokens for edit in singles]).sum(0)
    before, after = run_edits(ground.answers, ids, active.tokens, [together, *singles])
    mean = effects(before, after).mean(1)  # [all, then each; outputs]
    places, shares = ground.targets.weights[label]
    own, pct = (x[:, places] @ torch.from_numpy(shares) for x in (mean, percentiles(mean)))
    numbers = {"drop": float(own[0]), "singles": float(own[1:].sum()), "beyond": float(own[0] - own[1:].sum())}
    return row | numbers | {"pictures": ids.tolist(), "causal_pct": float(pct[0]), "single_pct": float(pct[1:].mean())}


def summarise_groups(rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Means over labels of several units, and how many times the sum of single losses the joint one is."""
    known = [row for row in rows if row["why"] is None]
    found: dict[str, Any] = {"labels": len(rows), "measured": len(known), "units": sum(len(r["units"]) for r in known)}
    for name in ("causal_pct", "single_pct", "drop", "singles", "beyond"):
        mean = mean_of(np.array([row[name] for row in known]), [row["label"] for row in known])
        found[name] = None if mean is None else {"mean": mean.mean, "se": mean.se}
    total = sum(row["singles"] for row in known)
    return found | {"times": sum(row["drop"] for row in known) / total if total else None}


def _strength(units: Sequence[int], ground: Ground) -> Float[Tensor, "test"]:
    """How strongly the units fire on each picture together, each as a share of its own strongest."""
    total = torch.zeros(len(ground.ids), dtype=torch.float64)
    for unit in units:
        own = dense(ground.acts, slice(unit, unit + 1))[:, 0].double().clamp(min=0)
        total += own / own.max().clamp(min=1e-30)
    return total
