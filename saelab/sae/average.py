"""The running mean of a trainer's weights, which an SAE may be saved with instead of the last ones (`TrainConfig.ema`).

Gao et al. 2025 evaluate such means: the noise of single steps averages out of them.
"""

import torch
from torch import Tensor
from torch.nn.functional import normalize

from saelab.sae.rules.rule import Weights

BEGINS = 10  # early on, the mean looks back over about a tenth of the steps so far
PREFIX = "ema."  # of its tensors in a checkpoint
SHARED = PREFIX + "b_dec"  # the one of them that all shards hold alike


class Average:
    """mean <- memory mean + (1 - memory) weights, after each step; the memory grows from 0 to `memory`.

    Of the latents that a process holds, where several hold them.
    """

    def __init__(self, memory: float) -> None:
        self.memory, self.weights = memory, Weights()

    @torch.no_grad()
    def follow(self, weights: Weights, steps: int) -> None:
        """Take in the weights after so many steps: the first becomes the mean."""
        if not self.weights:
            self.weights = {name: tensor.clone() for name, tensor in weights.items()}
            return
        memory = min(self.memory, (steps - 1) / (steps - 1 + BEGINS))
        for name, mean in self.weights.items():
            mean.lerp_(weights[name], 1 - memory)

    @torch.no_grad()
    def put_into(self, weights: Weights) -> None:
        """Replace the weights by their mean, with decoder rows of length 1."""
        for name, mean in self.weights.items():
            weights[name].copy_(normalize(mean, dim=1) if name == "W_dec" else mean)

    def state(self) -> dict[str, Tensor]:
        """What a checkpoint keeps of it."""
        return {PREFIX + name: tensor for name, tensor in self.weights.items()}

    def restore(self, state: dict[str, Tensor], device: torch.device) -> None:
        """Become the mean that `state` was taken from."""
        own = {name: tensor for name, tensor in state.items() if name.startswith(PREFIX)}
        self.weights = {name.removeprefix(PREFIX): tensor.to(device).clone() for name, tensor in own.items()}
