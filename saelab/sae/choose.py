"""The choice among the candidates of several processes: each offers its own largest, all see which of them stay.

Nothing is lost, however the winners are spread, because each offers as many as there are places. Of equals the first
latent stays, as in one process: candidates are compared in the order of the tokens and of the whole SAE's latents.
"""

from collections.abc import Callable

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from saelab.sae import select, sparse
from saelab.sae.distributed import Group, World


def winners(values: Float[Tensor, "rows candidates"], k: int, group: Group) -> Bool[Tensor, "rows candidates"]:
    """Which of this shard's candidates are among the k largest of all shards' in each row.

    Candidates lie in the order of their latents, so that of equals the first stays. As many in every shard.
    """
    rows, own = values.shape
    every = group.gather(values).view(group.size, rows, own).transpose(0, 1).reshape(rows, group.size * own)
    places = select.top_k(every, k)[1]
    kept = torch.zeros_like(every, dtype=torch.bool).scatter_(1, places, True)
    return kept[:, group.rank * own : (group.rank + 1) * own]


def share_of_rows(
    values: Float[Tensor, "rows candidates"], indices: Int[Tensor, "rows candidates"], k: int, group: Group
) -> sparse.Pairs:
    """This shard's pairs of the k largest of each row, from its own candidates in any order."""
    indices, order = indices.sort(dim=1)
    values = values.gather(1, order)
    kept = winners(values, k, group)
    offsets = torch.zeros(len(kept) + 1, dtype=torch.int64, device=kept.device)
    torch.cumsum(kept.sum(1), 0, out=offsets[1:])
    return sparse.Pairs(values[kept].relu_(), indices[kept], offsets)


def share_of_batch(
    find: Callable[[int], tuple[Tensor, Tensor]], count: int, shape: tuple[int, int], latents: int, world: World
) -> tuple[Float[Tensor, "own"], Int[Tensor, "own"]]:
    """This process' part of the `count` x data processes largest pre-activations of the whole batch.

    `find` gives so many of this process' own [rows, own latents], of which `shape` is the shape, with flat positions in
    rising order; so does this. `latents`: of the whole SAE.
    """
    if world.all.size == 1:
        return find(count)
    rows, own = shape
    total = count * world.data.size
    values, flat = find(min(rows * own, total))
    every = world.data.gather(world.latents.gather(values))
    least = every[select.find_largest(every, total)].min()
    kept, tied = ~(every <= least), (every == least).nonzero().squeeze(1)  # what is no number stays, for all to see
    places = total - int(kept.sum())
    if len(tied) > places:  # every process sees the same, so that all ask for the positions, or none does
        row = torch.div(flat, own, rounding_mode="floor")
        whole = (row + rows * world.data.rank) * latents + flat % own + world.rows(latents).start
        order = world.data.gather(world.latents.gather(whole))[tied].argsort()
        tied = tied[order[:places]]
    kept[tied] = True
    mine = kept.view(world.data.size, world.latents.size, len(values))[world.data.rank, world.latents.rank]
    return values[mine], flat[mine]


def least_of_batch(
    x: Float[Tensor, "batch d_in"], W: Float[Tensor, "own d_in"], count: int, group: Group
) -> Float[Tensor, ""]:
    """The smallest of the `count` largest numbers of x W' over all shards; some rows of it are held at once."""
    rows, own = select.rows_at_once(len(W)), len(W)
    parts = ((first, x[first : first + rows] @ W.T) for first in range(0, len(x), rows))
    values, _ = select.join_top_of_batch(parts, x, own, min(count, len(x) * own))
    every = group.gather(values)
    return every[select.find_largest(every, count)].min()


def rebuild(
    centred: Float[Tensor, "batch d_in"], W_dec: Float[Tensor, "own d_in"], k: int, group: Group
) -> Float[Tensor, "batch d_in"]:
    """`Selection.rebuild_first` of all shards together."""
    nothing = W_dec.new_zeros(len(W_dec))
    values, indices = select.chunked_top_k(centred, W_dec, nothing, min(k, len(W_dec)))
    pairs = share_of_rows(values, indices, k, group)
    return group.sum_(sparse.decode_pairs(pairs, W_dec, torch.empty_like(centred), sparse.TORCH))
