"""TopK keeps k latents of each token, BatchTopK k times as many as there are tokens of the whole batch."""

from typing import TYPE_CHECKING, ClassVar

import torch
from jaxtyping import Float
from torch import Tensor

from saelab.sae import sparse
from saelab.sae.distributed import World
from saelab.sae.rules import literature
from saelab.sae.rules.rule import Selection, Weights
from saelab.sae.select import screened_top_k, top_k, top_of_batch

if TYPE_CHECKING:
    from saelab.sae.config import SAEConfig


class TopK(Selection):
    """The k largest of each token (Gao et al. 2025, section 2.3)."""

    name = "topk"
    title = "TopK"
    citation = literature.TOPK
    names: ClassVar = {
        "SAELens": "topk",
        "dictionary_learning": "AutoEncoderTopK",
        "sparsify": "topk",
        "overcomplete": "TopKSAE",
        "saev": "TopK",
        "ViT-Prisma": "topk",
    }
    supports = Selection.supports | {"multi_topk", "screen"}

    def fixed_l0(self, threshold: Float[Tensor, "latents"] | None) -> bool:
        return True

    def pairs(
        self,
        pre: Float[Tensor, "batch latents"] | None,
        config: "SAEConfig",
        world: World,
        weights: Weights,
        centred: Float[Tensor, "batch d_in"],
    ) -> tuple[sparse.Pairs, Tensor | None]:
        """The k largest of each token, or 4 k with Multi-TopK; where `pre` is None, a bfloat16 screen chooses them."""
        k = config.k * (4 if config.multi_topk else 1)
        if pre is None:
            values, indices = screened_top_k(centred, weights["W_enc"], weights["b_enc"], k)
        else:
            values, indices = top_k(pre, k)
        return sparse.pairs_of_rows(values.relu_(), indices), None


class BatchTopK(Selection):
    """The batch x k largest of a batch; applied, what exceeds a threshold (Bussmann et al. 2024, section 3).

    The threshold is a running mean of the batches' smallest kept value. Without one, an SAE keeps k of each token.
    """

    name = "batchtopk"
    title = "BatchTopK"
    citation = literature.BATCHTOPK
    names: ClassVar = {"SAELens": "jumprelu", "dictionary_learning": "BatchTopKSAE", "saev": "BatchTopK"}
    threshold = "followed"

    def fixed_l0(self, threshold: Float[Tensor, "latents"] | None) -> bool:
        return threshold is None

    def pairs(
        self,
        pre: Float[Tensor, "batch latents"] | None,
        config: "SAEConfig",
        world: World,
        weights: Weights,
        centred: Float[Tensor, "batch d_in"],
    ) -> tuple[sparse.Pairs, Tensor | None]:
        """The largest of the whole batch, over all processes, and the smallest of them that is above 0."""
        assert pre is not None
        values, flat = _share_of_batch(pre, config.k * len(centred), world)
        values = values.relu_()
        smallest = torch.where(values > 0, values, torch.inf).min()
        rows = torch.div(flat, config.latents, rounding_mode="floor")
        return sparse.Pairs(values, flat % config.latents, sparse.starts(rows, len(centred))), smallest


def _share_of_batch(pre: Tensor, count: int, world: World) -> tuple[Tensor, Tensor]:
    """This process' part of the `count` x processes largest pre-activations of the whole batch."""
    if world.size == 1:
        return top_of_batch(pre, count)
    values, flat = top_of_batch(pre, min(pre.numel(), count * world.size))
    least = world.gather(values).topk(count * world.size, sorted=False).values.min()
    kept = values >= least
    return values[kept], flat[kept]
