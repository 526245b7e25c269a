"""The sparse products of a training step: sums over batch x k pairs instead of batch x latents numbers.

Every function has a dense twin in the tests. `Pairs` lists the kept (bag, latent) pairs in the order of their bags; a
bag is a token, or a token at one level of a nested SAE (see objectives.py). `ByLatent` is the same list in the order of
the latents, for the weight gradients.
"""

import warnings
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float, Int
from scipy.sparse import csr_matrix
from torch import Tensor
from torch.nn.functional import embedding_bag

from saelab.errors import UserError

GATHERED = 1 << 22  # numbers gathered at once on devices that lack sampled products


@dataclass(frozen=True)
class Pairs:
    """Kept (bag, latent) pairs, sorted by bag."""

    values: Float[Tensor, "pairs"]  # >= 0
    latents: Int[Tensor, "pairs"]
    offsets: Int[Tensor, "bags+1"]  # bag i holds pairs offsets[i]:offsets[i + 1]


@dataclass(frozen=True)
class ByLatent:
    """The same pairs, sorted by latent."""

    order: Int[Tensor, "pairs"]  # which pair of `Pairs` comes here
    bags: Int[Tensor, "pairs"]
    offsets: Int[Tensor, "latents+1"]


def pairs_of_rows(values: Float[Tensor, "rows k"], indices: Int[Tensor, "rows k"]) -> Pairs:
    """Pairs from a fixed number of latents a token; one bag a token."""
    rows, k = indices.shape
    offsets = torch.arange(0, rows * k + 1, k, device=indices.device)
    return Pairs(values.reshape(-1), indices.reshape(-1), offsets)


def pairs_in_bags(
    values: Float[Tensor, "pairs"], latents: Int[Tensor, "pairs"], bags: Int[Tensor, "pairs"], n_bags: int
) -> Pairs:
    """Pairs from three lists in any order."""
    bags, order = bags.sort(stable=True)
    return Pairs(values[order], latents[order], starts(bags, n_bags))


def sort_by_latent(pairs: Pairs, latents: int) -> ByLatent:
    """Sort the pairs by latent, once, for both weight gradients. Within a latent the order of the bags stays."""
    n, bags = len(pairs.latents), len(pairs.offsets) - 1
    if pairs.latents.device.type == "cpu":  # a counting sort, an order faster than a general one
        columns, offsets = pairs.latents.numpy().astype(np.int32), pairs.offsets.numpy().astype(np.int32)
        turned = csr_matrix((np.arange(n, dtype=np.int32), columns, offsets), shape=(bags, latents)).tocsc()
        return ByLatent(*(torch.from_numpy(a) for a in (turned.data, turned.indices, turned.indptr)))
    latent, order = pairs.latents.sort(stable=True)
    of_pair = torch.searchsorted(pairs.offsets, torch.arange(n, device=order.device), right=True) - 1
    return ByLatent(order, of_pair[order], starts(latent, latents))


def decode_rows(
    values: Float[Tensor, "rows k"], indices: Int[Tensor, "rows k"], W_dec: Float[Tensor, "latents d_in"]
) -> Float[Tensor, "rows d_in"]:
    """Sum of value x decoder row, token by token; without the bias."""
    return embedding_bag(indices, W_dec, per_sample_weights=values, mode="sum")


def decode_pairs(
    pairs: Pairs, W_dec: Float[Tensor, "latents d_in"], out: Float[Tensor, "bags d_in"], by: "Products"
) -> Float[Tensor, "bags d_in"]:
    """Sum of value x decoder row, bag by bag, into `out`."""
    return by.weighted_sums(pairs.offsets, pairs.latents, pairs.values, W_dec, out)


def sums_by_latent(
    weights: Float[Tensor, "pairs"],
    source: Float[Tensor, "bags d_in"],
    grouped: ByLatent,
    out: Float[Tensor, "latents d_in"],
    by: "Products",
) -> Float[Tensor, "latents d_in"]:
    """Sum over each latent's pairs of weight x source[bag], into `out`; `weights` in the order of the latents."""
    return by.weighted_sums(grouped.offsets, grouped.bags, weights, source, out)


def totals_by_latent(numbers: Float[Tensor, "pairs"], grouped: ByLatent, by: "Products") -> Float[Tensor, "latents"]:
    """The sum of one number a pair over each latent's pairs; `numbers` in the order of the latents."""
    one, out = numbers.new_ones(1, 1), numbers.new_empty(len(grouped.offsets) - 1, 1)
    return by.weighted_sums(grouped.offsets, torch.zeros_like(grouped.bags), numbers, one, out).squeeze(1)


