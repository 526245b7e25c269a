"""From a layer's output to tokens [images, tokens, d_in] and back; which tokens a policy keeps."""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import torch
from einops import rearrange
from jaxtyping import Float
from torch import Tensor, nn

from saelab.errors import UserError

Kind = Literal["map", "sequence", "vector"]
POLICIES = ("all", "patches", "cls", "no_registers")


@dataclass(frozen=True)
class Form:
    """How a layer's output is laid out, found once by a probe."""

    kind: Kind  # map [n, c, h, w] or [n, h, w, c]; sequence [n, t, c] or [t, n, c]; vector [n, c]
    shape: tuple[int, ...]  # without the batch axis
    channels: int  # the axis of d_in in the output with its batch axis
    batch: int = 0  # the batch axis

    @property
    def d_in(self) -> int:
        """Width of a token."""
        return (*self.shape[: self.batch], 0, *self.shape[self.batch :])[self.channels]


def first_tensor(value: Any) -> Tensor | None:
    """The tensor in a module's output: itself, `last_hidden_state`, or the first in a tuple, list or mapping."""
    if isinstance(value, Tensor):
        return value
    if isinstance(value, Mapping):
        value = [value["last_hidden_state"]] if "last_hidden_state" in value else list(value.values())
    if isinstance(value, tuple | list):
        return next((t for t in map(first_tensor, value) if t is not None), None)
    return None


def replace_first(value: Any, tensor: Tensor) -> Any:
    """`value` with the tensor that `first_tensor` finds replaced; the container keeps its type."""
    if isinstance(value, Tensor):
        return tensor
    if isinstance(value, Mapping):
        keys = ["last_hidden_state"] if "last_hidden_state" in value else list(value)
        key = next(k for k in keys if first_tensor(value[k]) is not None)
        changed: Any = value.copy() if isinstance(value, dict) else type(value)(**value)
        changed[key] = replace_first(value[key], tensor)
        return changed
    index = next(i for i, v in enumerate(value) if first_tensor(v) is not None)
    items = [replace_first(v, tensor) if i == index else v for i, v in enumerate(value)]
    return type(value)(*items) if hasattr(value, "_fields") else type(value)(items)


def form_of(output: Tensor, images: int, width: int | None) -> Form | None:
    """The layout of an output, or None where it has no token axis that saelab knows.

    `width` is the number of features of the last layer with weights that ran: the axis of that size is the
    channel axis, which tells [n, c, h, w] (convolutions) from [n, h, w, c] (Swin, ConvNeXt's inside).
    """
    shape = tuple(output.shape)
    if output.ndim == 2 and shape[0] == images:
        return Form("vector", shape[1:], 1)
    if output.ndim == 3 and images in shape[:2]:
        batch = 0 if shape[0] == images else 1
        return Form("sequence", shape[:batch] + shape[batch + 1 :], 2, batch)
    if output.ndim == 4 and shape[0] == images:
        last = width is not None and shape[3] == width and shape[1] != width
        return Form("map", shape[1:], 3 if last else 1)
    return None


def to_tokens(output: Tensor, form: Form) -> Float[Tensor, "images tokens d_in"]:
    """The output as tokens: maps row by row, a vector as one token. May share the output's memory."""
    if form.kind == "vector":
        return rearrange(output, "n c -> n 1 c")
    if form.kind == "map":
        return rearrange(output, "n h w c -> n (h w) c" if form.channels == 3 else "n c h w -> n (h w) c")
    return output if form.batch == 0 else rearrange(output, "t n c -> n t c")


def from_tokens(tokens: Float[Tensor, "images tokens d_in"], like: Tensor, form: Form) -> Tensor:
    """The inverse of `to_tokens`, in the shape, dtype and place of `like`."""
    tokens = tokens.to(like)
    if form.kind == "vector":
        return rearrange(tokens, "n 1 c -> n c")
    if form.kind == "map":
        height = like.shape[1 if form.channels == 3 else 2]
        pattern = "n (h w) c -> n h w c" if form.channels == 3 else "n (h w) c -> n c h w"
        return rearrange(tokens, pattern, h=height)
    return tokens if form.batch == 0 else rearrange(tokens, "n t c -> t n c")


@dataclass(frozen=True)
class Prefix:
    """Tokens before the patches in a transformer's sequence: cls first, then registers."""

    cls: int = 0
    registers: int = 0
    known: bool = True  # False: the model has such tokens, and doesn't say how many come before the patches

    def __len__(self) -> int:
        return self.cls + self.registers


_EXTRA = re.compile(r"(cls|class|dist|distillation|reg|register|storage)_?(tokens?|embedding)[_\d]*")


