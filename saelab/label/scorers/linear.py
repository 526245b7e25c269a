"""Linear Explanations (Oikarinen and Weng, ICML 2024): a unit as a short weighted sum of concepts."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from saelab.acts import Acts, blocks, columns, shape, take_rows
from saelab.arrays import takes_arrays
from saelab.errors import UserError
from saelab.label.scorers.elastic import ElasticNet
from saelab.label.scorers.evidence import Evidence
from saelab.label.scorers.frame import Block, Draw, Frame
from saelab.label.scorers.permuted import Best
from saelab.label.scorers.scorer import Citation, Scorer, of_all

STEEPNESS, SHIFT = 60.0, -0.09  # the authors' sigmoid for ViT-L-16-SigLIP-384; fitted per encoder
LAMBDA, L1_SHARE = 0.05, 0.99  # the authors' elastic net
MAX_LENGTH, TOLERANCE, WIDTH = 10, 0.02, 10  # the authors' greedy search
GROUP = 32  # units of a null that start from their mean's net


@dataclass(frozen=True)
class LinearExplanation:
    """One unit as bias + sum of weights x concept activations."""

    labels: tuple[int, ...]  # columns of the concept activations, in the order in which they were added
    weights: tuple[float, ...]  # one a label, in activations per unit of concept activation
    bias: float
    validation_r: float  # Pearson correlation on the validation images, which chose the labels
    test_r: float  # Pearson correlation on images that chose nothing


def concept_activations(
    sims: Float[Tensor, "images labels"], steepness: float = STEEPNESS, shift: float = SHIFT
) -> Float[Tensor, "images labels"]:
    """Chance that each concept is in each image: sigmoid(steepness x (cosine + shift)), constants per encoder."""
    return torch.sigmoid(steepness * (sims + shift))


def usable_concepts(concepts: Float[Tensor, "images labels"]) -> Bool[Tensor, "labels"]:
    """The authors' filter: mean of the five strongest at least 0.5, and a spread of 1e-5 or more."""
    strongest = concepts.topk(min(5, len(concepts)), dim=0).values.mean(dim=0)
    return (strongest >= 0.5) & (concepts.std(dim=0) >= 1e-5)


def splits(images: int, seed: int = 0) -> tuple[Tensor, Tensor, Tensor]:
    """Image ids for training, validation and test: 70, 10 and 20 per cent, shuffled with `seed`."""
    order = torch.randperm(images, generator=torch.Generator().manual_seed(seed))
    first, second = int(0.7 * images), int(0.8 * images)
    return order[:first].sort().values, order[first:second].sort().values, order[second:].sort().values


def elastic_net(
    acts: Acts, concepts: Float[Tensor, "images labels"], lam: float = LAMBDA, l1_share: float = L1_SHARE
) -> Float[Tensor, "units labels"]:
    """Coefficients of an elastic net from standardised concept activations to each standardised unit.

    Minimises |y - X w|^2 / 2n + lam (l1_share |w|_1 + (1 - l1_share) |w|^2 / 2), as the authors' solver does; the
    minimum is found to rounding. Concepts that `usable_concepts` refuses get 0. NaN for units that are constant or not
    finite.
    """
    acts = columns(acts)
    if len(concepts) != shape(acts)[0]:
        raise UserError("concepts", tuple(concepts.shape), f"expected one row for each of {shape(acts)[0]} images")
    net, usable = training_net(concepts, lam, l1_share)
    parts = []
    for _, part in blocks(acts):
        y = standardised(part.cpu()).T
        known = y.isfinite().all(dim=1)
        found = torch.full((len(y), concepts.shape[1]), torch.nan)
        found[known] = 0.0
        if bool(known.any()):
            found[known.nonzero(), usable.nonzero()[:, 0]] = net.solve(y[known], net.descend(y[known])).float()
        parts.append(found)
    return torch.cat(parts).to(concepts.device)


def training_net(
    concepts: Float[Tensor, "images labels"], lam: float = LAMBDA, l1_share: float = L1_SHARE
) -> tuple[ElasticNet, Bool[Tensor, "labels"]]:
    """The elastic net of training images' concept activations, and which concepts are its columns."""
    usable = usable_concepts(concepts).cpu()
    return ElasticNet(standardised(concepts.cpu()[:, usable]), lam, l1_share), usable


