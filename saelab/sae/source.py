"""What a foreign file holds, taken piece by piece: whatever no reader takes refuses the file, by name.

"Unknown means default" gives wrong codes in silence, so a tensor, a setting or a value that a reader doesn't know ends
the reading. A setting that is off (none, false, zero, empty) passes: it changes nothing.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from saelab.errors import UserError
from saelab.sae.model import SAE, Meta

REMEDY = "see docs/sae.md for what can be read"
_OFF: tuple[Any, ...] = (None, False, 0, 0.0, "", "none", "None", [], {}, ())


@dataclass(frozen=True)
class Options:
    """What the caller says of a file that doesn't say it."""

    k: int | None = None  # latents kept by a TopK rule; 0: the rule is ReLU
    scale: float | None = None  # factor on the input in training, where the file expects scaled activations
    signed: str | None = None  # split: a latent that may be negative becomes two, its positive and its negative side
    encoder_only: bool = False  # read a transcoder's encoder, whose latents can be labelled


@dataclass
class Source:
    """The tensors and settings of one file, of which readers `take` what they know. Half precision is widened."""

    file: Path
    format: str
    tensors: dict[str, Tensor]
    config: dict[str, Any] = field(default_factory=dict)
    options: Options = field(default_factory=Options)

    def __post_init__(self) -> None:
        for name, tensor in self.tensors.items():
            if tensor.layout != torch.strided or tensor.is_quantized or tensor.is_complex():
                raise self.refuse(name, "is no plain tensor of real numbers")
        self.tensors = {n: t.detach().cpu().float() if t.is_floating_point() else t for n, t in self.tensors.items()}
        self.config = dict(self.config)

    def refuse(self, what: str, why: str, remedy: str = REMEDY) -> UserError:
        """The error for something in this file."""
        return UserError("sae", self.file, f"{what} {why}", remedy)

    def take(self, name: str) -> Tensor:
        """A tensor that must be there, all of it finite."""
        if name not in self.tensors:
            raise self.refuse(f"a {self.format} file", f"needs the tensor {name}; found {_list(self.tensors)}")
        tensor = self.tensors.pop(name)
        if not bool(tensor.isfinite().all()):
            remedy = "its training diverged, or the file is damaged: take an earlier checkpoint"
            raise self.refuse(f"tensor {name}", "holds NaN or an infinity", remedy)
        return tensor

    def setting(self, name: str, default: Any = None) -> Any:
        """A setting, whatever its value."""
        return self.config.pop(name, default)

    def switch(self, name: str) -> bool:
        """A setting that is on or off."""
        value = self.config.pop(name, False)
        if value in _OFF:
            return False
        if value is not True and value != 1:
            raise self.refuse(f"{name}={_short(value)}", "is neither true nor false")
        return True

    def choice(self, name: str, known: Mapping[Any, str], default: Any = None) -> str:
        """A setting with a known list of values, translated; a value that is not in it refuses the file."""
        value = self.config.pop(name, default)
        if isinstance(value, list | dict) or value not in known:
            names = ", ".join(dict.fromkeys(str(key) for key in known))
            raise self.refuse(f"{name}={_short(value)}", f"can't be expressed; known: {names}")
        return known[value]

    def count(self, name: str, whole: bool = True) -> float | None:
        """A setting that is a number of things (in the mean, if not `whole`), or None."""
        value = self.config.pop(name, None)
        if value is None:
            return None
        number = isinstance(value, int | float) and not isinstance(value, bool) and 0 <= value < 2**53
        if not number or (whole and value != int(value)):
            raise self.refuse(f"{name}={_short(value)}", "is no count")
        return value

    def counts(self, name: str) -> list[int]:
        """A setting that is a list of numbers of things; [] where it isn't there."""
        values = self.config.pop(name, None) or []
        if not isinstance(values, list) or not all(type(v) is int and v > 0 for v in values):
            raise self.refuse(f"{name}={_short(values)}", "is no list of counts")
        return values

    def number(self, name: str) -> float:
        """A tensor that must be one number."""
        tensor = self.take(name)
        if tensor.numel() != 1:
            raise self.refuse(f"tensor {name}", f"holds {tensor.numel()} numbers, expected one")
        return tensor.item()

    def pass_over(self, names: Iterable[str]) -> None:
        """Drop settings that only training used: names, or a text of names."""
        for name in names.split() if isinstance(names, str) else names:
            self.config.pop(name, None)

    def is_size(self, name: str, found: int) -> None:
        """Refuse a size in the settings that contradicts the weights; 0 or nothing says nothing."""
        said = self.count(name)
        if said and said != found:
            raise self.refuse(
                f"{name}={said:g}", f"contradicts the weights, which have {found}", "look for the right one"
            )

    def k(self, *said: float | None) -> int:
        """The number of latents kept, from where it stands; 0 where it doesn't. The caller's must not contradict."""
        known = [number for number in said if number]
        given = self.options.k
        if given and known and round(known[0]) != given:
            raise UserError("k", given, f"{self.file} says {known[0]:g}", "leave k out")
        return round(known[0]) if known else int(given or 0)

    def finish(self) -> None:
        """Refuse the file for every tensor and setting that nobody took and that is not off."""
        if self.tensors:
            why = f"are left over: a {self.format} SAE of this kind has none"
            raise self.refuse(f"tensors {_list(self.tensors)}", why)
        left = {n: v for n, v in self.config.items() if v not in _OFF}
        if left:
            shown = ", ".join(f"{n}={_short(v)}" for n, v in list(left.items())[:6])
            remedy = "delete from the configuration what doesn't change the codes"
            raise self.refuse(f"settings {shown}", f"are unknown in {self.format}", remedy)


