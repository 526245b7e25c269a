"""A training step as one CUDA graph: the device repeats its kernels without the host, which no longer starts each.

A graph repeats what was captured, numbers of the host included. So what changes from step to step (the batch, the rate,
how fast a threshold follows) lies in tensors that are filled before each replay, and steps that measure the screen or
resample are taken one by one.
"""

import logging
from collections.abc import Callable

import torch
from jaxtyping import Float
from torch import Tensor

log = logging.getLogger("saelab")
WARM_UP = 3  # steps one by one before a capture: kernels compile, buffers that are kept are made


Update = Callable[[Float[Tensor, "batch d_in"]], dict[str, Tensor]]


class Graph:
    """One update, called again and again with batches of one shape, as a graph from the fourth call on.

    Where it can't be captured, a warning says so once and each step is taken by itself. What an update returns are
    numbers on the device, under names; they stay as they are when the next step is taken.
    """

    def __init__(self) -> None:
        self.refusal: str | None = None  # why a step can't be a graph
        self.forget()

    def forget(self) -> None:
        """Capture anew: what an update does, or where, has changed."""
        self._calls = 0
        self._held: tuple[torch.cuda.CUDAGraph, Tensor, dict[str, Tensor]] | None = None  # its batch and numbers

    def step(self, update: Update, x: Float[Tensor, "batch d_in"]) -> dict[str, Tensor]:
        """One update: by itself at first and where a graph is of another shape, else as the graph."""
        if self._held is None and self.refusal is None and self._calls >= WARM_UP:
            self._capture(update, x)
        if self._held is None or self._held[1].shape != x.shape:
            self._calls += 1
            return update(x)
        graph, own, found = self._held
        with torch.cuda.device_of(x):
            own.copy_(x)
            graph.replay()
        return {name: number.clone() for name, number in found.items()}

    def _capture(self, update: Update, x: Tensor) -> None:
        """Record an update; nothing of it is carried out yet."""
        graph, own = torch.cuda.CUDAGraph(), x.clone()
        try:
            # on this device's own stream, and without a say in what a stream's host does in its thread meanwhile
            with (
                torch.cuda.device_of(x),
                torch.cuda.graph(graph, stream=torch.cuda.Stream(x.device), capture_error_mode="thread_local"),
            ):
                found = update(own)
        except RuntimeError as error:  # torch's, for a call that waits or that a graph can't hold
            self.refusal = str(error).splitlines()[0]
            log.warning("graph: this step can't be one (%s): steps are taken one by one", self.refusal)
        else:
            self._held = graph, own, found
