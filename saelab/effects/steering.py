"""Steering: a unit added on pictures where it is silent. Does more of it give more of what its label says?"""

from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from saelab.effects.ablate import Active, Tokens, effects, percentiles
from saelab.effects.ground import FEWEST, Ground, run_edits
from saelab.units.bases import Projection

DOSES = (0.5, 1.0, 2.0, 4.0)  # multiples of the unit's usual activation that are added
STEERED = (0.5, 1.0, 2.0)  # of those, whose percentile and collateral are kept
AMPLIFIED = 10.0  # the multiple that `output_score` adds, its authors'
PICTURES = 20  # silent ones, at most


def steer(unit: int, ground: Ground, strength: Float[Tensor, "test"], generator: torch.Generator) -> dict[str, Any]:
    """The unit added, in several doses, on up to PICTURES pictures where it is silent: its numbers by column.

    `strength`: its pooled activation on each test picture. {} where its label means no output, where it is silent on
    fewer than FEWEST pictures, and where no usual activation is known.
    """
    silent = np.flatnonzero((strength == 0).numpy())
    usual = float(ground.usual[unit])
    if unit not in ground.labelled or len(silent) < FEWEST or not usual > 0:
        return {}
    from scipy.stats import spearmanr

    count = min(len(silent), PICTURES)
    chosen = np.sort(silent[torch.randperm(len(silent), generator=generator)[:count].numpy()])
    tokens, write = ground.answers.tokens(ground.ids[chosen]), ground.writes[unit]
    active = Active(tokens, tokens.new_zeros(*tokens.shape[:2], 1), _scales(ground.project, tokens))
    edits = [active.with_more(dose * usual, write) for dose in (*DOSES, AMPLIFIED)]
    before, after = run_edits(ground.answers, ground.ids[chosen], tokens, edits)
    after, amplified = after[:-1], after[-1]
    places, shares = ground.target(unit)
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
        "output_score": float(output_scores(amplified, places).mean()),
    }


def output_scores(logits: Float[Tensor, "images outputs"], places: Int[np.ndarray, "some"]) -> Float[Tensor, "images"]:
    """(1 - rank / outputs) x probability of the likeliest of the outputs `places`, picture by picture; float64, 0..1.

    rank: how many outputs are likelier. Source: Arad, Mueller and Belinkov, EMNLP 2025.
    """
    p = logits.double().softmax(-1)
    best = p[:, torch.as_tensor(places)].amax(1)
    rank = (p > best[:, None]).sum(1)
    return (1 - rank / p.shape[1]) * best


def _scales(project: Projection, tokens: Tokens) -> Float[Tensor, "images tokens 1"]:
    return project.scale(tokens.flatten(0, 1)).unflatten(0, tokens.shape[:2])
