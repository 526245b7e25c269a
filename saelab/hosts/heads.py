"""Attention heads: layers that hold what each head says, side by side, before it is projected back."""

from collections.abc import Mapping

from torch import nn

from saelab.errors import UserError
from saelab.hosts.layers import Site

COUNTS = ("num_heads", "num_attention_heads", "n_heads", "heads")  # what libraries call the number of heads
BACK = (".proj", ".out_proj", ".o_proj", ".c_proj", ".dense", ".wo", ".to_out", ".to_out.0")  # and the projection back
LEVELS = 2  # modules above the projection in which the attention is looked for


def count_heads(modules: Mapping[str, nn.Module], layer: str, d_in: int) -> int:
    """How many heads' outputs the layer's tokens hold one after the other.

    That is the input of the linear module that projects an attention's heads back (`in:blocks.9.attn.proj`); the
    number is read off the attention around it. Raises UserError for every other layer.
    """
    site = Site.parse(layer)
    attention = _attention(modules, site.path) if site.takes_input and site.path.endswith(BACK) else None
    count = None if attention is None else _count(attention)
    if not count or d_in % count:
        remedy = "heads need the input of an attention's output projection, such as in:blocks.9.attn.proj"
        raise UserError("bases", "heads", f"{layer} does not hold the outputs of attention heads", remedy)
    return count


def _attention(modules: Mapping[str, nn.Module], path: str) -> nn.Module | None:
    """The nearest module above a linear one that is an attention by its class."""
    if not isinstance(modules.get(path), nn.Linear):
        return None
    for _ in range(LEVELS):
        path = path.rpartition(".")[0]
        module = modules.get(path)
        if module is not None and "attention" in type(module).__name__.lower() and _count(module):
            return module
    return None


def _count(attention: nn.Module) -> int | None:
    """Its own number of heads, or that of a part of it."""
    for module in (attention, *attention.children()):
        for name in COUNTS:
            if isinstance(getattr(module, name, None), int):
                return getattr(module, name)
    return None
