"""Batches on their way to a card: as narrow as they are stored, while the one before them is in use."""

import itertools
from collections.abc import Iterator

import torch
from jaxtyping import Float
from torch import Tensor


def to_device(
    batches: Iterator[Float[Tensor, "batch d_in"]], device: torch.device
) -> Iterator[Float[Tensor, "batch d_in"]]:
    """The batches in float32, on a CUDA device each copied there ahead of its use, and widened there.

    Copies run on a stream of their own from two kept buffers of page-locked memory, since from other memory a copy
    holds up the host. Elsewhere, and where batches lie on a device already, they stay as they come.
    """
    if device.type != "cuda":
        yield from batches
        return
    aside, slots = torch.cuda.Stream(device), itertools.cycle([_Slot(), _Slot()])
    coming: tuple[Tensor, torch.cuda.Event | None] | None = None
    for x in batches:
        following = (x, None) if x.is_cuda else next(slots).send(x, device, aside)
        if coming is not None:
            yield _arrived(*coming, device)
        coming = following
    if coming is not None:
        yield _arrived(*coming, device)


class _Slot:
    """A buffer of page-locked memory, free again once its last copy has been made."""

    def __init__(self) -> None:
        self.buffer: Tensor | None = None
        self.copied = torch.cuda.Event()

    def send(self, x: Tensor, device: torch.device, aside: torch.cuda.Stream) -> tuple[Tensor, torch.cuda.Event]:
        """Begin a copy: where it will be, and what happens when it is there. May wait for the copy before the last."""
        self.copied.synchronize()
        if self.buffer is None or (self.buffer.shape, self.buffer.dtype) != (x.shape, x.dtype):
            self.buffer = torch.empty(x.shape, dtype=x.dtype).pin_memory()
        self.buffer.copy_(x)
        with torch.cuda.stream(aside):
            there = self.buffer.to(device, non_blocking=True)
            self.copied.record(aside)
        return there, self.copied


def _arrived(x: Tensor, copied: torch.cuda.Event | None, device: torch.device) -> Tensor:
    """A batch in float32; the device, not the host, waits for its copy."""
    if copied is not None:
        current = torch.cuda.current_stream(device)
        current.wait_event(copied)
        x.record_stream(current)  # its memory is the other stream's: not to be given away while this one reads it
    return x.float()
