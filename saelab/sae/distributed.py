"""The processes that train one SAE together, as a grid of data x latents; alone, every method does nothing.

Process i S + s holds the s-th of S equal shards of the latents and takes the i-th share of each batch. So processes of
one `data` group hold the same latents and see other tokens, those of one `latents` group see the same tokens.
"""

from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.distributed as dist
from jaxtyping import Float
from torch import Tensor

from saelab.errors import UserError

DRAWN = 16  # torch draws normal numbers sixteen at a time: pieces of a multiple are those of the whole


class Group:
    """Sums, unions and copies over some processes of torch.distributed, by their ranks; by default of one alone."""

    def __init__(self, ranks: Sequence[int] = (0,), handle: Any = None) -> None:
        self.size = len(ranks)
        self.rank = list(ranks).index(dist.get_rank()) if self.size > 1 else 0
        self._ranks, self._handle = ranks, handle

    def sum_(self, tensor: Tensor) -> Tensor:
        """The sum over all processes, in place."""
        if self.size > 1:
            dist.all_reduce(tensor, group=self._handle)
        return tensor

    def any(self, mask: Tensor) -> Tensor:
        """Elementwise `or` over all processes."""
        return mask if self.size == 1 else self.sum_(mask.to(torch.int32)) > 0

    def gather(self, tensor: Tensor) -> Tensor:
        """The processes' tensors (of one shape), one after the other."""
        if self.size == 1:
            return tensor
        parts = [torch.empty_like(tensor) for _ in range(self.size)]
        dist.all_gather(parts, tensor.contiguous(), group=self._handle)
        return torch.cat(parts)

    def wait(self, device: torch.device) -> None:
        """Until all processes are here. A sum alone doesn't hold the host on CUDA, which only queues it."""
        if self.size > 1:
            self.sum_(torch.zeros(1, device=device)).item()

    def copy_from(self, rank: int, tensor: Tensor) -> Tensor:
        """The tensor of the group's process of that rank, in place."""
        if self.size > 1:
            dist.broadcast(tensor, self._ranks[rank], group=self._handle)
        return tensor

    def from_first(self, tensor: Tensor) -> Tensor:
        """The first process' tensor, in place."""
        return self.copy_from(0, tensor)


class World:
    """All processes of torch.distributed, where it is initialised, and this one's groups `data` and `latents`.

    `shards`: of the latents, 1 for processes that hold all of them. All processes make it together. Raises UserError
    where the shards don't divide the processes.
    """

    def __init__(self, shards: int = 1) -> None:
        together = dist.is_available() and dist.is_initialized()
        size = dist.get_world_size() if together else 1
        count_groups(size, shards)
        self.all = Group(range(size))
        if shards in (1, size):
            self.data, self.latents = (self.all, Group()) if shards == 1 else (Group(), self.all)
            return
        rows = [range(first, first + shards) for first in range(0, size, shards)]
        columns = [range(first, size, shards) for first in range(shards)]
        self.latents, self.data = _own(rows), _own(columns)

    @property
    def first(self) -> bool:
        """Whether this process is the one that writes."""
        return self.all.rank == 0

    def rows(self, latents: int) -> slice:
        """Which of so many latents this process holds."""
        size, rank = self.latents.size, self.latents.rank
        return slice(rank * latents // size, (rank + 1) * latents // size)


def count_groups(size: int, shards: int) -> int:
    """How many groups of shards share a batch. Raises UserError where the shards don't divide the processes."""
    if size % shards:
        remedy = f"start a multiple of {shards} (torchrun --nproc-per-node {shards}), or set it to 1"
        raise UserError("latent_shards", shards, f"has to divide the number of processes, {size}", remedy)
    return size // shards


def draw_rows(
    draw: Callable[..., Tensor], latents: int, width: int, rows: slice, generator: torch.Generator
) -> Float[Tensor, "own width"]:
    """These rows of `draw(latents, width, generator=generator)`; of the others, no more than some are held at once.

    `draw`: torch.randn or torch.rand. The generator is left as if all had been drawn at once.
    """
    if rows == slice(0, latents):
        return draw(latents, width, generator=generator)
    own, step, first = torch.empty(rows.stop - rows.start, width), DRAWN * max(1, (1 << 12) // width), 0
    while first < latents:
        last = first + step if latents - first >= 2 * step else latents  # torch draws a short rest in another way
        some = draw(last - first, width, generator=generator)
        begin, end = max(first, rows.start), min(last, rows.stop)
        if begin < end:
            own[begin - rows.start : end - rows.start] = some[begin - first : end - first]
        first = last
    return own


def _own(groups: Sequence[Sequence[int]]) -> Group:
    """This process' group of those that all processes make."""
    found = [Group(ranks, handle) for ranks in groups for handle in [dist.new_group(list(ranks))] if _is_in(ranks)]
    return found[0]


def _is_in(ranks: Sequence[int]) -> bool:
    return dist.get_rank() in ranks