@dataclass
class Weights:
    """A foreign SAE's weights in its own units, and how its package applies them."""

    W_enc: Float[Tensor, "latents d_in"]
    b_enc: Float[Tensor, "latents"]
    W_dec: Float[Tensor, "latents d_out"]
    b_dec: Float[Tensor, "d_out"]  # added by the decoder
    centred: bool = True  # b_dec is taken off the input
    centre: Float[Tensor, "d_in"] | None = None  # a transcoder's: what is taken off its input
    threshold: Tensor | None = None  # [latents], or one for all
    scale: float = 1.0  # factor on the (normed) input
    input_norm: str = "none"
    transcoder: bool = False  # the decoder writes to another layer, or adds a part of the input
    signed: bool = False  # keeps the k largest by absolute value
    prefixes: tuple[int, ...] = ()


def build(source: Source, weights: Weights, rule: str, k: int = 0, **facts: Any) -> SAE:
    """The SAE that encodes as the package does, from raw activations. Raises UserError for what doesn't fit together.

    `facts`: what else `meta.source` should say.
    """
    _check_shapes(source, weights)
    latents, k = len(weights.W_enc), 0 if rule == "relu" else k
    source.finish()
    if rule == "topk" and not 0 < k <= latents:
        what = "the file doesn't hold it: give k=..." if not k else "look for the right configuration"
        raise UserError("k", k, f"1 to {latents}, the latents, for a TopK SAE", what)
    if k > latents:
        raise source.refuse(f"k={k}", f"exceeds the {latents} latents")
    meta_source = {"format": source.format, **facts}
    if weights.signed:
        _require_split(source, rule)
        _split(weights)
        meta_source["signed"] = "split: latent i of the file's n is i (positive side) and n + i (negative side) here"
    if weights.transcoder:
        _keep_encoder(source, weights)
        meta_source["transcoder"] = True
    _fold(weights)
    meta = Meta(rule, k, weights.input_norm, weights.prefixes, meta_source)
    W_enc, W_dec = weights.W_enc.contiguous(), weights.W_dec.contiguous()
    return SAE(W_enc, weights.b_enc.contiguous(), W_dec, weights.b_dec.contiguous(), meta, weights.threshold)


def _fold(weights: Weights) -> None:
    """Put the package's conventions into the weights, as ours apply them."""
    if not weights.centred:
        weights.b_enc = weights.b_enc + weights.W_enc @ weights.b_dec
    weights.W_enc = weights.W_enc * weights.scale
    weights.W_dec, weights.b_dec = weights.W_dec / weights.scale, weights.b_dec / weights.scale


def _check_shapes(source: Source, weights: Weights) -> None:
    """Refuse weights that are no matrices, or of which one contradicts another."""
    if weights.W_enc.ndim != 2 or weights.W_dec.ndim != 2 or 0 in weights.W_enc.shape:
        raise source.refuse("the encoder or decoder", "is no matrix")
    latents, d_in = weights.W_enc.shape
    d_out = weights.W_dec.shape[1] if weights.transcoder else d_in
    wanted = {"b_enc": (latents,), "W_dec": (latents, d_out), "b_dec": (d_out,)}
    if weights.centre is not None:
        wanted["centre"] = (d_in,)
    for name, shape in wanted.items():
        found = tuple(getattr(weights, name).shape)
        if found != shape:
            raise source.refuse(f"{name} {list(found)}", f"contradicts an encoder of {latents} latents and d_in {d_in}")
    if weights.threshold is not None:
        if tuple(weights.threshold.shape) not in ((), (1,), (latents,)):
            raise source.refuse(f"threshold {list(weights.threshold.shape)}", f"contradicts {latents} latents")
        weights.threshold = weights.threshold.float().expand(latents).clone()
    for name, size in {"d_in": d_in, "d_sae": latents, **({"d_out": d_out} if weights.transcoder else {})}.items():
        source.is_size(name, size)
    if weights.prefixes and (list(weights.prefixes) != sorted(set(weights.prefixes)) or weights.prefixes[-1] > latents):
        raise source.refuse(f"prefixes {list(weights.prefixes)}", f"don't rise to the {latents} latents")


def _require_split(source: Source, rule: str) -> None:
    if source.options.signed == "split" and rule == "topk":
        return
    remedy = "load it with signed='split': each becomes two latents, its positive and its negative side"
    raise source.refuse("signed=true", "lets latents be negative, which ours never are", remedy)


def _split(weights: Weights) -> None:
    """Latents of both signs as twice as many of one: the k largest of (pre, -pre) are the k largest by |pre|."""
    weights.W_enc = torch.cat([weights.W_enc, -weights.W_enc])
    weights.b_enc = torch.cat([weights.b_enc, -weights.b_enc])
    weights.W_dec = torch.cat([weights.W_dec, -weights.W_dec])


def _keep_encoder(source: Source, weights: Weights) -> None:
    """A transcoder's encoder alone: at the layer that it reads, its latents write nothing."""
    if not source.options.encoder_only:
        remedy = "load it with encoder_only=True to label its latents"
        raise source.refuse("a transcoder", "maps one layer to another and reconstructs nothing", remedy)
    if weights.centre is not None:
        weights.b_enc = weights.b_enc - weights.W_enc @ weights.centre
    weights.W_dec, weights.b_dec = torch.zeros_like(weights.W_enc), weights.W_enc.new_zeros(weights.W_enc.shape[1])
    weights.centred = True


def _list(names: Iterable[str]) -> str:
    known = sorted(names)
    return ", ".join(known[:8]) + (", ..." if len(known) > 8 else "")


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 40 else f"{text[:37]}..."
