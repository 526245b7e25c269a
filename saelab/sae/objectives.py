"""The losses and their gradients, without autograd where the sparse maths allows it.

Loss of a reconstruction: |x^ - x|^2 / variance, summed over units of the activations, mean over tokens: FVU itself.
`sparse_gradients` serves topk and batchtopk, with nested levels: level p reconstructs from the pairs of levels 0..p.
Matryoshka's levels are prefixes of the dictionary, Multi-TopK's are the first k and the first 4 k pre-activations.
`dense_loss` serves relu and jumprelu, whose codes are not sparse from the start, through autograd.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from saelab.sae import sparse
from saelab.sae.config import SAEConfig
from saelab.sae.distributed import World
from saelab.sae.select import screened_top_k, top_k, top_of_batch

Weights = dict[str, Tensor]  # W_enc, b_enc, W_dec, b_dec, and threshold where the rule has one


@dataclass
class Gradients:
    """What a step needs: gradients by name, who fired, and numbers for the log (0-d tensors)."""

    grads: Weights
    fired: Bool[Tensor, "latents"]
    metrics: dict[str, Tensor]
    threshold: Tensor | None = None  # batchtopk: the smallest value kept


def sparse_gradients(
    weights: Weights,
    centred: Float[Tensor, "batch d_in"],
    pre: Float[Tensor, "batch latents"] | None,
    config: SAEConfig,
    variance: Tensor,
    tokens: int,
    out: Weights | None = None,
    world: World | None = None,
) -> tuple[Gradients, Float[Tensor, "batch d_in"]]:
    """Gradients of the reconstruction loss, from x - b_dec and the pre-activations; also x^ - x of the whole SAE.

    `pre` None: topk's latents are chosen by the bfloat16 screen. The decoder's gradient has its radial part removed.
    `tokens` is the batch size over all processes. `out` may hold W_enc and W_dec to write those gradients into.
    """
    W_enc, W_dec = weights["W_enc"], weights["W_dec"]
    out = out or {name: torch.empty_like(W_dec) for name in ("W_enc", "W_dec")}
    batch = len(centred)
    pairs, level_weights, smallest = keep(pre, config, world or World(), weights, centred)
    levels, by = len(level_weights), sparse.products(config.kernels, centred.device)
    grouped = sparse.by_latent(pairs, config.latents)

    added = sparse.decode_pairs(pairs, W_dec, centred.new_empty(levels * batch, centred.shape[1]), by)
    errors = added.view(levels, batch, -1)  # level p: what the levels up to p add, less the target
    if levels > 1:
        errors.cumsum_(0)
    errors.sub_(centred)
    losses = torch.stack([_square_sum(error) for error in errors]) / (tokens * variance)
    error = errors[_reported(config)]
    if levels > 1:  # from the gradient of each level's sum to that of what each level adds
        added = (errors * level_weights.view(-1, 1, 1)).flip(0).cumsum_(0).flip(0).view(levels * batch, -1)

    scale = 2 / (tokens * variance)
    slopes = sparse.products_by_latent(grouped, W_dec, added, by).mul_(scale)
    values = pairs.values.index_select(0, grouped.order)
    fires = values > 0
    inward = slopes * fires
    kept = fires & (grouped.bags < batch) if config.multi_topk else fires  # by the SAE itself: not the 3 k more
    each = (inward, slopes * values, kept.to(slopes))
    db_enc, radial, fired = (sparse.totals_by_latent(numbers, grouped, by) for numbers in each)
    dW_dec = sparse.sums_by_latent(values * scale, added, grouped, out["W_dec"], by)
    sparse.remove_radial(dW_dec, W_dec, radial)
    tokens_of = grouped if levels == 1 else sparse.ByLatent(grouped.order, grouped.bags % batch, grouped.offsets)
    dW_enc = sparse.sums_by_latent(inward, centred, tokens_of, out["W_enc"], by)
    db_dec = scale * (added.new_ones(1, batch) @ added[:batch]).squeeze(0) - db_enc @ W_enc
    grads = {"W_enc": dW_enc, "b_enc": db_enc, "W_dec": dW_dec, "b_dec": db_dec}
    loss = (losses * level_weights).sum()
    metrics = {"loss": loss, "fvu": losses[_reported(config)], "l0": kept.sum() / tokens}
    return Gradients(grads, fired > 0, metrics, smallest), error


def keep(
    pre: Float[Tensor, "batch latents"] | None,
    config: SAEConfig,
    world: World,
    weights: Weights,
    centred: Float[Tensor, "batch d_in"],
) -> tuple[sparse.Pairs, Tensor, Tensor | None]:
    """The pairs that the rule keeps, the levels' weights in the loss, and batchtopk's smallest value above 0."""
    batch = len(centred)
    if config.rule == "topk":
        k = config.k * (4 if config.multi_topk else 1)
        if pre is None:
            values, indices = screened_top_k(centred, weights["W_enc"], weights["b_enc"], k)
        else:
            values, indices = top_k(pre, k)
        pairs, smallest = sparse.pairs_of_rows(values.relu_(), indices), None
    else:
        assert pre is not None
        values, flat = _share_of_batch(pre, config.k * batch, world)
        values = values.relu_()
        smallest = torch.where(values > 0, values, torch.inf).min()
        rows = torch.div(flat, config.latents, rounding_mode="floor")
        pairs = sparse.Pairs(values, flat % config.latents, sparse.starts(rows, batch))
    level, level_weights = _levels(pairs, config)
    if level is not None:
        rows = torch.arange(batch, device=centred.device).repeat_interleave(
            pairs.offsets.diff(), output_size=len(level)
        )
        bags = level * batch + rows
        pairs = sparse.pairs_in_bags(pairs.values, pairs.latents, bags, len(level_weights) * batch)
    return pairs, level_weights.to(centred), smallest


def _levels(pairs: sparse.Pairs, config: SAEConfig) -> tuple[Tensor | None, Tensor]:
    """Each pair's level (None: there is one level) and the levels' weights in the loss."""
    device = pairs.latents.device  # all made there: a copy from the host would wait for the device
    if config.prefixes:
        sizes = config.prefix_sizes
        level = torch.zeros_like(pairs.latents)
        for size in sizes:
            level += pairs.latents >= size
        return level, torch.full((len(sizes),), 1 / len(sizes), device=device)
    level_weights = torch.ones(1 + config.multi_topk, device=device)
    if not config.multi_topk:
        return None, level_weights
    level_weights[1] = 1 / 8
    by_row = pairs.values.view(-1, 4 * config.k)
    level = torch.ones_like(by_row, dtype=torch.long)
    level.scatter_(1, by_row.topk(config.k, dim=1, sorted=False).indices, 0)
    return level.view(-1), level_weights


def _share_of_batch(pre: Tensor, count: int, world: World) -> tuple[Tensor, Tensor]:
    """This process' part of the `count` x processes largest pre-activations of the whole batch."""
    if world.size == 1:
        return top_of_batch(pre, count)
    values, flat = top_of_batch(pre, min(pre.numel(), count * world.size))
    least = world.gather(values).topk(count * world.size, sorted=False).values.min()
    kept = values >= least
    return values[kept], flat[kept]


