"""Could data of the mining photos choose between contrast_evidence and Pearson? The last table of docs/scorers.md.

    python scripts/studies/auto_study.py --cache runs/auto_study

Reads Tiny ImageNet's validation pictures as scorer_study.py does, of 100 classes. Vocabularies: these classes; or ten
words that each cover several of them, with the photos of these alone; each also with labels that no photo shows. Each
row has the truth r of both scorers on photos that were not mined, their difference with its interval over units, and
what the mining photos say of both: what each rule looks at (`RULES`).
"""

import argparse
import itertools
import json
import random
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
from scipy.stats import rankdata
from scorer_photos import PER_CLASS, class_folders, class_names, photos
from scorer_study import _not_shown, _truth_r, paired
from torch import Tensor

from saelab.encoders.conse import ConSE
from saelab.label import assign

SCORERS = ("contrast_evidence", "pearson")
CLASSES, UNITS, JUDGED = 100, 500, 300  # classes; features, drawn at random; units of them that rules look at
COARSE = {
    "bird": "goose|black stork|king penguin|albatross",
    "dog": "Chihuahua|Yorkshire terrier|golden retriever|Labrador retriever|German shepherd|standard poodle",
    "cat": "tabby|Persian cat|Egyptian cat",
    "insect": "ladybug|fly|bee|grasshopper|walking stick|cockroach|mantis|dragonfly",
    "frog": "bullfrog|tailed frog",
    "car": "beach wagon|convertible|limousine|sports car",
    "boat": "gondola|lifeboat",
    "bridge": "steel arch bridge|suspension bridge|viaduct",
    "fruit": "orange|lemon|banana|pomegranate",
    "monkey": "orangutan|chimpanzee|baboon",
}


def chosen_folders() -> list[Path]:
    """The folders of CLASSES classes: all that a coarse word covers, the others at random."""
    covered = set("|".join(COARSE.values()).split("|"))
    every = class_folders()
    own = [place for place, name in zip(every, class_names(every), strict=True) if name in covered]
    rest = [place for place in every if place not in own]
    random.Random(0).shuffle(rest)
    return sorted(own + rest[: CLASSES - len(own)])


def score(acts: Tensor, image_emb: Tensor, label_emb: Tensor) -> dict[str, Tensor]:
    """Each scorer's scores [units, labels], -inf where it has none."""
    found = assign.score(SCORERS, assign.Evidence.mined(acts, image_emb, label_emb))
    return {name: scores.nan_to_num(nan=-torch.inf) for name, scores in found.items()}


def best(scores: Tensor) -> Tensor:
    """The label of each unit, -1 where it has none."""
    return scores.argmax(1).masked_fill(scores.isinf().all(1), -1)


@dataclass(frozen=True)
class Cell:
    """Units on photos, with a vocabulary of which the first `known` labels are true of some."""

    label_emb: Tensor
    known: int
    acts: Tensor
    image_emb: Tensor
    truth: Tensor  # the label of each photo
    within: Tensor  # the number of each photo among those of its class
    mined: Tensor  # bool

    @cached_property
    def halves(self) -> list[Tensor]:
        """The mining photos in two halves."""
        return [self.mined & (self.within % 2 == side) for side in (0, 1)]

    @cached_property
    def judged(self) -> Tensor:
        """The activations of the units that rules look at."""
        return self.acts[:, torch.randperm(self.acts.shape[1], generator=torch.Generator().manual_seed(1))[:JUDGED]]

    @cached_property
    def scores(self) -> list[dict[str, Tensor]]:
        """Both scorers' scores from each half."""
        return [score(self.judged[half], self.image_emb[half], self.label_emb) for half in self.halves]

    def crossed(self, name: str, judge: Callable[[Tensor, int], float]) -> float:
        """The mean of what `judge` says of the labels from one half on the other, both ways."""
        return float(np.mean([judge(best(self.scores[1 - side][name]), side) for side in (0, 1)]))


def kappa(cell: Cell, name: str) -> float:
    """Agreement of the labels from both halves beyond what their frequencies give by chance."""
    one, other = (best(scores[name]) for scores in cell.scores)
    there = (one >= 0) & (other >= 0)
    shares = [torch.bincount(x[there], minlength=len(cell.label_emb)) / int(there.sum()) for x in (one, other)]
    chance = float((shares[0] * shares[1]).sum())
    return (float((one == other)[there].float().mean()) - chance) / (1 - chance)


def both(cell: Cell, name: str) -> float:
    """The share of labels that score lower on the other half, by either scorer: each is at home once."""

    def judge(labels: Tensor, side: int) -> float:
        lower = [s < s.gather(1, labels.clamp(min=0)[:, None]) for s in cell.scores[side].values()]
        return float(np.mean([float((share.float().mean(1) * (labels >= 0)).mean()) for share in lower]))

    return cell.crossed(name, judge)


