"""What a rule is, and its two families: selections rank the pre-activations, gates judge each latent by itself.

A rule is one object without state: its fields say what it is called, what it stores and which settings it honours;
its methods say what it does to pre-activations when an SAE is applied and while it learns.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

import torch
from jaxtyping import Float, Int
from torch import Tensor

from saelab.sae import choose, sparse
from saelab.sae.distributed import Group, World
from saelab.sae.select import rows_at_once, top_k

if TYPE_CHECKING:
    from saelab.sae.config import SAEConfig

Weights = dict[str, Tensor]  # W_enc, b_enc, W_dec, b_dec, and threshold where the rule learns one


class Rule:
    """One SAE rule. Subclass `Selection` or `Gate`, not this."""

    name: ClassVar[str]  # as SAEConfig.rule and files name it
    title: ClassVar[str]  # as the literature spells it
    citation: ClassVar[str] = ""  # BibTeX entry
    names: ClassVar[Mapping[str, str]] = {}  # what other packages call it, by package
    has_k: ClassVar[bool] = True  # whether `k` means anything to it
    threshold: ClassVar[str] = "none"  # none; learned: one a latent, a weight; followed: a running mean over batches
    supports: ClassVar[frozenset[str]] = frozenset()  # settings that not every rule honours, but this one

    def fixed_l0(self, threshold: Float[Tensor, "latents"] | None) -> bool:
        """Whether encoding keeps k latents of each token; else it keeps those above 0 or the threshold."""
        return False

    def screen_pays(self, latents: int, k: int, by: str) -> bool:
        """Whether training is faster with the screen `by` (bfloat16 | int8) where the device has instructions for it.

        Asked of rules that support `screen`.
        """
        return True

    @property
    def picks_plainly(self) -> bool:
        """Whether `pick` is the one below: then a screen may choose what it looks at."""
        return type(self).pick is Rule.pick

    @property
    def gates_plainly(self) -> bool:
        """Whether `gate` is the one below: then a screen may choose what it looks at."""
        return type(self).gate is Rule.gate

    def pick(
        self, pre: Float[Tensor, "batch latents"], k: int
    ) -> tuple[Float[Tensor, "batch k"], Int[Tensor, "batch k"]]:
        """Where L0 is fixed: the values (>= 0) that stay of each token, and their latents."""
        values, indices = top_k(pre, k)
        return values.relu_(), indices

    def gate(
        self, pre: Float[Tensor, "batch latents"], threshold: Float[Tensor, "latents"] | None
    ) -> Float[Tensor, "batch latents"]:
        """Where L0 varies: the codes. May overwrite `pre`."""
        if threshold is None:
            return pre.relu_()
        return pre.masked_fill_(pre <= threshold.clamp(min=0), 0)

    def rebuild_first(
        self, centred: Float[Tensor, "batch d_in"], W_dec: Float[Tensor, "latents d_in"], k: int, shards: Group
    ) -> Float[Tensor, "batch d_in"] | None:
        """The first batch's reconstruction, less the mean, by encoder rows equal to the decoder's.

        Where it is longer than the input, training starts from shorter encoder rows. None: they start at length 1.
        `shards`: the processes that hold the latents between them.
        """
        raise NotImplementedError

    def first_threshold(
        self,
        centred: Float[Tensor, "batch d_in"],
        W_enc: Float[Tensor, "latents d_in"],
        k: int,
        spread: Tensor,
        shards: Group,
    ) -> float:
        """Where `threshold` is learned: its first value, of all latents. `spread`: of the activations."""
        raise NotImplementedError


class Selection(Rule):
    """A rule that keeps the largest pre-activations: trained by sparse products over the (token, latent) pairs."""

    supports: ClassVar[frozenset[str]] = frozenset({"prefixes", "kernels", "revive", "auxk_weight", "encoder_length"})

    def rebuild_first(
        self, centred: Float[Tensor, "batch d_in"], W_dec: Float[Tensor, "latents d_in"], k: int, shards: Group
    ) -> Float[Tensor, "batch d_in"] | None:
        if shards.size > 1:
            return choose.rebuild(centred, W_dec, k, shards)
        parts = centred.split(rows_at_once(len(W_dec)))
        picked = (self.pick((part @ W_dec.T).relu_(), k) for part in parts)
        return torch.cat([sparse.decode_rows(values, indices, W_dec) for values, indices in picked])

    def pairs(
        self,
        pre: Float[Tensor, "batch latents"] | None,
        config: "SAEConfig",
        world: World,
        weights: Weights,
        centred: Float[Tensor, "batch d_in"],
    ) -> tuple[sparse.Pairs, Tensor | None]:
        """The pairs kept of a training batch, one bag a token; and the smallest value, where a threshold follows it.

        `pre` None: only where the rule supports `screen`; the pre-activations follow from `weights` and `centred`, by
        the float32 product in chunks of rows where `config.screen` says float32, else by the screen that it names
        (auto: bfloat16).
        """
        raise NotImplementedError

    def screen_recall(
        self, weights: Weights, centred: Float[Tensor, "batch d_in"], config: "SAEConfig"
    ) -> Float[Tensor, ""]:
        """Where it supports `screen`: share of what it would keep of the float32 product that `config.screen` finds."""
        raise NotImplementedError


@dataclass(frozen=True)
class Gated:
    """What a gate makes of a training batch."""

    codes: Float[Tensor, "batch latents"]
    l0: Tensor  # mean latents above 0 a token: this process' share of it
    penalty: Tensor  # the part of the loss that has a gradient
    value: Tensor  # the penalty as it is logged: that of the whole batch


class Gate(Rule):
    """A rule by which each latent stays or not by itself: trained densely, by autograd, with a penalty on the codes."""

    supports: ClassVar[frozenset[str]] = frozenset({"precision"})
    needs_batch: ClassVar[bool] = False  # whether the penalty's gradient depends on what `total` gives, asked once

    def open(
        self,
        pre: Float[Tensor, "batch latents"],
        weights: Weights,
        config: "SAEConfig",
        spread: Tensor,
        tokens: int,
        total: Callable[[Tensor], Tensor],
    ) -> Gated:
        """Codes and penalty from relu(pre), for autograd.

        `spread`: of the activations. `tokens`: the batch size over all processes; `total` sums over these, in place.
        Where they hold the latents between them, `pre` and `weights` are of the latents held here.
        """
        raise NotImplementedError

    def rebuild_first(
        self, centred: Float[Tensor, "batch d_in"], W_dec: Float[Tensor, "latents d_in"], k: int, shards: Group
    ) -> Float[Tensor, "batch d_in"] | None:
        parts = centred.split(rows_at_once(len(W_dec)))
        return shards.sum_(torch.cat([torch.relu_(part @ W_dec.T) @ W_dec for part in parts]))