def _reported(config: SAEConfig) -> int:
    """The level that is the SAE itself: the first k of Multi-TopK, the whole dictionary of Matryoshka."""
    return 0 if config.multi_topk else -1


def _square_sum(x: Tensor) -> Tensor:
    flat = x.reshape(-1)
    return torch.dot(flat, flat)


def dense_loss(
    weights: Weights,
    x: Float[Tensor, "batch d_in"],
    config: SAEConfig,
    variance: Tensor,
    tokens: int,
    total: Callable[[Tensor], Tensor] = lambda part: part,
) -> tuple[Tensor, dict[str, Tensor], Bool[Tensor, "latents"], Float[Tensor, "batch d_in"]]:
    """Loss of the rules relu and jumprelu, for autograd; numbers for the log; who fired; x^ - x.

    relu (Bricken et al. 2023): + l1 x mean over tokens of sum(codes) / sqrt(variance).
    jumprelu (Rajamanoharan et al. 2024): + l0_weight x (L0 / k - 1)^2, threshold by straight-through rectangles.
    `total` sums a number over all processes: the L0 penalty is a square of the whole batch's mean.
    """
    spread = variance.sqrt()
    pre = torch.addmm(weights["b_enc"], x - weights["b_dec"], weights["W_enc"].T).relu()
    if config.rule == "relu":
        codes = pre
        l0 = (codes.detach() > 0).sum() / tokens
        penalty = config.l1 * codes.sum() / (tokens * spread)
        value = penalty.detach()
    else:
        width = config.bandwidth * spread
        codes = _Jump.apply(pre, weights["threshold"], width)
        l0 = _Step.apply(pre, weights["threshold"], width).sum() / tokens
        excess = total(l0.detach().clone()) / config.k - 1
        penalty = config.l0_weight * 2 * excess * l0 / config.k  # has the gradient of excess^2
        value = config.l0_weight * excess.square() * len(x) / tokens
    error = codes @ weights["W_dec"] + weights["b_dec"] - x
    fvu = error.square().sum() / (tokens * variance)
    metrics = {"loss": fvu.detach() + value, "fvu": fvu.detach(), "l0": l0.detach()}
    return fvu + penalty, metrics, (codes.detach() > 0).any(0), error.detach()


class _Jump(torch.autograd.Function):
    """z where z > theta, else 0; theta learns through a rectangle of the given width around it (equation 11)."""

    @staticmethod
    def forward(ctx, z, theta, width):
        ctx.save_for_backward(z, theta, width)
        return z * (z > theta)

    @staticmethod
    def backward(ctx, grad):
        z, theta, width = ctx.saved_tensors
        window = ((z - theta).abs() < width / 2).to(grad.dtype)
        return grad * (z > theta), -(theta / width) * (window * grad).sum(0), None


class _Step(torch.autograd.Function):
    """1 where z > theta; its gradient reaches theta alone (equation 12)."""

    @staticmethod
    def forward(ctx, z, theta, width):
        ctx.save_for_backward(z, theta, width)
        return (z > theta).to(z.dtype)

    @staticmethod
    def backward(ctx, grad):
        z, theta, width = ctx.saved_tensors
        window = ((z - theta).abs() < width / 2).to(grad.dtype)
        return None, -(window * grad).sum(0) / width, None
