"""What an SAE is and how it learns (`SAEConfig`), and how long and in what pieces it is trained (`TrainConfig`)."""

import math
from dataclasses import dataclass, replace
from typing import Any

import torch

from saelab import settings
from saelab.artifacts import added
from saelab.errors import UserError
from saelab.sae import rough, rules

DECODERS = ("free", "archetypal")
FROZEN = ("none", "decoder", "soft_decoder", "all")
SOFT_COSINE = 0.8  # soft_decoder: cosine with its start that a decoder row keeps at the least
SCREENS = ("auto", "float32", *rough.NUMBERS)
KERNELS = ("torch", "triton")
PRECISIONS = ("float32", "bfloat16")


@dataclass(frozen=True)
class SAEConfig:
    """One SAE: its architecture, as a composition of rule, prefixes and decoder, and its optimiser.

    `frozen` makes controls that learned nothing, or not all (Korznikov et al. 2026): `decoder` never updates W_dec,
    `soft_decoder` keeps each row of it at a cosine of 0.8 or more with its start, `all` updates no weight.
    Raises UserError for values that can't be trained.
    """

    d_in: int  # width of the activations
    latents: int  # size of the dictionary
    rule: str = "topk"  # which latents stay: topk | batchtopk | jumprelu | relu
    k: int = 32  # latents kept a token (topk: exactly; batchtopk: on average; jumprelu: the L0 that is aimed at)
    prefixes: tuple[float, ...] | None = None  # Matryoshka: shares of the latents, each prefix reconstructs by itself
    decoder: str = "free"  # free | archetypal (rows are convex combinations of data points, within delta)
    lr: float | None = None  # Adam's learning rate; None: 2e-4 / sqrt(latents / 2**14), Gao et al. 2025
    seed: int = 0  # of the initial weights, and of whatever is drawn later
    weight_decay: float = 0.0  # AdamW's, on the encoder and the decoder
    clip: float = 0.0  # largest norm of the whole gradient; 0: no limit
    auxk_weight: float = 1 / 32  # weight of the AuxK loss that brings silent latents back; 0: none
    auxk_k: int | None = None  # silent latents that AuxK uses a token; None: d_in / 2
    auxk_stride: int = 8  # AuxK looks at every so-many-th token
    dead_after: int = 131_072  # tokens without firing after which a latent counts as silent
    revive: float = 0.02  # all but relu: share of the way back to its decoder row that a silent encoder goes a step
    multi_topk: bool = False  # topk: add an eighth of the loss with 4 k latents (Gao et al. 2025, section 4.3)
    l1: float = 0.03  # relu: weight of the L1 penalty, in units of the activations' spread
    resample_every: int = 0  # relu: steps between resamplings of silent latents; 0: never
    l0_weight: float = 1.0  # jumprelu: weight of the penalty (L0 / k - 1)^2
    bandwidth: float = 1e-3  # jumprelu: width of the straight-through window, in units of the activations' spread
    candidates: int = 1024  # archetypal: data points whose hull holds the decoder
    delta: float = 0.1  # archetypal: distance that a row may leave the hull by, in units of the activations' spread
    screen: str = "auto"  # topk, batchtopk: product that chooses: auto | float32, or rescored: bfloat16 | int8 | float8
    kernels: str = "torch"  # topk, batchtopk: sparse products, and topk's bfloat16 screen, by: torch | triton (on CUDA)
    encoder_length: float = added(1.0)  # topk, batchtopk: of the first encoder rows; less where those rebuild too much
    dead_share: float = added(1.0)  # of the tokens: `fit` calls a latent silent after so many, if less; .1: rare ones
    frozen: str = added("none")  # what keeps its random start, as a control: none | decoder | soft_decoder | all
    choose_by_piece: bool = added(False)  # batchtopk: of `accumulate` pieces each keeps k times its own tokens
    precision: str = added("float32")  # relu, jumprelu: of what their dense products multiply: float32 | bfloat16

    def __post_init__(self) -> None:
        if self.prefixes is not None:
            object.__setattr__(self, "prefixes", _numbers("prefixes", self.prefixes, "a list of numbers"))
        settings.check(self, "", {})
        supports = rules.find(self.rule).supports
        _one_of("decoder", self.decoder, DECODERS)
        _one_of("frozen", self.frozen, FROZEN)
        _one_of("screen", self.screen, SCREENS)
        _one_of("kernels", self.kernels, KERNELS)
        _one_of("precision", self.precision, PRECISIONS)
        _at_least_1(self, "d_in", "latents", "k", "auxk_stride", "dead_after", "candidates")
        if self.auxk_k is not None:
            _at_least_1(self, "auxk_k")
        _within(self, math.inf, "weight_decay", "clip", "auxk_weight", "l1", "resample_every", "l0_weight", "delta")
        _within(self, 1, "revive")
        if not 0 < self.dead_share <= 1:
            raise UserError("dead_share", self.dead_share, "above 0, at most 1", "1 leaves it to dead_after")
        if not 0 < self.encoder_length <= 1:
            raise UserError("encoder_length", self.encoder_length, "above 0, at most 1")
        if self.encoder_length != 1 and "encoder_length" not in supports:
            needs = f"needs {rules.name_supporting('encoder_length')}"
            raise UserError("encoder_length", self.encoder_length, needs, "leave it at 1")
        if not 0 < self.bandwidth < math.inf:
            raise UserError("bandwidth", self.bandwidth, "must be positive and finite")
        if rules.find(self.rule).has_k and self.k > self.latents:
            raise UserError("k", self.k, f"at most the number of latents, {self.latents}", "lower k or widen the SAE")
        if self.lr is not None and not (self.lr > 0 and math.isfinite(self.lr)):
            raise UserError("lr", self.lr, "must be positive and finite")
        free = self.decoder == "free"
        if self.multi_topk and ("multi_topk" not in supports or self.prefixes or 4 * self.k > self.latents):
            needs = f"needs {rules.name_supporting('multi_topk')}, no prefixes and 4 k <= latents"
            raise UserError("multi_topk", True, needs)
        if self.choose_by_piece and "choose_by_piece" not in supports:
            needs = f"needs {rules.name_supporting('choose_by_piece')}, other rules choose the same in pieces"
            raise UserError("choose_by_piece", True, needs, "leave it out")
        if self.resample_every and not ("resample_every" in supports and free):
            needs = f"needs {rules.name_supporting('resample_every')} and decoder=free"
            raise UserError("resample_every", self.resample_every, needs, "elsewhere AuxK revives silent latents")
        if self.frozen != "none" and not (free and not self.resample_every):
            raise UserError("frozen", self.frozen, "needs decoder=free and resample_every=0")
        if self.screen in rough.NUMBERS and not ("screen" in supports and free):
            needs = f"needs {rules.name_supporting('screen')} and decoder=free"
            raise UserError("screen", self.screen, needs, "use screen=auto")
        if self.kernels == "triton" and "kernels" not in supports:
            raise UserError("kernels", self.kernels, f"needs {rules.name_supporting('kernels')}", "use kernels=torch")
        if self.precision != "float32" and "precision" not in supports:
            needs = f"needs {rules.name_supporting('precision')}"
            raise UserError("precision", self.precision, needs, "elsewhere a screen multiplies such numbers")
        self._check_prefixes()

    def _check_prefixes(self) -> None:
        if self.prefixes is None:
            return
        if "prefixes" not in rules.find(self.rule).supports:
            needs = f"Matryoshka needs {rules.name_supporting('prefixes')}"
            raise UserError("prefixes", self.prefixes, needs, "drop one of them")
        sizes = self.prefix_sizes if all(0 < share <= 1 for share in self.prefixes) else ()
        rising = all(a < b for a, b in zip((0, *sizes), sizes, strict=False))
        if not (sizes and rising and sizes[-1] == self.latents):
            raise UserError("prefixes", self.prefixes, "rising shares in (0, 1], the last of them 1")

    @property
    def prefix_sizes(self) -> tuple[int, ...]:
        """Latents in each Matryoshka prefix; empty where there are none."""
        return tuple(round(share * self.latents) for share in self.prefixes or ())

    @property
    def learning_rate(self) -> float:
        """`lr`, or Gao et al.'s scaling law where it is None."""
        return self.lr if self.lr is not None else 2e-4 / math.sqrt(self.latents / 2**14)

    def dead_within(self, tokens: int) -> int:
        """Tokens without firing after which a latent counts as silent, in training on a set of so many."""
        return min(self.dead_after, max(1, round(self.dead_share * tokens)))

    @property
    def aux_latents(self) -> int:
        """Silent latents that AuxK uses a token."""
        return min(self.latents, self.auxk_k if self.auxk_k is not None else max(1, self.d_in // 2))


@dataclass(frozen=True)
class TrainConfig:
    """How long to train, in what batches, and how often to look and to save."""

    batch_size: int = 4096  # tokens a step (over all processes)
    epochs: float = 1.0  # passes over the rows, where `steps` is not given
    steps: int | None = None  # optimiser steps; overrules `epochs`
    warmup: float = 0.0  # share of the steps over which the learning rate rises from 0
    decay: tuple[tuple[float, float], ...] = ()  # (share of the steps, factor): the rate falls by factor from there on
    anneal: float = 0.2  # share of the steps, at the end, over which the rate falls to 0 in a line
    seed: int = 0  # of the order of the data
    ema: float = added(0.0)  # save the running mean of the weights, of which a step keeps this share; 0: the last ones
    log_every: int = 25  # steps between lines in metrics.jsonl
    checkpoint_every: int = 1000  # steps between checkpoints
    keep: int = 2  # checkpoints that are kept
    latent_shards: int = added(1)  # of the latents, each in another process (docs/scale.md)
    graph: bool = added(False)  # on CUDA, one process: a step is one CUDA graph, which the host starts as a whole
    accumulate: int = added(1)  # pieces of a batch that a step takes one after the other, to hold less (docs/scale.md)

    def __post_init__(self) -> None:
        wanted = "pairs of numbers: (share of the steps, factor)"
        if not isinstance(self.decay, tuple | list):
            raise UserError("decay", self.decay, wanted)
        stairs = tuple(_numbers("decay", stair, wanted) for stair in self.decay)
        if any(len(stair) != 2 for stair in stairs):
            raise UserError("decay", self.decay, wanted)
        if not all(0 <= share <= 1 and 0 <= factor < math.inf for share, factor in stairs):
            raise UserError("decay", self.decay, f"{wanted}: a share from 0 to 1, a factor of 0 or more")
        object.__setattr__(self, "decay", stairs)
        settings.check(self, "", {})
        _at_least_1(self, "batch_size", "log_every", "checkpoint_every", "keep", "latent_shards", "accumulate")
        _within(self, 1, "warmup", "anneal")
        if not 0 <= self.ema < 1:
            raise UserError("ema", self.ema, "from 0, for none, to below 1", "0.999 is usual")
        if not 0 < self.epochs < math.inf:
            raise UserError("epochs", self.epochs, "must be positive and finite")
        if self.steps is not None and self.steps < 1:
            raise UserError("steps", self.steps, "must be at least 1", "leave it out to train for so many epochs")

    def total(self, steps_per_epoch: int) -> int:
        """Optimiser steps of the whole run."""
        return self.steps if self.steps is not None else max(1, round(self.epochs * steps_per_epoch))

    def lr_factor(self, step: int, total: int) -> float:
        """Factor on the learning rate at `step` (from 0) of `total`: a pure function, so a resume needs no state."""
        rise = min(1.0, (step + 1) / max(1.0, self.warmup * total))
        fall = min(1.0, (total - step) / max(1.0, self.anneal * total))
        stairs = math.prod(by for at, by in self.decay if step >= at * total)
        return rise * fall * stairs


def drop_rounding(config: SAEConfig, train: TrainConfig) -> tuple[SAEConfig, TrainConfig]:
    """Both as recipes state them: without what changes rounding alone.

    Pieces change more only where there are some and each is chosen by itself.
    """
    pieces = train.accumulate if config.choose_by_piece else 1
    return replace(config, choose_by_piece=pieces > 1), replace(train, latent_shards=1, accumulate=pieces, graph=False)


def settle(config: SAEConfig, device: str | torch.device) -> SAEConfig:
    """The config with the screen that auto means on the device, if any: it changes numbers, so recipes state it.

    The first of `rough.numbers_that_pay` that pays with the rule too. An archetypal decoder is never screened: each
    data point is the start of several rows, whose pre-activations bfloat16 cannot tell apart, so true members of the
    top k would fall behind all candidates.
    """
    rule, device = rules.find(config.rule), torch.device(device)
    if config.screen != "auto" or "screen" not in rule.supports or config.decoder != "free":
        return config
    for by in rough.numbers_that_pay(config.d_in, device):
        if rule.screen_pays(config.latents, config.k, by):
            return replace(config, screen=by)
    return config


def _one_of(name: str, value: str, allowed: tuple[str, ...]) -> None:
    if value not in allowed:
        raise UserError(name, value, f"one of {', '.join(allowed)}")


def _at_least_1(config: object, *names: str) -> None:
    for name in names:
        if getattr(config, name) < 1:
            raise UserError(name, getattr(config, name), "must be at least 1")


def _within(config: object, most: float, *names: str) -> None:
    for name in names:
        value = getattr(config, name)
        if not 0 <= value <= most or value == math.inf:
            raise UserError(name, value, "0 or more, and finite" if most == math.inf else f"from 0 to {most}")


def _numbers(name: str, values: Any, wanted: str) -> tuple[float, ...]:
    try:
        return tuple(float(value) for value in values)
    except (TypeError, ValueError):
        raise UserError(name, values, wanted) from None