@takes_arrays
def linear_explanations(
    acts: Acts,
    concepts: Float[Tensor, "images labels"],
    coefficients: Float[Tensor, "units labels"] | None = None,
    seed: int = 0,
    max_length: int = MAX_LENGTH,
) -> list[LinearExplanation]:
    """Each unit's labels with weights: an elastic net for the order, then greedy addition while validation gains.

    Images are split 70/10/20. In the order of the elastic net's coefficients on training images, ten concepts at a
    time are tried; the one that gains most joins, as long as the validation correlation of the least-squares fit
    grows by 0.02; one that gains less is dropped for good (the first label always joins). The authors fit with 100
    steps of Adam; here the fit is exact. Where a unit is constant on the validation images, only the first label joins.
    Units that are not finite, or constant on the training images, get no label and correlations NaN.

    `coefficients`: `elastic_net` of the training images, where it is known already.
    """
    acts = columns(acts)
    train, validation, test = splits(len(concepts), seed)
    if not len(validation):
        raise UserError("images", len(concepts), "expected at least 10 images to split")
    if coefficients is None:
        coefficients = elastic_net(take_rows(acts, train.to(acts.device)), concepts[train.to(concepts.device)])
    greedy = _Greedy(concepts.cpu(), (train, validation, test), max_length)
    out = []
    for block, part in blocks(acts):
        order = coefficients[block].cpu().sort(dim=1, descending=True, stable=True)
        for y, values, labels in zip(part.T.cpu().double(), order.values, order.indices, strict=True):
            known = bool(values.isfinite().all() and y.isfinite().all())
            out.append(greedy.explain(y, labels.tolist()) if known else _NOTHING)
    return out


class _Greedy:
    """Greedy addition of labels, for any unit.

    A trial's least-squares fit is the one before plus what the trial adds to it: its part at right angles to the
    labels chosen, on training images; the same steps turn its validation column into what it adds there.
    """

    def __init__(self, concepts: Float[Tensor, "images labels"], ids: tuple[Tensor, ...], longest: int) -> None:
        self.train, self.validation, self.test = ids
        self.longest, self.concepts = longest, concepts
        fitted = concepts[self.train].double()
        centre = fitted.mean(dim=0)
        self.columns = fitted - centre
        self.seen = concepts[self.validation].double() - centre

    def explain(self, y: Float[Tensor, "images"], order: list[int]) -> LinearExplanation:
        """One unit's explanation, labels being tried in the given order."""
        chosen: list[int] = []
        dropped: set[int] = set()
        best, predicted = 0.0, y.new_zeros(len(self.validation))
        basis, seen = y.new_zeros(len(self.train), 0), y.new_zeros(len(self.validation), 0)
        while len(chosen) < self.longest and not math.isnan(best):
            trials = list(islice((l for l in order if l not in chosen and l not in dropped), WIDTH))
            columns, adds = self._beyond(trials, basis, seen)
            sums = predicted[:, None] + adds * (columns.T @ y[self.train])
            found = _correlations(sums, y[self.validation]).tolist()
            if chosen:
                dropped |= {l for l, r in zip(trials, found, strict=True) if not r - best >= TOLERANCE}
            left = [i for i, l in enumerate(trials) if l not in dropped]
            if not left:
                break
            i = max(left, key=lambda i: (-math.inf if math.isnan(found[i]) else found[i], -i))
            best, predicted = found[i], sums[:, i]
            basis, seen = torch.cat([basis, columns[:, [i]]], dim=1), torch.cat([seen, adds[:, [i]]], dim=1)
            chosen.append(trials[i])
        weights, bias = self._fit(y, chosen)
        test = (self.concepts[self.test][:, chosen].double() @ weights)[:, None]
        r = float(_correlations(test, y[self.test])[0])
        return LinearExplanation(tuple(chosen), tuple(weights.tolist()), bias, best, r)

    def _beyond(self, labels: list[int], basis: Tensor, seen: Tensor) -> tuple[Tensor, Tensor]:
        """Labels' columns less what `basis` explains, at length 1 (0 if nothing is left), on both sets of images."""
        columns, adds = self.columns[:, labels], self.seen[:, labels]
        whole = columns.norm(dim=0)
        for _ in range(2):  # twice is enough for right angles to rounding
            share = basis.T @ columns
            columns, adds = columns - basis @ share, adds - seen @ share
        rest = columns.norm(dim=0)
        scale = torch.where(rest > 1e-9 * whole, 1 / rest, 0.0)
        return columns * scale, adds * scale

    def _fit(self, y: Tensor, labels: list[int]) -> tuple[Float[Tensor, "labels"], float]:
        """Weights and bias by least squares on training images."""
        x = self.concepts[self.train][:, labels].double()
        design = torch.cat([x, x.new_ones(len(x), 1)], dim=1)
        solved = torch.linalg.lstsq(design, y[self.train, None], driver="gelsd").solution[:, 0]
        return solved[:-1], float(solved[-1])


