"""Selection and the sparse products: what a training step does with batch x k pairs instead of batch x latents numbers.

Every function here has a dense twin in the tests that it must agree with. `Pairs` lists the kept (token, latent)
pairs in the order of their bags; a bag is a token, or a token in one level of a nested SAE (see objectives.py).
"""

import warnings
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn.functional import embedding_bag

GROUP = 16  # latents a group, for selection by group maxima
DENSE_GATHER = 1 << 22  # numbers gathered at once where a device lacks sampled products


@dataclass(frozen=True)
class Pairs:
    """Kept (bag, latent) pairs, sorted by bag."""

    values: Float[Tensor, "pairs"]  # >= 0
    latents: Int[Tensor, "pairs"]
    bags: Int[Tensor, "pairs"]
    offsets: Int[Tensor, "bags+1"]  # bag i holds pairs offsets[i]:offsets[i + 1]


@dataclass(frozen=True)
class ByLatent:
    """The same pairs in the order of their latents, for the sums over tokens."""

    order: Int[Tensor, "pairs"]
    bags: Int[Tensor, "pairs"]
    offsets: Int[Tensor, "latents+1"]


def top_k(x: Float[Tensor, "rows n"], k: int) -> tuple[Float[Tensor, "rows k"], Int[Tensor, "rows k"]]:
    """The k largest of each row and where they lie, in no particular order.

    Wide rows go by groups: the k largest lie in the k groups with the largest maxima, so that only those are sorted.
    """
    rows, n = x.shape
    groups = n // GROUP
    if n % GROUP or groups < 4 * k:
        return x.topk(k, dim=1, sorted=False)
    maxima = x.view(rows, GROUP, groups).amax(1)
    best = maxima.topk(k, dim=1, sorted=False).indices
    starts = torch.arange(0, n, groups, device=x.device)
    places = (best.unsqueeze(1) + starts.view(1, -1, 1)).view(rows, -1)
    values, inner = x.gather(1, places).topk(k, dim=1, sorted=False)
    return values, places.gather(1, inner)


def top_of_batch(x: Float[Tensor, "rows n"], count: int) -> Int[Tensor, "count"]:
    """Flat positions of the `count` largest of all of x, rising (BatchTopK)."""
    rows, n = x.shape
    groups = n // GROUP
    if n % GROUP or rows * groups < 4 * count:
        return x.view(-1).topk(count, sorted=False).indices.sort().values
    maxima = x.view(rows, GROUP, groups).amax(1).view(-1)
    best = maxima.topk(count, sorted=False).indices
    first = torch.div(best, groups, rounding_mode="floor") * n + best % groups
    places = (first.unsqueeze(1) + torch.arange(0, n, groups, device=x.device)).view(-1)
    inner = x.view(-1)[places].topk(count, sorted=False).indices
    return places[inner].sort().values


def decode_rows(
    values: Float[Tensor, "rows k"], indices: Int[Tensor, "rows k"], W_dec: Float[Tensor, "latents d_in"]
) -> Float[Tensor, "rows d_in"]:
    """Sum of value x decoder row, token by token; without the bias."""
    return embedding_bag(indices, W_dec, per_sample_weights=values, mode="sum")


def pairs_of_rows(values: Float[Tensor, "rows k"], indices: Int[Tensor, "rows k"]) -> Pairs:
    """Pairs from a fixed number of latents a token; one bag a token."""
    rows, k = indices.shape
    bags = torch.arange(rows, device=indices.device).repeat_interleave(k)
    offsets = torch.arange(0, rows * k + 1, k, device=indices.device)
    return Pairs(values.reshape(-1), indices.reshape(-1), bags, offsets)


def pairs_in_bags(
    values: Float[Tensor, "pairs"], latents: Int[Tensor, "pairs"], bags: Int[Tensor, "pairs"], n_bags: int
) -> Pairs:
    """Pairs from three lists in any order."""
    bags, order = bags.sort(stable=True)
    return Pairs(values[order], latents[order], bags, starts(bags, n_bags))


def by_latent(pairs: Pairs, latents: int) -> ByLatent:
    """Sort the pairs by latent, once, for both weight gradients."""
    key = pairs.latents.to(torch.int32) if pairs.latents.device.type == "cpu" else pairs.latents
    key, order = key.sort(stable=True)
    return ByLatent(order, pairs.bags[order], starts(key, latents))


def decode_pairs(pairs: Pairs, W_dec: Float[Tensor, "latents d_in"]) -> Float[Tensor, "bags d_in"]:
    """Sum of value x decoder row, bag by bag."""
    return embedding_bag(
        pairs.latents,
        W_dec,
        pairs.offsets,
        per_sample_weights=pairs.values,
        mode="sum",
        include_last_offset=True,
    )


def pair_products(
    pairs: Pairs, left: Float[Tensor, "bags d_in"], right: Float[Tensor, "latents d_in"]
) -> Float[Tensor, "pairs"]:
    """<left[bag], right[latent]> of each pair: the gradient of the pairs' values."""
    if left.device.type in ("cpu", "cuda"):
        shape = (len(left), len(right))
        with warnings.catch_warnings():  # torch says once in each process that CSR is in beta
            warnings.simplefilter("ignore", UserWarning)
            pattern = torch.sparse_csr_tensor(
                pairs.offsets, pairs.latents, torch.zeros_like(pairs.values), shape, check_invariants=False
            )
        return torch.sparse.sampled_addmm(pattern, left, right.T, beta=0.0).values()
    out = torch.empty_like(pairs.values)
    step = max(1, DENSE_GATHER // left.shape[1])
    for i in range(0, len(out), step):
        part = slice(i, i + step)
        out[part] = (left[pairs.bags[part]] * right[pairs.latents[part]]).sum(1)
    return out


def sums_by_latent(
    weights: Float[Tensor, "pairs"], source: Float[Tensor, "bags d_in"], grouped: ByLatent
) -> Float[Tensor, "latents d_in"]:
    """Sum over the pairs of each latent of weight x source[bag]; `weights` in the order of the latents."""
    return embedding_bag(
        grouped.bags,
        source,
        grouped.offsets,
        per_sample_weights=weights,
        mode="sum",
        include_last_offset=True,
    )


def totals_by_latent(columns: Float[Tensor, "pairs n"], grouped: ByLatent) -> Float[Tensor, "latents n"]:
    """Sums of numbers over the pairs of each latent; `columns` in the order of the latents."""
    return torch.segment_reduce(columns, "sum", offsets=grouped.offsets, axis=0, unsafe=True)


def remove_radial(
    gradient: Float[Tensor, "latents d_in"], rows: Float[Tensor, "latents d_in"], radial: Float[Tensor, "latents"]
) -> None:
    """Take from each row's gradient its part along the (unit) row, whose size is known: in place."""
    gradient.addcmul_(rows, radial.unsqueeze(1), value=-1.0)


def firing(values: Float[Tensor, "pairs"]) -> Bool[Tensor, "pairs"]:
    """Which pairs fire: a latent that was kept at value 0 did not."""
    return values > 0


def starts(sorted_keys: Int[Tensor, "pairs"], n: int) -> Int[Tensor, "n+1"]:
    """Where each key 0..n-1 begins in a sorted list, and its length at the end."""
    edges = torch.arange(n + 1, device=sorted_keys.device, dtype=sorted_keys.dtype)
    return torch.searchsorted(sorted_keys, edges)
