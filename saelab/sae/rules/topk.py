"""TopK keeps k latents of each token, BatchTopK k times as many as there are tokens of the whole batch."""

from typing import TYPE_CHECKING, ClassVar

import torch
from jaxtyping import Float
from torch import Tensor

from saelab.sae import choose, rough, screen, sparse
from saelab.sae.distributed import World
from saelab.sae.rules import literature
from saelab.sae.rules.rule import Selection, Weights
from saelab.sae.select import chunked_top_k, chunked_top_of_batch, grouped, top_k, top_of_batch

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
    supports = Selection.supports | {"multi_topk", "screen", "latent_shards", "accumulate"}

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
        """The k largest of each token, or 4 k with Multi-TopK.

        Where `pre` is None, a screen chooses them, or with screen=float32 the product in chunks of rows.
        """
        k = config.k * (4 if config.multi_topk else 1)
        own = min(k, len(weights["W_enc"]))
        if pre is None:
            given = (centred, weights["W_enc"], weights["b_enc"], own)
            if config.screen == "float32":
                values, indices = chunked_top_k(*given)
            else:
                values, indices = screen.screened_top_k(*given, _by(config), config.kernels)
        else:
            values, indices = top_k(pre, own)
        if world.latents.size > 1:
            return choose.share_of_rows(values, indices, k, world.latents), None
        return sparse.pairs_of_rows(values.relu_(), indices), None

    def screen_recall(
        self, weights: Weights, centred: Float[Tensor, "batch d_in"], config: "SAEConfig"
    ) -> Float[Tensor, ""]:
        """Share of the k largest of each token, or 4 k with Multi-TopK, that the screen finds."""
        k = min(config.k * (4 if config.multi_topk else 1), len(weights["W_enc"]))
        given = (centred, weights["W_enc"], weights["b_enc"], k)
        return screen.screen_recall(*given, _by(config), config.kernels)


class BatchTopK(Selection):
    """The batch x k largest of a batch; applied, what exceeds a threshold (Bussmann et al. 2024, section 3).

    The threshold is a running mean of the batches' smallest kept value. Without one, an SAE keeps k of each token.
    With `choose_by_piece`, each piece of a batch is a batch by itself, and the step's smallest value the pieces' mean.
    """

    name = "batchtopk"
    title = "BatchTopK"
    citation = literature.BATCHTOPK
    names: ClassVar = {"SAELens": "jumprelu", "dictionary_learning": "BatchTopKSAE", "saev": "BatchTopK"}
    threshold = "followed"
    supports = Selection.supports | {"screen", "latent_shards", "choose_by_piece"}

    def fixed_l0(self, threshold: Float[Tensor, "latents"] | None) -> bool:
        return threshold is None

    def screen_pays(self, latents: int, k: int, by: str) -> bool:
        """Where the batch's largest are found by groups: elsewhere ranking more candidates costs what is saved."""
        return grouped(1, latents, screen.count_candidates(k, by))

    def pairs(
        self,
        pre: Float[Tensor, "batch latents"] | None,
        config: "SAEConfig",
        world: World,
        weights: Weights,
        centred: Float[Tensor, "batch d_in"],
    ) -> tuple[sparse.Pairs, Tensor | None]:
        """The largest of the whole batch, over all processes, and the smallest of them that is above 0.

        Where `pre` is None, a screen chooses them, or with screen=float32 the product in chunks of rows.
        """

        def find(count: int) -> tuple[Tensor, Tensor]:
            if pre is not None:
                return top_of_batch(pre, count)
            given = (centred, weights["W_enc"], weights["b_enc"], count)
            if config.screen == "float32":
                return chunked_top_of_batch(*given)
            return screen.screened_top_of_batch(*given, _by(config))

        batch, own = len(centred), len(weights["W_enc"])
        values, flat = choose.share_of_batch(find, config.k * batch, (batch, own), config.latents, world)
        values = values.relu_()
        smallest = torch.where(values > 0, values, torch.inf)
        smallest = smallest.min() if len(smallest) else smallest.new_tensor(torch.inf)
        rows = torch.div(flat, own, rounding_mode="floor")
        return sparse.Pairs(values, flat % own, sparse.starts(rows, batch)), smallest

    def screen_recall(
        self, weights: Weights, centred: Float[Tensor, "batch d_in"], config: "SAEConfig"
    ) -> Float[Tensor, ""]:
        """Share of the largest of this process' batch that the screen finds."""
        count = min(config.k, len(weights["W_enc"])) * len(centred)
        return screen.screen_recall_of_batch(centred, weights["W_enc"], weights["b_enc"], count, _by(config))


def _by(config: "SAEConfig") -> str:
    """The screen's rough product."""
    return config.screen if config.screen in rough.NUMBERS else "bfloat16"
