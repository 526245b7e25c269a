"""The loss of a selection and its gradients, without autograd, since the maths is sparse. For gates see dense.py.

Loss of a reconstruction: |x^ - x|^2 / variance, summed over units of the activations, mean over tokens: FVU itself.
With nested levels, level p reconstructs from the pairs of levels 0..p. Matryoshka's levels are prefixes of the
dictionary, Multi-TopK's are the first k and the first 4 k pre-activations. Where processes hold the latents between
them, codes stay where they are: only reconstructions [batch, d_in] are summed, and the gradient of b_dec.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from saelab.sae import choose, rules, sparse
from saelab.sae.config import SAEConfig
from saelab.sae.distributed import Group, World
from saelab.sae.rules.rule import Weights


@dataclass
class Gradients:
    """What a step needs: gradients by name, who fired, and numbers for the log (0-d tensors)."""

    grads: Weights
    fired: Bool[Tensor, "latents"]
    metrics: dict[str, Tensor]
    threshold: Tensor | None = None  # [pieces]: the smallest value that each keeps, where a threshold follows them

    def add(self, other: "Gradients") -> "Gradients":
        """Itself, with those of another piece of the batch taken in."""
        for name, gradient in self.grads.items():
            gradient += other.grads[name]
        self.fired |= other.fired
        self.metrics = {name: number + other.metrics[name] for name, number in self.metrics.items()}
        if self.threshold is not None and other.threshold is not None:
            self.threshold = torch.cat([self.threshold, other.threshold])
        return self


def cut(x: Float[Tensor, "batch d_in"], pieces: int, config: SAEConfig) -> Iterator[Float[Tensor, "piece d_in"]]:
    """A batch in so many equal pieces. Where each is chosen by itself, piece i is every so-many-th token from i on.

    A batch lies in the order of its rows, so that neighbours show the same picture. And cut so, the shares of several
    processes hold the shares of the pieces of the whole batch, however many they are.
    """
    if config.choose_by_piece:
        yield from (x[first::pieces].contiguous() for first in range(pieces))
    else:
        yield from x.split(len(x) // pieces)


def join(parts: Sequence[Float[Tensor, "piece d_in"]], config: SAEConfig) -> Float[Tensor, "batch d_in"]:
    """The batch that `cut` made such pieces of."""
    if len(parts) == 1:
        return parts[0]
    return torch.stack(list(parts), 1).flatten(0, 1) if config.choose_by_piece else torch.cat(list(parts))


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

    `pre` None: latents are chosen without all of them (`Selection.pairs`). The decoder's gradient has its radial part
    removed. `tokens` is the batch size over all processes. `out` may hold W_enc and W_dec, for those gradients.
    Eight parameters: a formula's tensors by name, which no other function takes together.
    """
    W_enc, W_dec = weights["W_enc"], weights["W_dec"]
    out = out or {name: torch.empty_like(W_dec) for name in ("W_enc", "W_dec")}
    batch = len(centred)
    world = world or World()
    pairs, level_weights, smallest = keep(pre, config, world, weights, centred)
    levels, by = len(level_weights), sparse.products(config.kernels, centred.device)
    grouped = sparse.sort_by_latent(pairs, len(W_dec))

    added = sparse.decode_pairs(pairs, W_dec, centred.new_empty(levels * batch, centred.shape[1]), by)
    errors = world.latents.sum_(added).view(levels, batch, -1)  # level p: what the levels up to p add, less the target
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
    db_dec = scale * (added.new_ones(1, batch) @ added[:batch]).squeeze(0) - world.latents.sum_(db_enc @ W_enc)
    grads = {"W_enc": dW_enc, "b_enc": db_enc, "W_dec": dW_dec, "b_dec": db_dec}
    loss = (losses * level_weights).sum()
    metrics = {"loss": loss, "fvu": losses[_reported(config)], "l0": world.latents.sum_(kept.sum() / tokens)}
    return Gradients(grads, fired > 0, metrics, None if smallest is None else smallest.view(1)), error


def keep(
    pre: Float[Tensor, "batch latents"] | None,
    config: SAEConfig,
    world: World,
    weights: Weights,
    centred: Float[Tensor, "batch d_in"],
) -> tuple[sparse.Pairs, Tensor, Tensor | None]:
    """The pairs that the rule keeps, the levels' weights in the loss, and the smallest value, for a threshold."""
    batch, rule = len(centred), rules.find(config.rule)
    assert isinstance(rule, rules.Selection)
    pairs, smallest = rule.pairs(pre, config, world, weights, centred)
    level, level_weights = _levels(pairs, config, world)
    if level is not None:
        rows = torch.arange(batch, device=centred.device).repeat_interleave(
            pairs.offsets.diff(), output_size=len(level)
        )
        bags = level * batch + rows
        pairs = sparse.pairs_in_bags(pairs.values, pairs.latents, bags, len(level_weights) * batch)
    return pairs, level_weights.to(centred), smallest


def _levels(pairs: sparse.Pairs, config: SAEConfig, world: World) -> tuple[Tensor | None, Tensor]:
    """Each pair's level (None: there is one level) and the levels' weights in the loss."""
    device = pairs.latents.device  # all made there: a copy from the host would wait for the device
    if config.prefixes:
        sizes, first = config.prefix_sizes, world.rows(config.latents).start
        level = torch.zeros_like(pairs.latents)
        for size in sizes:
            level += pairs.latents + first >= size
        return level, torch.full((len(sizes),), 1 / len(sizes), device=device)
    level_weights = torch.ones(1 + config.multi_topk, device=device)
    if not config.multi_topk:
        return None, level_weights
    level_weights[1] = 1 / 8
    if world.latents.size > 1:
        return (~_first_of_rows(pairs, config.k, world.latents)).long(), level_weights
    by_row = pairs.values.view(-1, 4 * config.k)
    level = torch.ones_like(by_row, dtype=torch.long)
    level.scatter_(1, by_row.topk(config.k, dim=1, sorted=False).indices, 0)
    return level.view(-1), level_weights


def _first_of_rows(pairs: sparse.Pairs, k: int, shards: Group) -> Bool[Tensor, "pairs"]:
    """Which of this shard's pairs, of 4 k a row over all shards, are among the k largest of their row."""
    rows = torch.arange(len(pairs.offsets) - 1, device=pairs.latents.device)
    rows = rows.repeat_interleave(pairs.offsets.diff(), output_size=len(pairs.latents))
    places = torch.arange(len(rows), device=rows.device) - pairs.offsets[rows]
    values = pairs.values.new_full((len(pairs.offsets) - 1, 4 * k), -torch.inf)
    values[rows, places] = pairs.values
    return choose.winners(values, k, shards)[rows, places]


def _reported(config: SAEConfig) -> int:
    """The level that is the SAE itself: the first k of Multi-TopK, the whole dictionary of Matryoshka."""
    return 0 if config.multi_topk else -1


def _square_sum(x: Tensor) -> Tensor:
    flat = x.reshape(-1)
    return torch.dot(flat, flat)