def auroc(cell: Cell, name: str) -> float:
    """How well activations tell the 5 % of the other half's photos that are most like the label: neither's reading."""
    sims = cell.image_emb @ cell.label_emb.T
    z = (sims - sims[cell.mined].mean(0)) / sims[cell.mined].std(0)

    def judge(labels: Tensor, side: int) -> float:
        own, half = z[cell.halves[side]], cell.judged[cell.halves[side]].numpy()
        n, ranks = max(3, len(own) // 20), torch.from_numpy(rankdata(half, axis=0))
        found = [
            (float(ranks[own[:, label].topk(n).indices, unit].sum()) - n * (n + 1) / 2) / (n * (len(own) - n))
            for unit, label in enumerate(labels.tolist())
            if label >= 0
        ]
        return (sum(found) + 0.5 * (len(labels) - len(found))) / len(labels)

    return cell.crossed(name, judge)


def people(cell: Cell, name: str) -> float:
    """Truth r on the other half, by what people call its photos: only where somebody did."""

    def judge(labels: Tensor, side: int) -> float:
        half = cell.halves[side]
        return float(_truth_r(cell.judged[half], cell.truth[half], labels).mean())

    return cell.crossed(name, judge)


def planted(cell: Cell, name: str, noise: float = 3.0) -> float:
    """Share of planted units named right: profiles of units, dealt to the photos of a class first, give or take noise.

    Needs what people call the photos, as `people` does.
    """
    g = torch.Generator().manual_seed(2)
    acts, wanted = cell.acts[cell.mined], torch.arange(2 * cell.known) % cell.known
    profiles = acts[:, torch.randint(acts.shape[1], (len(wanted),), generator=g)].sort(0).values
    member = (cell.truth[cell.mined][:, None] == wanted).float()
    order = member / member.std(0) + noise * torch.randn(member.shape, generator=g)
    units = profiles.gather(0, order.argsort(0).argsort(0))
    return float((best(score(units, cell.image_emb[cell.mined], cell.label_emb)[name]) == wanted).float().mean())


RULES = {"kappa": kappa, "both": both, "auroc": auroc, "people": people, "planted": planted}


def row(cell: Cell, test: Tensor) -> dict:
    """What test photos say, and what each rule would look at."""
    mined = cell.mined
    scores = score(cell.acts[mined], cell.image_emb[mined], cell.label_emb)
    scores["added"] = scores[SCORERS[0]] + int(mined.sum()) ** 0.5 * scores[SCORERS[1]]  # in one currency, no rule
    own = {name: best(s) for name, s in scores.items()}
    r = {name: _truth_r(cell.acts[test], cell.truth[test], labels) for name, labels in own.items()}
    sims = cell.image_emb[mined] @ cell.label_emb.T
    first = ((sims - sims.mean(0)) / sims.std(0)).argmax(1)
    found: dict = {"labels": len(cell.label_emb), "shown": cell.known, "photos": int(mined.sum())}
    found |= {"truth_r": {name: float(values.mean()) for name, values in r.items()}}
    found |= {"ours - pearson": paired(r[SCORERS[0]], r[SCORERS[1]])}
    found |= {"first of a photo": len(first.unique()) / len(cell.label_emb)}
    return found | {rule: {name: judge(cell, name) for name in SCORERS} for rule, judge in RULES.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description="What mining photos say of contrast_evidence and Pearson.")
    parser.add_argument("--cache", type=Path, default=Path("runs/auto_study"), help="where slow things are kept")
    folders = chosen_folders()
    names, seen = class_names(folders), photos(parser.parse_args().cache, folders)
    g = torch.Generator().manual_seed(0)
    others = _not_shown(names)
    others = others[torch.randperm(len(others), generator=g)]
    features = seen.features("blocks.15")
    bases = {
        "neurons": seen.neurons("blocks.15"),
        "features": features[:, torch.randperm(features.shape[1], generator=g)[:UNITS]],
    }
    of = {name: i for i, words in enumerate(COARSE.values()) for name in words.split("|")}
    coarse = torch.tensor([of.get(name, -1) for name in names])[seen.classes]
    within = torch.arange(len(seen.classes)) % PER_CLASS
    # Vectors of the labels, each photo's label, numbers of unshown labels, of mined photos a class, and test photos.
    vocabularies = (
        (ConSE().embed_sentences(list(COARSE)), coarse, (0, 90, 150), (5, 15, 35), within >= 35),
        (seen.label_emb, seen.classes, (0, 100, 840), (2, 5, 10, 20), ~seen.mine),
    )
    for vectors, truth, unshown, mined, test in vocabularies:
        there = truth >= 0
        for extra, each, basis in itertools.product(unshown, mined, bases):
            labels = torch.cat([vectors, others[:extra]])
            of_photos = (x[there] for x in (bases[basis], seen.image_emb, truth, within, within < each))
            cell = Cell(labels, len(vectors), *of_photos)
            print(json.dumps({"basis": basis} | row(cell, test[there])), flush=True)


if __name__ == "__main__":
    main()
