"""What a model's weights are: their digest, and cheap marks that move when somebody changes them."""

import hashlib
from typing import Any

import torch
from torch import Tensor, nn


def weights_digest(model: nn.Module) -> str:
    """SHA-256 of the state dict: names, dtypes, shapes and bytes. The same on every device."""
    total = hashlib.sha256()
    for name, tensor in sorted(model.state_dict().items()):
        if isinstance(tensor, Tensor):
            total.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
            total.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data)
    return total.hexdigest()


def marks(model: nn.Module) -> list[tuple[Any, ...]]:
    """Which tensors the state dict holds, where, and how often each was written to. No number of theirs is read.

    A write through `.data` in place, or into an inference tensor, goes unnoticed: torch does not count these.
    """
    state = model.state_dict(keep_vars=True)
    return [(name, *_mark(tensor)) for name, tensor in state.items() if isinstance(tensor, Tensor)]


def _mark(tensor: Tensor) -> tuple[int, int, int]:
    version = -1 if tensor.is_inference() else tensor._version
    try:
        return id(tensor), version, tensor.data_ptr()
    except RuntimeError:  # a tensor of another kind, without memory of its own
        return id(tensor), version, 0


def training_part(model: nn.Module) -> str | None:
    """The dotted path of the first module in training mode; "" is the model itself, None none."""
    return next((path for path, module in model.named_modules() if getattr(module, "training", False)), None)
