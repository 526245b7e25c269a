"""Silent latents: which they are, the loss that trains those of topk and batchtopk, and their encoders' way back."""

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn.functional import pad

from saelab.sae import sparse
from saelab.sae.choose import winners
from saelab.sae.config import SAEConfig
from saelab.sae.distributed import Group, World
from saelab.sae.select import rows_at_once, top_k

Weights = dict[str, Tensor]

POOL = 8  # on devices that are not waited for, AuxK works on up to an eighth of the latents at once
SHARE = 8  # AuxK holds an eighth of the batch's pre-activations at once, on as many tokens as that makes


def find_silent(
    silent_for: Int[Tensor, "latents"], config: SAEConfig, counts: bool
) -> tuple[Int[Tensor, "silent"], Bool[Tensor, "silent"] | None]:
    """Latents that are to be brought back; and which of them are silent (None: all).

    `silent_for`: tokens since each has fired. Where a count would make the host wait for the device (`counts` False),
    a fixed number: those that have been silent for longest.
    """
    if counts:
        return (silent_for >= config.dead_after).nonzero().squeeze(1), None
    pool = max(config.aux_latents, len(silent_for) // POOL)
    ranked = silent_for.float() if silent_for.device.type == "mps" else silent_for  # MPS ranks no int64
    columns = ranked.topk(min(pool, len(silent_for)), sorted=False).indices
    return columns, silent_for[columns] >= config.dead_after


def gradients(
    weights: Weights,
    centred: Float[Tensor, "batch d_in"],
    pre: Float[Tensor, "batch latents"] | None,
    error: Float[Tensor, "batch d_in"],
    columns: Int[Tensor, "silent"],
    silent: Bool[Tensor, "silent"] | None,
    config: SAEConfig,
    world: World,
    pieces: int = 1,
) -> tuple[Weights, Tensor]:
    """AuxK (Gao et al. 2025, section 2.4): the silent latents learn to reconstruct what the others left.

    Loss: |sum of the best silent latents' value x row - (x - x^)|^2 / |x - x^|^2, over every `auxk_stride`-th token of
    the whole batch, so that a share of it may have none; `error` = x^ - x gets no gradient, and b_dec is not added.
    `pre` None: the silent latents' are worked out here. Dense products, on so many tokens at once that memory
    doesn't grow with the silent: an eighth of the pre-activations of one of the batch's `pieces`. Returns weighted
    gradients by the weights' names, for `columns` only but for b_dec, and the plain loss.
    Nine parameters: a formula's tensors by name, which no other function takes together.
    """
    shards, stride = world.latents, config.auxk_stride
    tokens = range(-world.data.rank * len(centred) % stride, len(centred), stride)
    counts = silent_of_shards(columns, silent, shards)
    widest, total = max(counts), sum(counts)
    held = len(centred) // pieces * (config.latents // shards.size)
    at_once = min(max(1, held // (SHARE * widest)), rows_at_once(widest))
    power = world.data.sum_(error[tokens.start :: stride].square().sum()).clamp(min=1e-30)
    W_enc, b_enc, W_dec = (weights[name][columns] for name in ("W_enc", "b_enc", "W_dec"))
    count = min(config.aux_latents, total)
    new = torch.empty_like if tokens else torch.zeros_like
    dW_enc, db_enc, dW_dec = new(W_enc), torch.zeros_like(b_enc), new(W_dec)
    loss = torch.zeros_like(power)
    for first in range(0, len(tokens), at_once):
        part = tokens[first : first + at_once]
        rows, more = slice(part.start, part.stop, part.step), float(first > 0)
        x = centred[rows]
        codes = torch.addmm(b_enc, x, W_enc.T) if pre is None else pre[rows][:, columns]
        if silent is not None:
            codes.masked_fill_(~silent, -torch.inf)
        if count == total:
            codes.relu_()
        elif shards.size == 1:
            values, inner = top_k(codes, count)
            codes.zero_().scatter_(1, inner, values.relu_())
        else:
            _keep_winners(codes, count, min(count, widest), shards)
        outer = torch.addmm(error[rows], codes, W_dec, beta=float(shards.rank == 0))
        shards.sum_(outer)  # guess - (x - x^)
        flat = outer.view(-1)
        loss += torch.dot(flat, flat) / power
        outer.mul_(2 * config.auxk_weight / power)
        dW_dec.addmm_(codes.T, outer, beta=more)
        slopes = (outer @ W_dec.T).mul_(codes > 0)
        dW_enc.addmm_(slopes.T, x, beta=more)
        db_enc += slopes.sum(0)
    sparse.remove_radial(dW_dec, W_dec, (dW_dec * W_dec).sum(1))
    return {"W_enc": dW_enc, "b_enc": db_enc, "W_dec": dW_dec, "b_dec": -shards.sum_(db_enc @ W_enc)}, loss


def silent_of_shards(columns: Int[Tensor, "silent"], silent: Bool[Tensor, "silent"] | None, shards: Group) -> list[int]:
    """How many latents AuxK works on in each shard (`silent` given: as many in each)."""
    if shards.size == 1 or silent is not None:
        return [len(columns)] * shards.size
    return shards.gather(torch.tensor([len(columns)], device=columns.device)).tolist()


def _keep_winners(codes: Float[Tensor, "tokens silent"], count: int, each: int, shards: Group) -> None:
    """Leave the `count` largest of each token over all shards, at 0 at the least, of which each offers `each`."""
    own = min(each, codes.shape[1])
    inner = top_k(codes, own)[1].sort(dim=1).values
    values = codes.gather(1, inner)
    kept = winners(pad(values, (0, each - own), value=-torch.inf), count, shards)[:, :own]
    codes.zero_().scatter_(1, inner, values.relu_() * kept)


def revive(
    weights: Weights, columns: Int[Tensor, "silent"], silent: Bool[Tensor, "silent"] | None, share: float
) -> None:
    """Take the encoders of silent latents `share` of the way back to where they began: the decoder's row, no bias.

    From there they win tokens again. Where little but noise is left to explain, AuxK alone turns them away from
    all tokens, and a bias that only rises makes them fire everywhere.
    """
    W_enc, W_dec, b_enc = (weights[name] for name in ("W_enc", "W_dec", "b_enc"))
    shares = torch.ones_like(b_enc[columns]) if silent is None else silent.to(b_enc)
    shares.mul_(share)
    W_enc.index_add_(0, columns, shares.unsqueeze(1) * (W_dec[columns] - W_enc[columns]))
    b_enc.index_add_(0, columns, -shares * b_enc[columns])
