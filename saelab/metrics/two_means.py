"""2-means for very many very small sets at once: a split of each unit's few images in two."""

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn.functional import one_hot

EXACT_K = 12  # up to so many rows every split in two is tried; beyond, 2-means with restarts
RESTARTS, SEED = 10, 123  # as SemanticLens sets scikit-learn's KMeans
MOST_STEPS, TOLERANCE = 300, 1e-4  # scikit-learn's defaults
BLOCK = 1 << 22  # numbers held at a time


def two_means(
    rows: Float[Tensor, "units k d_text"], valid: Bool[Tensor, "units k"] | None = None
) -> Bool[Tensor, "units k"]:
    """Which of each unit's valid rows lie in the other cluster than its first valid row.

    The split has the least squared distance to the two plain means: among all splits for at most 12 rows, beyond that
    the best of ten runs of 2-means, which start and stop as those of scikit-learn's KMeans (k-means++, n_init 10,
    random_state 123) and give the same clusters. Only distances within a set matter, so all runs of all units work on
    their small matrices of inner products together. In float64; all False for fewer than two rows.
    """
    valid = torch.ones(rows.shape[:2], dtype=torch.bool, device=rows.device) if valid is None else valid
    counts = valid.sum(dim=1)
    second = torch.zeros_like(valid)
    for k in counts.unique().tolist():
        if k < 2:
            continue
        units = (counts == k).nonzero()[:, 0]
        width = rows.shape[2] + (k << max(k - 1, 0) if k <= EXACT_K else RESTARTS * k)
        for some in units.split(max(1, BLOCK // (k * width))):
            own = valid[some].nonzero()[:, 1].view(len(some), k)
            points = rows[some[:, None], own].double()
            points = points - points.mean(dim=1, keepdim=True)
            gram = points @ points.mT
            found = _best_split(gram) if k <= EXACT_K else _lloyd(gram, rows.shape[2])
            second[some[:, None], own] = found ^ found[:, :1]
    return second


def _best_split(gram: Float[Tensor, "units k k"]) -> Bool[Tensor, "units k"]:
    """The split of the least squared distance to two means: of all of them, the first row staying where it is."""
    k = gram.shape[1]
    codes = torch.arange(1, 1 << (k - 1), device=gram.device)
    second = (codes[:, None] << 1 >> torch.arange(k, device=gram.device) & 1).to(gram.dtype)
    size = second.sum(dim=1)
    # Centred rows: one part's sum is the other's negative, and least within = largest between.
    pairs = (second[:, :, None] * second[:, None, :]).flatten(1)
    spread = (gram.flatten(1) @ pairs.T) * (1 / size + 1 / (k - size))
    return second.bool()[spread.argmax(dim=1)]


def _lloyd(gram: Float[Tensor, "units k k"], dimensions: int) -> Bool[Tensor, "units k"]:
    """The best of `RESTARTS` runs of Lloyd's iteration."""
    squares = gram.diagonal(dim1=1, dim2=2)
    stop = TOLERANCE * squares.mean(dim=1) / dimensions  # of the mean variance of a dimension, as scikit-learn has it
    weights = one_hot(_plus_plus(gram), gram.shape[1]).to(gram.dtype)  # [units, runs, 2, k]: centres as sums of rows
    labels = torch.zeros(weights.shape[0], RESTARTS, weights.shape[3], dtype=torch.bool, device=gram.device)
    going = torch.ones(labels.shape[:2], dtype=torch.bool, device=gram.device)
    for step in range(MOST_STEPS):
        new = _nearer_second(weights, gram)
        moved = _means(new)
        drift = _within(moved - weights, gram).sum(dim=2)
        same = (new == labels).all(dim=2) if step else torch.zeros_like(going)
        labels[going] = new[going]
        weights = torch.where(going[:, :, None, None], moved, weights)
        going &= ~same & (drift > stop[:, None])
        if not bool(going.any()):
            break
    labels = _nearer_second(weights, gram)
    means = _means(labels)
    between = (_within(means, gram) * _sizes(labels)).sum(dim=2)
    # The first of equals: a run that found the same clusters differs in rounding.
    best = (between >= between.amax(dim=1, keepdim=True) * (1 - 1e-12)).int().argmax(dim=1)
    return labels[torch.arange(len(labels), device=gram.device), best]


def _plus_plus(gram: Float[Tensor, "units k k"]) -> Int[Tensor, "units runs 2"]:
    """k-means++: a random first row, and of two drawn by squared distance to it the one that leaves less.

    The random numbers are numpy's from `SEED`, drawn in the order in which scikit-learn draws them.
    """
    import numpy as np

    k = gram.shape[1]
    numbers = torch.from_numpy(np.random.RandomState(SEED).random_sample((RESTARTS, 3))).to(gram.device)
    squares = gram.diagonal(dim1=1, dim2=2)
    distance = (squares[:, :, None] + squares[:, None, :] - 2 * gram).clamp(min=0)
    distance.diagonal(dim1=1, dim2=2).zero_()
    uniform = torch.full((k,), 1 / k, dtype=gram.dtype, device=gram.device).cumsum(0)
    first = torch.searchsorted(uniform / uniform[-1], numbers[:, 0].contiguous(), right=True)
    nearest = distance[:, first]  # [units, runs, k]
    total = nearest.cumsum(dim=2)
    drawn = torch.searchsorted(total, numbers[:, 1:] * nearest.sum(dim=2, keepdim=True)).clamp(max=k - 1)
    unit = torch.arange(len(gram), device=gram.device)[:, None, None]
    left = torch.minimum(nearest[:, :, None], distance[unit, drawn]).sum(dim=3)
    second = drawn.gather(2, left.argmin(dim=2, keepdim=True))[:, :, 0]
    return torch.stack([first.expand_as(second), second], dim=2)


def _nearer_second(weights: Float[Tensor, "units runs 2 k"], gram: Tensor) -> Bool[Tensor, "units runs k"]:
    """Which rows are nearer to the second centre than to the first."""
    along = _products(weights, gram)
    distance = (along * weights).sum(dim=3)[:, :, :, None] - 2 * along
    return distance[:, :, 1] < distance[:, :, 0]


def _sizes(labels: Bool[Tensor, "units runs k"]) -> Float[Tensor, "units runs 2"]:
    second = labels.sum(dim=2)
    return torch.stack([labels.shape[2] - second, second], dim=2).double()


def _means(labels: Bool[Tensor, "units runs k"]) -> Float[Tensor, "units runs 2 k"]:
    """Both clusters' means as weights of the rows; an empty cluster's (equal rows only) are 0."""
    members = torch.stack([~labels, labels], dim=2).double()
    return members / members.sum(dim=3, keepdim=True).clamp(min=1)


def _within(weights: Float[Tensor, "units runs 2 k"], gram: Tensor) -> Float[Tensor, "units runs 2"]:
    """Squared norms of sums of rows."""
    return (_products(weights, gram) * weights).sum(dim=3)


def _products(weights: Float[Tensor, "units runs 2 k"], gram: Tensor) -> Float[Tensor, "units runs 2 k"]:
    """Inner products of sums of rows with the rows: one product a unit, for a matrix of each run would be a copy."""
    return (weights.flatten(1, 2) @ gram).view_as(weights)
