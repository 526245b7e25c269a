"""Could data of the mining photos choose between contrast_evidence and Pearson? Tables of docs/scorers.md.

    python scripts/studies/auto_study.py --cache runs/scorer_study

Reads what scorer_study.py keeps in its cache folder (it makes what is missing). Vocabularies: the 200 classes alone,
with 150 and with all of the ImageNet classes that no photo shows. Each row has the truth r of both scorers on photos
that were not mined, their difference with its interval over units, and what the mining photos alone say: the share of
labels that are some photo's first (by similarity standardised per label), and how far labels from one half of the
mining photos agree with those from the other half (Cohen's kappa).
"""

import argparse
import itertools
import json
from pathlib import Path

import torch
from scorer_photos import PER_CLASS, photos
from scorer_study import _not_shown, _truth_r, paired
from torch import Tensor

from saelab.label import assign

SCORERS = ("contrast_evidence", "pearson")
DISTRACTORS, MINED = (0, 150, 840), (5, 20)  # labels that no photo shows; photos of a class that are mined
UNITS = 500  # features, drawn at random; all neurons


def chosen(acts: Tensor, image_emb: Tensor, label_emb: Tensor) -> dict[str, Tensor]:
    """Each scorer's label of each unit, -1 where it has none."""
    found = assign.rankings(SCORERS, assign.Evidence.mined(acts, image_emb, label_emb))
    return {name: ranking.label for name, ranking in found.items()}


def kappa(one: Tensor, other: Tensor, labels: int) -> float:
    """Agreement of two labellings beyond what their frequencies of labels give by chance."""
    there = (one >= 0) & (other >= 0)
    shares = [torch.bincount(x[there], minlength=labels) / int(there.sum()) for x in (one, other)]
    chance = float((shares[0] * shares[1]).sum())
    return (float((one == other)[there].float().mean()) - chance) / (1 - chance)


def main() -> None:
    parser = argparse.ArgumentParser(description="What mining photos say of contrast_evidence and Pearson.")
    parser.add_argument("--cache", type=Path, default=Path("runs/scorer_study"), help="of scorer_study.py")
    seen = photos(parser.parse_args().cache)
    g = torch.Generator().manual_seed(0)
    others = _not_shown()
    others = others[torch.randperm(len(others), generator=g)]
    features = seen.features("blocks.15")
    features = features[:, torch.randperm(features.shape[1], generator=g)[:UNITS]]
    within, test = torch.arange(len(seen.classes)) % PER_CLASS, ~seen.mine
    for extra, per_class in itertools.product(DISTRACTORS, MINED):
        label_emb, mined = torch.cat([seen.label_emb, others[:extra]]), within < per_class
        sims = seen.image_emb[mined] @ label_emb.T
        first = ((sims - sims.mean(0)) / sims.std(0)).argmax(1)
        shown = len(first.unique()) / len(label_emb)
        for basis, acts in (("neurons", seen.neurons("blocks.15")), ("features", features)):
            own = chosen(acts[mined], seen.image_emb[mined], label_emb)
            parts = [mined & (within % 2 == side) for side in (0, 1)]
            one, other = (chosen(acts[part], seen.image_emb[part], label_emb) for part in parts)
            r = {name: _truth_r(acts[test], seen.classes[test], labels) for name, labels in own.items()}
            row = {"basis": basis, "labels": len(label_emb), "photos": int(mined.sum()), "shown": shown}
            row |= {"truth_r": {name: float(values.mean()) for name, values in r.items()}}
            row |= {"ours - pearson": paired(r[SCORERS[0]], r[SCORERS[1]])}
            row |= {"kappa": {name: kappa(one[name], other[name], len(label_emb)) for name in SCORERS}}
            print(json.dumps(row), flush=True)


if __name__ == "__main__":
    main()