_NOTHING = LinearExplanation((), (), float("nan"), float("nan"), float("nan"))


def _correlations(a: Float[Tensor, "n trials"], b: Float[Tensor, "n"]) -> Float[Tensor, "trials"]:
    """Pearson correlation of each column with b, NaN where either is constant."""
    a, b = _centred(a), _centred(b)
    return b @ a / (a.norm(dim=0) * b.norm())


def _centred(values: Tensor) -> Tensor:
    centred = values - values.mean(dim=0)
    constant = centred.norm(dim=0) <= 1e-12 * values.norm(dim=0)  # what is left is rounding
    return centred.masked_fill(constant, 0.0)


def standardised(matrix: Float[Tensor, "images m"]) -> Float[Tensor, "images m"]:
    """Columns to mean 0 and deviation 1, float64; NaN where a column is constant."""
    centred = matrix.double() - matrix.double().mean(dim=0)
    spread = (centred.square().sum(dim=0) / (len(matrix) - 1)).sqrt()
    rounding = 1e-12 * matrix.abs().amax(dim=0).double()
    return centred / spread.masked_fill(spread <= rounding, torch.nan)


def coefficients(scorer: Scorer, frame: Frame) -> Best:
    """Best coefficients under permutation: exact elastic nets, each begun from one of its like.

    Under one order of the images units differ only in the heights of their ranked activations, so what they are made
    to look like is much the same, and so are their nets. The net of a block's mean starts those of its groups' means,
    and these start the units'.
    """
    train, _, _ = splits(frame.images)
    sims = frame.evidence.sims
    net, usable = training_net(concept_activations(sims)[train.to(sims.device)])
    others = not bool(usable.all())  # concepts that can't be used have the coefficient 0

    def best(draw: Draw, block: Block) -> Tensor:
        y = standardised(_permuted(draw, block).cpu()[train]).T
        known = y.isfinite().all(dim=1)
        out = torch.full((len(y),), torch.nan)
        if not net.columns:
            out[known] = 0.0
        elif bool(known.any()):
            largest = net.solve(y[known], _near(net, y[known])).amax(dim=1)
            out[known] = (largest.clamp(min=0) if others else largest).float()
        return out.to(sims.device)

    return best


def _permuted(draw: Draw, block: Block) -> Float[Tensor, "images some"]:
    """The block's activations as the draw deals them out."""
    ranks = block.sorted.shape[1]
    padded = torch.cat([block.sorted, block.lowest[:, None]], dim=1)
    return padded.T[draw.rank.clamp(max=ranks)]


def _near(net: ElasticNet, y: Float[Tensor, "units n"]) -> Float[Tensor, "units columns"]:
    """Nets of groups of units that stand side by side, which fire on about as many images."""
    mean = y.mean(dim=0, keepdim=True)
    first = net.solve(mean, net.descend(mean))
    groups = y.split(GROUP)
    means = torch.stack([group.mean(dim=0) for group in groups])
    found = net.solve(means, first.expand(len(means), -1))
    return torch.cat([row.expand(len(group), -1) for row, group in zip(found, groups, strict=True)])


def _coefficients(e: Evidence) -> Tensor:
    train, _, _ = splits(e.n_images)
    return elastic_net(take_rows(e.acts, train), concept_activations(e.sims)[train.to(e.sims.device)])


def _explain(scores: Float[Tensor, "units labels"], evidence: Evidence, labels: Sequence[str]) -> list[dict[str, Any]]:
    """`labels` with weights, `bias`, and `test_r`, the correlation on the fifth of the images that chose nothing."""
    found = linear_explanations(evidence.acts, concept_activations(evidence.sims), scores)  # scores are coefficients
    return [
        {"labels": [[labels[i], w] for i, w in zip(e.labels, e.weights, strict=True)]}
        | {"bias": e.bias, "test_r": e.test_r}
        for e in found
    ]


OIKARINEN = Citation(
    "Oikarinen & Weng, ICML 2024",
    """@inproceedings{oikarinen2024linear,
  title = {Linear Explanations for Individual Neurons},
  author = {Oikarinen, Tuomas and Weng, Tsui-Wei},
  booktitle = {International Conference on Machine Learning},
  year = {2024}
}""",
)
SCORERS = (
    Scorer(
        "linear_explanations",
        "images",
        "Linear explanations",
        "The weight of the label where all labels together predict the unit's activation (elastic net).",
        of_all(_coefficients),
        coefficients,
        OIKARINEN,
        explain=_explain,
    ),
)
