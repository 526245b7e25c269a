"""Linear Explanations (Oikarinen and Weng, ICML 2024): a unit as a short weighted sum of concepts."""

from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from saelab.columns import Acts, blocks, columns, shape
from saelab.errors import UserError

STEEPNESS, SHIFT = 60.0, -0.09  # the authors' sigmoid for ViT-L-16-SigLIP-384; fitted per encoder
LAMBDA, L1_SHARE = 0.05, 0.99  # the authors' elastic net
MAX_LENGTH, TOLERANCE, WIDTH = 10, 0.02, 10  # the authors' greedy search


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


def usable_concepts(concepts: Float[Tensor, "images labels"]) -> Tensor:
    """The authors' filter, bool [labels]: mean of the five strongest at least 0.5, and a spread of 1e-5 or more."""
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

    Minimises |y - X w|^2 / 2n + lam (l1_share |w|_1 + (1 - l1_share) |w|^2 / 2), as the authors' solver does, by
    scikit-learn's coordinate descent on the Gram matrix that all units share. Concepts that `usable_concepts`
    refuses get 0. NaN for units that are constant or not finite.
    """
    from sklearn.linear_model import enet_path

    acts = columns(acts)
    if len(concepts) != shape(acts)[0]:
        raise UserError("concepts", tuple(concepts.shape), f"expected one row for each of {shape(acts)[0]} images")
    usable = usable_concepts(concepts)
    out = torch.zeros(shape(acts)[1], concepts.shape[1])
    x = _standardised(concepts[:, usable]).cpu().numpy()
    gram = x.T @ x
    for block, part in blocks(acts):
        y = _standardised(part).cpu().numpy().T.copy()  # a row a unit: the solver wants contiguous memory
        products = y @ x
        for i, unit in enumerate(range(*block.indices(len(out)))):
            if not np.isfinite(y[i]).all():
                out[unit] = torch.nan
            elif x.shape[1]:
                _, path, _ = enet_path(
                    x, y[i], l1_ratio=l1_share, alphas=[lam], precompute=gram, Xy=products[i], check_input=False
                )
                out[unit, usable.cpu()] = torch.from_numpy(path[:, 0]).float()
    return out.to(concepts.device)


def linear_explanations(
    acts: Acts, concepts: Float[Tensor, "images labels"], seed: int = 0, max_length: int = MAX_LENGTH
) -> list[LinearExplanation]:
    """Each unit's labels with weights: an elastic net for the order, then greedy addition while validation gains.

    Images are split 70/10/20. In the order of the elastic net's coefficients on training images, ten concepts at a
    time are tried; the one that gains most joins, as long as the validation correlation of the least-squares fit
    grows by 0.02; one that gains less is dropped for good (the first label always joins). The authors fit with 100
    steps of Adam; here the fit is exact. Units that are constant or not finite get no label and correlations NaN.
    """
    acts = columns(acts)
    train, validation, test = (ids.to(concepts.device) for ids in splits(len(concepts), seed))
    if not len(validation):
        raise UserError("images", len(concepts), "expected at least 10 images to split")
    out = []
    for _, part in blocks(acts):
        order = elastic_net(part[train], concepts[train]).sort(dim=1, descending=True, stable=True)
        for unit, (coefficients, labels) in enumerate(zip(order.values, order.indices, strict=True)):
            y = part[:, unit].double()
            if not bool(coefficients.isfinite().all()):
                out.append(LinearExplanation((), (), float("nan"), float("nan"), float("nan")))
                continue
            out.append(_greedy(concepts.double(), y, labels.tolist(), (train, validation, test), max_length))
    return out


def _greedy(
    x: Float[Tensor, "images labels"], y: Float[Tensor, "images"], order: list[int], ids: tuple, max_length: int
) -> LinearExplanation:
    train, validation, test = ids
    chosen: list[int] = []
    dropped: set[int] = set()
    best, fit = 0.0, torch.zeros(1, dtype=torch.float64)
    while len(chosen) < max_length:
        trials = [l for l in order if l not in chosen and l not in dropped][:WIDTH]
        step: tuple[float, int, Tensor] | None = None
        for label in trials:
            weights = _least_squares(x[train][:, [*chosen, label]], y[train])
            r = _correlation(_predict(x[validation][:, [*chosen, label]], weights), y[validation])
            if chosen and r - best < TOLERANCE:
                dropped.add(label)
            elif step is None or r > step[0]:
                step = (r, label, weights)
        if step is None:
            break
        best, label, fit = step
        chosen.append(label)
    test_r = _correlation(_predict(x[test][:, chosen], fit), y[test])
    return LinearExplanation(tuple(chosen), tuple(fit[:-1].tolist()), float(fit[-1]), best, test_r)


def _least_squares(x: Tensor, y: Tensor) -> Float[Tensor, "labels1"]:
    design = torch.cat([x, torch.ones(len(x), 1, dtype=x.dtype, device=x.device)], dim=1)
    return torch.linalg.lstsq(design.cpu(), y[:, None].cpu(), driver="gelsd").solution[:, 0]


def _predict(x: Tensor, weights: Tensor) -> Tensor:
    weights = weights.to(x.device)
    return x @ weights[:-1] + weights[-1]


def _correlation(a: Tensor, b: Tensor) -> float:
    a, b = a - a.mean(), b - b.mean()
    scale = float(a.norm() * b.norm())
    return float(a @ b) / scale if scale > 0 else float("nan")


def _standardised(matrix: Float[Tensor, "images m"]) -> Float[Tensor, "images m"]:
    centred = matrix.double() - matrix.double().mean(dim=0)
    spread = centred.std(dim=0)
    return centred / spread.masked_fill(spread <= 1e-12, torch.nan)
