"""The losses and their gradients, without autograd where the sparse maths allows it.

Loss of a reconstruction: |x^ - x|^2 / variance, summed over units of the activations, mean over tokens: FVU itself.
`sparse_gradients` serves topk and batchtopk, with nested levels: level p reconstructs from the pairs of levels 0..p.
Matryoshka's levels are prefixes of the dictionary, Multi-TopK's are the first k and the first 4 k pre-activations.
`dense_loss` serves relu and jumprelu, whose codes are not sparse from the start, through autograd.
"""

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from saelab.sae import sparse
from saelab.sae.config import SAEConfig

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
    x: Float[Tensor, "batch d_in"],
    pre: Float[Tensor, "batch latents"],
    config: SAEConfig,
    variance: Tensor,
    tokens: int,
) -> tuple[Gradients, Float[Tensor, "batch d_in"]]:
    """Gradients of the reconstruction loss, from the pre-activations; also the residual x - x^ of the whole SAE.

    The decoder's gradient has its radial part removed. `tokens` is the batch size over all processes.
    """
    W_enc, W_dec, b_dec = weights["W_enc"], weights["W_dec"], weights["b_dec"]
    values, latents, rows, smallest = keep(pre, config)
    level, level_weights = _levels(values, latents, rows, config)
    level_weights = level_weights.to(x)
    pairs = _bagged(values, latents, rows, level, len(x), len(level_weights))
    grouped = sparse.by_latent(pairs, config.latents)

    error = _nested(sparse.decode_pairs(pairs, W_dec), len(level_weights)).cumsum_(0)  # [levels, batch, d_in]
    error += b_dec - x
    losses = error.square().sum((1, 2)) / (tokens * variance)
    scale = level_weights * 2 / (tokens * variance)
    residual = -error[_reported(config)]
    outer = (error * scale.view(-1, 1, 1)).flip(0).cumsum_(0).flip(0) if len(scale) > 1 else error.mul_(scale)
    outer = outer.reshape(-1, x.shape[1])  # [levels x batch, d_in]: gradient of what each bag adds

    slopes = sparse.pair_products(pairs, outer, W_dec)
    fires = sparse.firing(pairs.values)
    slopes_in = slopes * fires
    ordered = torch.stack((slopes_in, slopes * pairs.values, fires.to(slopes.dtype)), 1)[grouped.order]
    db_enc, radial, fired = sparse.totals_by_latent(ordered, grouped).T.contiguous()
    centred = x - b_dec
    dW_dec = sparse.sums_by_latent(pairs.values[grouped.order], outer, grouped)
    sparse.remove_radial(dW_dec, W_dec, radial)
    tokens_by_latent = sparse.ByLatent(grouped.order, grouped.bags % len(x), grouped.offsets)
    dW_enc = sparse.sums_by_latent(ordered[:, 0].contiguous(), centred, tokens_by_latent)
    db_dec = outer[: len(x)].sum(0) - db_enc @ W_enc
    grads = {"W_enc": dW_enc, "b_enc": db_enc, "W_dec": dW_dec, "b_dec": db_dec}
    metrics = {
        "loss": (losses * level_weights).sum(),
        "fvu": losses[_reported(config)],
        "l0": fires.sum() / tokens,
    }
    return Gradients(grads, fired > 0, metrics, smallest), residual


def keep(pre: Float[Tensor, "batch latents"], config: SAEConfig) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:
    """The pairs that the rule keeps: values (relu), latents, rows; and batchtopk's smallest value."""
    if config.rule == "topk":
        values, indices = sparse.top_k(pre, config.k * (4 if config.multi_topk else 1))
        pairs = sparse.pairs_of_rows(values.relu_(), indices)
        return pairs.values, pairs.latents, pairs.bags, None
    flat = sparse.top_of_batch(pre, config.k * len(pre))
    values = pre.view(-1)[flat].relu_()
    positive = torch.where(values > 0, values, torch.inf)
    return values, flat % pre.shape[1], torch.div(flat, pre.shape[1], rounding_mode="floor"), positive.min()