def products_by_latent(
    grouped: ByLatent, rows: Float[Tensor, "latents d_in"], bags: Float[Tensor, "bags d_in"], by: "Products"
) -> Float[Tensor, "pairs"]:
    """<rows[latent], bags[bag]> of each pair, in the order of the latents: the gradient of the pairs' values."""
    return by.sampled_products(grouped.offsets, grouped.bags, rows, bags)


def sampled_products(
    offsets: Int[Tensor, "n+1"],
    columns: Int[Tensor, "pairs"],
    left: Float[Tensor, "n d_in"],
    right: Float[Tensor, "m d_in"],
) -> Float[Tensor, "pairs"]:
    """<left[i], right[column]> for each column in columns[offsets[i]:offsets[i + 1]]."""
    if left.device.type in ("cpu", "cuda"):
        pattern = _csr(offsets, columns, right.new_zeros(len(columns)), (len(left), len(right)))
        return torch.sparse.sampled_addmm(pattern, left, right.T, beta=0.0).values()
    of_pair = torch.arange(len(left), device=left.device).repeat_interleave(offsets.diff(), output_size=len(columns))
    step = max(1, GATHERED // left.shape[1])
    cuts = zip(of_pair.split(step), columns.split(step), strict=True)
    return torch.cat([(left[i] * right[j]).sum(1) for i, j in cuts])


def remove_radial(
    gradient: Float[Tensor, "latents d_in"], rows: Float[Tensor, "latents d_in"], radial: Float[Tensor, "latents"]
) -> None:
    """Take from each row's gradient its part along the (unit) row, whose size is known: in place."""
    gradient.addcmul_(rows, radial.unsqueeze(1), value=-1.0)


def weighted_sums(
    offsets: Int[Tensor, "n+1"],
    columns: Int[Tensor, "pairs"],
    weights: Float[Tensor, "pairs"],
    source: Float[Tensor, "m d_in"],
    out: Float[Tensor, "n d_in"],
) -> Float[Tensor, "n d_in"]:
    """out[i] = sum over j in offsets[i]:offsets[i + 1] of weights[j] source[columns[j]]."""
    if source.device.type == "cpu" and torch.backends.mkl.is_available():  # in place: no fresh pages to fault in
        matrix = _csr(offsets.to(torch.int32), columns.to(torch.int32), weights, (len(out), len(source)))
        return torch.addmm(out, matrix, source, beta=0.0, out=out)
    found = embedding_bag(
        columns, source, offsets.to(columns.dtype), per_sample_weights=weights, mode="sum", include_last_offset=True
    )
    return out.copy_(found)


def _csr(offsets: Tensor, columns: Tensor, values: Tensor, shape: tuple[int, int]) -> Tensor:
    with warnings.catch_warnings():  # torch says once in each process that CSR is in beta
        warnings.simplefilter("ignore", UserWarning)
        return torch.sparse_csr_tensor(offsets, columns, values, shape, check_invariants=False)


def starts(sorted_keys: Int[Tensor, "pairs"], n: int) -> Int[Tensor, "n+1"]:
    """Where each of the keys 0..n-1 begins in a sorted list, and at the end the list's length."""
    edges = torch.arange(n + 1, device=sorted_keys.device, dtype=sorted_keys.dtype)
    return torch.searchsorted(sorted_keys, edges)


@dataclass(frozen=True)
class Products:
    """The two products that a step is made of, as one library computes them."""

    weighted_sums: Callable[[Tensor, Tensor, Tensor, Tensor, Tensor], Tensor]
    sampled_products: Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]


TORCH = Products(weighted_sums, sampled_products)


def products(kernels: str, device: torch.device) -> Products:
    """The products by name: torch | triton. Raises UserError where Triton's can't run."""
    if kernels == "torch":
        return TORCH
    try:
        from saelab.sae import kernels as triton
    except ImportError:
        raise UserError("kernels", kernels, "the package triton is not installed", "use kernels=torch") from None
    if not triton.runs_on(device):
        raise UserError("kernels", kernels, f"needs a CUDA device, not {device}", "use kernels=torch")
    return Products(triton.weighted_sums, triton.sampled_products)
