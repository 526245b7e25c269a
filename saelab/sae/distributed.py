"""The processes that train one SAE together; alone, every method does nothing."""

import torch
import torch.distributed as dist
from torch import Tensor


class World:
    """Sums, maxima and copies over the processes of torch.distributed's default group, where it is initialised."""

    def __init__(self) -> None:
        together = dist.is_available() and dist.is_initialized()
        self.size = dist.get_world_size() if together else 1
        self.rank = dist.get_rank() if together else 0

    def sum_(self, tensor: Tensor) -> Tensor:
        """The sum over all processes, in place."""
        if self.size > 1:
            dist.all_reduce(tensor)
        return tensor

    def any(self, mask: Tensor) -> Tensor:
        """Elementwise `or` over all processes."""
        return mask if self.size == 1 else self.sum_(mask.to(torch.int32)) > 0

    def gather(self, tensor: Tensor) -> Tensor:
        """The processes' tensors (of one shape), one after the other."""
        if self.size == 1:
            return tensor
        parts = [torch.empty_like(tensor) for _ in range(self.size)]
        dist.all_gather(parts, tensor.contiguous())
        return torch.cat(parts)

    def from_first(self, tensor: Tensor) -> Tensor:
        """The first process' tensor, in place."""
        if self.size > 1:
            dist.broadcast(tensor, 0)
        return tensor
