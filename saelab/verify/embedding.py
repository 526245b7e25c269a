"""The embedding score: are held-out photos that fire a unit nearer to its exemplars than silent ones? No model."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor
from torch.nn.functional import normalize

from saelab import metrics
from saelab.acts import Acts, dense, pick
from saelab.label import mine
from saelab.label.proposal import ShownExemplars


@dataclass(frozen=True)
class EmbeddingScore:
    """One line of embedding.jsonl."""

    unit: int  # row number, as in the exemplars
    status: str  # scored | undefined (no exemplar, or only firing or only silent photos)
    auroc: float | None  # that a firing photo is nearer to the exemplars' mean embedding than a silent one; chance .5
    typical: float | None  # the same by nearness to the mean of all mined photos: what being a usual photo gives
    fires: int  # held-out photos above the unit's mean over the mined ones
    silent: int  # those below


def embedding_scores(
    exemplars: ShownExemplars,
    image_emb: Float[Tensor, "images d_text"],
    acts: tuple[Acts, Acts],
    ids: tuple[np.ndarray, np.ndarray],
    units: Sequence[int],
) -> list[EmbeddingScore]:
    """The score of each of `units`, in their order.

    exemplars: of all units, ids of rows of image_emb. acts: [mine, units] and [test, units], dense or sparse, of the
    images `ids`. A photo fires the unit above its mean over the mined photos and is silent below, as contrasts are; one
    at the mean is neither. After the example-embedding score of Paulo & Belrose (2025), with the mean of all exemplars
    in place of a few examples drawn anew.
    """
    chosen = torch.tensor(list(units), dtype=torch.long)
    means = mine.column_means(dense(pick(acts[0], chosen)).float())
    own = dense(pick(acts[1], chosen)).double()
    emb = normalize(image_emb.double(), dim=1)
    held_out = emb[torch.as_tensor(ids[1])]
    typical = held_out @ emb[torch.as_tensor(ids[0])].mean(0)
    made = []
    for column, unit in enumerate(units):
        positives = exemplars.positives[unit][exemplars.activations[unit] > 0]
        positives = positives[positives >= 0]
        fires, silent = own[:, column] > means[column], own[:, column] < means[column]
        counts = int(fires.sum()), int(silent.sum())
        if not len(positives) or 0 in counts:
            made.append(EmbeddingScore(unit, "undefined", None, None, *counts))
            continue
        near = held_out @ emb[positives].mean(0)
        auroc, usual = _auroc(near, fires, silent), _auroc(typical, fires, silent)
        made.append(EmbeddingScore(unit, "scored", auroc, usual, *counts))
    return made


def embedding_summary(rows: Sequence[EmbeddingScore]) -> dict[str, Any]:
    """Units, counts per status, and the means over the scored units."""
    scored = [row for row in rows if row.auroc is not None]
    status = {name: sum(row.status == name for row in rows) for name in ("scored", "undefined")}
    mean = {n: float(np.mean([getattr(row, n) for row in scored])) if scored else None for n in ("auroc", "typical")}
    return {"units": len(rows), "status": status, **mean}


def _auroc(values: Float[Tensor, "images"], fires: Bool[Tensor, "images"], silent: Bool[Tensor, "images"]) -> float:
    """P(a firing photo's value > a silent one's), ties as halves."""
    return float(metrics.auroc(values[fires][:, None], values[silent][:, None]))