def prefix_of(model: nn.Module) -> Prefix:
    """The tokens before the patches, from the model's own facts: what it states, else the tokens that it learns.

    A model that learns several sets of them (one a stage, one a branch) leaves the number open: `known` is False.
    """
    total = getattr(model, "num_prefix_tokens", None)
    learnt = {n: p for n, p in model.named_parameters() if _EXTRA.fullmatch(n.rpartition(".")[2])}
    if isinstance(total, int) and not isinstance(total, bool):
        has_cls = getattr(model, "has_class_token", None)
        if not isinstance(has_cls, bool):
            has_cls = any(n.rpartition(".")[2].startswith(("cls", "class")) for n in learnt)
        return Prefix(min(int(has_cls), total), total - min(int(has_cls), total))
    counts = {n.rpartition(".")[2]: p.shape[-2] if p.ndim > 1 else 1 for n, p in learnt.items()}
    widths = {p.shape[-1] for p in learnt.values()}
    if len(counts) < len(learnt) or len(widths) > 1 or any(name[-1].isdigit() for name in counts):
        return Prefix(known=False)
    cls = int(any(name.startswith(("cls", "class")) for name in counts))
    return Prefix(cls, sum(counts.values()) - cls)


@dataclass(frozen=True)
class Choice:
    """What a policy keeps of a layer's tokens."""

    index: tuple[int, ...] | None  # positions kept; None: all of them
    tokens: int  # how many an image has after the choice
    grid: tuple[int, int] | None  # (height, width): the *last* height*width tokens are a map, row by row
    prefix: int  # tokens kept before that map


def choose(policy: str, layer: str, form: Form, prefix: Prefix, patches: tuple[int, int] | None) -> Choice:
    """Which tokens of `layer` a policy keeps: `all`, `patches`, `cls`, `no_registers` or `token:<number>`.

    `patches` is the (height, width) of the patch embedding's map, None where the model has none. Raises UserError
    where the layer can't give what the policy asks for.
    """

    def refuse(why: str, remedy: str = "set policy=all") -> UserError:
        return UserError("policy", policy, f"layer {layer} {why}", remedy)

    total, grid, before = _count(form, prefix, patches)
    if policy.startswith("token:"):
        number = policy.removeprefix("token:")
        if not number.lstrip("-").isdigit() or not -total <= int(number) < total:
            raise refuse(f"has tokens 0 to {total - 1}", "name one of them, like token:0")
        return Choice((int(number) % total,), 1, None, 0)
    if policy not in POLICIES:
        raise UserError("policy", policy, "unknown", f"known: {', '.join(POLICIES)}, token:<number>")
    if policy == "all" or (form.kind == "map" and policy in ("patches", "no_registers")):
        return Choice(None, total, grid, before)
    if form.kind == "sequence" and not prefix.known:
        raise refuse("has extra tokens among its patches, and the model doesn't say where", "set policy=all or token:N")
    if form.kind != "sequence":
        raise refuse(f"gives a {form.kind} of shape {form.shape}, without cls, registers or patches")
    if grid is None and len(prefix):
        raise refuse(f"has {total} tokens, which is neither the patches nor the patches with their prefix")
    if policy == "patches" or (policy == "no_registers" and not before):
        kept = tuple(range(before, total))
        return Choice(kept if before else None, len(kept), grid, 0)
    if policy == "cls" and (not before or not prefix.cls):
        raise refuse("has no cls token", "set policy=patches")
    if policy == "cls":
        return Choice((0,), 1, None, 0)
    kept = tuple(range(prefix.cls)) + tuple(range(before, total))
    return Choice(kept, len(kept), grid, prefix.cls)


def _count(form: Form, prefix: Prefix, patches: tuple[int, int] | None) -> tuple[int, tuple[int, int] | None, int]:
    """Tokens in all, the map they form, and how many come before it."""
    if form.kind == "vector":
        return 1, None, 0
    if form.kind == "map":
        height, width = form.shape[:2] if form.channels == 3 else form.shape[1:]
        return height * width, (height, width), 0
    total = form.shape[0]
    if patches is None:
        return total, None, 0
    height, width = patches
    if total == height * width + len(prefix):
        return total, patches, len(prefix)
    while height * width > total and height % 2 == 0 and width % 2 == 0:  # stages that merge 2 x 2 patches
        height, width = height // 2, width // 2
    return (total, (height, width), 0) if height * width == total else (total, None, 0)


def pick(tokens: Float[Tensor, "images tokens d_in"], choice: Choice) -> Float[Tensor, "images kept d_in"]:
    """The tokens that a choice keeps."""
    if choice.index is None:
        return tokens
    return tokens[:, torch.tensor(choice.index, device=tokens.device)]
