"""How pictures lie in memory on their way into a model: channels last, where a CPU convolved faster (docs/hosts.md)."""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from saelab.hosts.splice import SAME

CONVOLUTIONS = 2  # from which on a model gains; a transformer has one, for its patches


def find_format(model: nn.Module, size: Sequence[int], see: Callable[[Tensor], Tensor]) -> torch.memory_format:
    """Channels last where a float32 model on the CPU convolves and answers the same (`see`, to a batch); else as given.

    Tried once on two pictures of `size` [height, width]: a model of somebody's own may flatten what it takes for
    contiguous, and fail, or read the picture in another order.
    """
    if sum(isinstance(module, nn.Conv2d) for module in model.modules()) < CONVOLUTIONS:
        return torch.preserve_format
    pictures = torch.randn(2, 3, *size, generator=torch.Generator().manual_seed(3))
    try:
        usual, last = see(pictures), see(pictures.contiguous(memory_format=torch.channels_last))
        apart = (usual[:1] - usual[1:]).norm()  # by how much the answers to two pictures differ
        same = usual.shape == last.shape and bool((usual - last).norm() <= SAME * apart) and bool(apart > 0)
    except Exception:  # whatever a model raises; if the pictures are at fault, the probing pass says so
        return torch.preserve_format
    return torch.channels_last if same else torch.preserve_format
