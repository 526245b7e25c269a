"""What a model's weights are: their digest, and cheap marks that move when somebody changes them."""

import hashlib
from collections.abc import Iterator

import torch
from torch import Tensor, nn

SAMPLED = 32  # numbers of a tensor, at the most, that say whether it has changed


class Weights:
    """The weights of a model, with what they were when somebody last looked."""

    def __init__(self, model: nn.Module) -> None:
        self.model = model
        self.digest = self._as_they_lie = weights_digest(model)
        self._seen = marks(model), sample(model)

    def look(self) -> bool:
        """Have they changed, as far as `marks` show it? Then `digest` is another."""
        return marks(self.model) != self._seen[0] and self._take()

    def look_closely(self) -> bool:
        """The same, as far as `marks` or `sample` show it."""
        return (marks(self.model), sample(self.model)) != self._seen and self._take()

    def moved(self) -> None:
        """They are on another device or in another dtype, and otherwise those that were read: `digest` stays."""
        self._as_they_lie, self._seen = weights_digest(self.model), (marks(self.model), sample(self.model))

    def _take(self) -> bool:
        before, digest = self._as_they_lie, self.digest
        self.moved()
        self.digest = digest if self._as_they_lie == before else self._as_they_lie
        return self.digest != digest


def weights_digest(model: nn.Module) -> str:
    """SHA-256 of the state dict: names, dtypes, shapes and bytes. The same on every device."""
    total = hashlib.sha256()
    for name, tensor in sorted(model.state_dict().items()):
        if isinstance(tensor, Tensor):
            total.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
            total.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data)
    return total.hexdigest()


def marks(model: nn.Module) -> list[tuple[int, int]]:
    """Where the tensors of the state dict lie, and how often each was written to. No number of theirs is read.

    What torch does not count goes unnoticed: a step of a fused optimiser, a write through `.data` or into an inference
    tensor. `sample` sees these.
    """
    return [_mark(tensor) for tensor in _tensors(model)]


def sample(model: nn.Module) -> str:
    """SHA-256 of some numbers of each tensor of the state dict: a step of training changes all of them."""
    total = hashlib.sha256()
    for tensor in _tensors(model):
        if tensor.layout == torch.strided and not tensor.is_quantized and tensor.numel():
            flat = tensor.detach().flatten()
            total.update(str(flat[:: -(-len(flat) // SAMPLED)].double().cpu().tolist()).encode())
    return total.hexdigest()


def _tensors(model: nn.Module) -> Iterator[Tensor]:
    for module in model.modules():
        fleeting = getattr(module, "_non_persistent_buffers_set", ())
        kept = [tensor for name, tensor in module._buffers.items() if name not in fleeting]
        yield from (tensor for tensor in (*module._parameters.values(), *kept) if tensor is not None)


def _mark(tensor: Tensor) -> tuple[int, int]:
    version = -1 if tensor.is_inference() else tensor._version
    try:
        return tensor.data_ptr(), version
    except RuntimeError:  # a tensor of another kind, without memory of its own
        return id(tensor), version


def training_part(model: nn.Module) -> str | None:
    """The dotted path of the first module in training mode; "" is the model itself, None none."""
    if not any(getattr(module, "training", False) for module in model.modules()):
        return None
    return next(path for path, module in model.named_modules() if getattr(module, "training", False))
