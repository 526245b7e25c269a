"""Which product chooses a step's latents: the screen that the config settles on, until it finds too little."""

import logging
from collections.abc import Sequence
from dataclasses import replace

import torch
from jaxtyping import Float
from torch import Tensor

from saelab.sae import rough, rules
from saelab.sae.config import SAEConfig, settle
from saelab.sae.distributed import World
from saelab.sae.rules.rule import Weights

log = logging.getLogger("saelab")
RECALL = 0.9999  # of the true top k: below it, the screen is given up
PRODUCTS = ("float32", *rough.NUMBERS)  # that choose; checkpoints hold the number of the one in use


class Watch:
    """Measures what share of the true top k the screen finds; where that is too small, the next product takes over.

    From int8 and float8 to bfloat16, where the device has instructions for it, and from there to float32.
    """

    def __init__(self, config: SAEConfig, device: torch.device, world: World) -> None:
        self.config, self.device, self.world = config, device, world
        settled = settle(config, device).screen
        self.screen = "float32" if settled == "auto" else settled  # the product that chooses: one of PRODUCTS

    @property
    def chosen(self) -> SAEConfig:
        """The config with the product that chooses."""
        return replace(self.config, screen=self.screen)

    def look(
        self, weights: Weights, parts: Sequence[Float[Tensor, "piece d_in"]], step: int
    ) -> Float[Tensor, ""] | None:
        """The recall, on these pieces of a batch, of the product that chooses from here on; of the last one given up,
        where float32 does, and None where it did before.
        """
        rule, recall = rules.find(self.config.rule), None
        while self.screen != "float32":
            assert isinstance(rule, rules.Selection)
            recall = torch.stack([rule.screen_recall(weights, part, self.chosen) for part in parts]).mean()
            recall = self.world.all.sum_(recall) / self.world.all.size
            if recall >= RECALL:
                break
            lacks = torch.tensor(not rough.has_fast_bfloat16(self.device), device=self.device)
            given_up, steps_down = self.screen, not self.world.all.any(lacks)  # all go over to the same
            self.screen = "bfloat16" if self.screen != "bfloat16" and steps_down else "float32"
            found = f"{float(recall):.5f} of the top k at step {step}, {RECALL} wanted"
            log.warning("the %s screen finds %s: %s chooses from here on", given_up, found, self.screen)
        return recall