def auxk_gradients(
    weights: Weights,
    centred: Float[Tensor, "rows d_in"],
    pre: Float[Tensor, "rows silent"],
    residual: Float[Tensor, "rows d_in"],
    columns: Int[Tensor, "silent"],
    config: SAEConfig,
    power: Tensor,
) -> tuple[Weights, Tensor]:
    """AuxK (Gao et al. 2025, section 2.4): the silent latents learn to reconstruct what the others left.

    Loss: |sum of the best silent latents' value x row - residual|^2 / power, where the residual gets no gradient, b_dec
    is not added, and power is the residual's own square sum over all processes. Silent latents are few, on few rows:
    dense products. Returns weighted gradients by the weights' names, for the silent rows only, and the plain loss.
    """
    W_enc, W_dec = weights["W_enc"][columns], weights["W_dec"][columns]
    count = min(config.aux_latents, len(columns))
    if count < len(columns):
        values, inner = sparse.top_k(pre, count)
        codes = torch.zeros_like(pre).scatter_(1, inner, values.relu_())
    else:
        codes = pre.relu()
    error = torch.addmm(residual, codes, W_dec, beta=-1.0)
    loss = error.square().sum() / power
    outer = error.mul_(2 * config.auxk_weight / power)
    slopes = (outer @ W_dec.T).mul_(codes > 0)
    dW_dec = codes.T @ outer
    sparse.remove_radial(dW_dec, W_dec, (dW_dec * W_dec).sum(1))
    db_enc = slopes.sum(0)
    return {"W_enc": slopes.T @ centred, "b_enc": db_enc, "W_dec": dW_dec, "b_dec": -(db_enc @ W_enc)}, loss


def _levels(values: Tensor, latents: Tensor, rows: Tensor, config: SAEConfig) -> tuple[Tensor | None, Tensor]:
    """Each pair's level (None: one level) and the levels' weights in the loss."""
    if config.prefixes:
        edges = torch.tensor(config.prefix_sizes, device=latents.device)
        return torch.searchsorted(edges, latents, right=True), torch.full((len(edges),), 1 / len(edges))
    if config.multi_topk:
        by_row = values.view(-1, 4 * config.k)
        level = torch.ones_like(by_row, dtype=torch.long)
        level.scatter_(1, by_row.topk(config.k, dim=1, sorted=False).indices, 0)
        return level.view(-1), torch.tensor([1.0, 1 / 8])
    return None, torch.ones(1)


def _reported(config: SAEConfig) -> int:
    return 0 if config.multi_topk else -1


def _bagged(
    values: Tensor, latents: Tensor, rows: Tensor, level: Tensor | None, batch: int, levels: int
) -> sparse.Pairs:
    if level is None:
        return sparse.Pairs(values, latents, rows, sparse.starts(rows, batch))
    return sparse.pairs_in_bags(values, latents, level * batch + rows, levels * batch)


def _nested(flat: Float[Tensor, "bags d_in"], levels: int) -> Float[Tensor, "levels batch d_in"]:
    return flat.view(levels, -1, flat.shape[1])


def dense_loss(
    weights: Weights, x: Float[Tensor, "batch d_in"], config: SAEConfig, variance: Tensor, tokens: int
) -> tuple[Tensor, dict[str, Tensor], Bool[Tensor, "latents"]]:
    """Loss of the rules relu and jumprelu, to be differentiated by autograd; numbers for the log; who fired.

    relu (Bricken et al. 2023): + l1 x mean over tokens of sum(codes) / sqrt(variance).
    jumprelu (Rajamanoharan et al. 2024): + l0_weight x (L0 / k - 1)^2, threshold by straight-through rectangles.
    """
    spread = variance.sqrt()
    pre = torch.addmm(weights["b_enc"], x - weights["b_dec"], weights["W_enc"].T)
    if config.rule == "relu":
        codes = pre.relu()
        penalty = config.l1 * codes.sum() / (tokens * spread)
        l0 = (codes.detach() > 0).sum() / tokens
    else:
        width = config.bandwidth * spread
        codes = _Jump.apply(pre.relu(), weights["threshold"], width)
        l0 = _Step.apply(pre.relu(), weights["threshold"], width).sum() / tokens
        penalty = config.l0_weight * (l0 / config.k - 1).square()
    fvu = (codes @ weights["W_dec"] + weights["b_dec"] - x).square().sum() / (tokens * variance)
    loss = fvu + penalty
    metrics = {"loss": loss.detach(), "fvu": fvu.detach(), "l0": l0.detach()}
    return loss, metrics, (codes.detach() > 0).any(0)


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
