"""Layers by name: the grammar of names, hooks at named places, and one probing pass that learns what runs.

A name is a module's dotted path (`_blocks.15`, `blocks.11.mlp.act`) and means its output. `in:path` is the module's
*input*, which reaches what no module gives out: the map after a functional activation is the input of the module that
follows. `path@2` is the third call of a module that runs several times in one pass (an activation that blocks share).
`output` is what the whole model returns. `*` stands for one part of the path, `**` for any number of them.
"""

import re
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from saelab.errors import UserError
from saelab.hosts.tokens import Form, first_tensor, form_of, replace_first
from saelab.settings import similar

ROOT = "output"


@dataclass(frozen=True)
class Layer:
    """A place in a model whose tokens can be taken."""

    name: str
    kind: str  # map, sequence or vector
    shape: tuple[int, ...]  # of the output, without the batch axis
    d_in: int
    module: str  # class of the module
    usual: str = ""  # why people look here: residual stream, after activation, MLP hidden, block output


@dataclass(frozen=True)
class Site:
    """A parsed layer name."""

    path: str  # dotted path, "" for the model itself
    takes_input: bool = False
    call: int = 0

    @classmethod
    def parse(cls, name: str) -> "Site":
        """Take a layer's name apart. Raises UserError for a call that is no number."""
        path, _, call = name.removeprefix("in:").partition("@")
        if call and not call.isdigit():
            raise UserError("layer", name, "after @ comes the number of a call", "write it like act@0")
        return cls("" if path == ROOT else path, name.startswith("in:"), int(call or 0))


@dataclass
class Probe:
    """What ran in one forward pass, in order, and how it was laid out."""

    forms: dict[tuple[str, bool, int], Form | None] = field(default_factory=dict)  # (path, is input, call) -> layout
    calls: Counter[str] = field(default_factory=Counter)
    patch: tuple[int, int] | None = None  # (height, width) of a patch, from the convolution that cuts the picture up

    def name(self, path: str, takes_input: bool, call: int) -> str:
        """The layer name of an event."""
        text = ("in:" if takes_input else "") + (path or ROOT)
        return text if self.calls[path] == 1 else f"{text}@{call}"

    def names(self) -> list[str]:
        """All layer names that give tokens: outputs, then inputs, in the order of running."""
        keys = [key for key, form in self.forms.items() if form is not None]
        return [self.name(*key) for key in sorted(keys, key=lambda key: key[1])]


def probe(model: nn.Module, run: Callable[[], Any], images: int) -> Probe:
    """Run the model once (`run`, on `images` pictures) and note every module's input and output."""
    found = Probe()
    width: list[int | None] = [None]
    handles = []

    def note(paths: list[str], value: Any, takes_input: bool) -> None:
        tensor = first_tensor(value)
        form = form_of(tensor, images, width[0]) if tensor is not None else None
        for path in paths:
            found.forms[path, takes_input, found.calls[path]] = form

    def before(paths: list[str]) -> Callable[..., None]:
        def hook(module: nn.Module, args: Any, kwargs: Any) -> None:
            note(paths, (*args, *kwargs.values()), True)

        return hook

    def after(paths: list[str]) -> Callable[..., None]:
        def hook(module: nn.Module, args: Any, output: Any) -> None:
            width[0] = _width(module) or width[0]
            note(paths, output, False)
            for path in paths:
                found.calls[path] += 1
            if found.patch is None and isinstance(module, nn.Conv2d):
                kernel = module.kernel_size
                found.patch = kernel if kernel == module.stride and min(kernel) >= 4 else None  # type: ignore[assignment]

        return hook

    paths: dict[nn.Module, list[str]] = {}
    for path, module in model.named_modules(remove_duplicate=False):
        paths.setdefault(module, []).append(path)
    try:
        for module, names in paths.items():
            if isinstance(module, torch.jit.ScriptModule):
                continue  # runs without Python: hooks are refused, or never called
            handles.append(module.register_forward_pre_hook(before(names), with_kwargs=True))
            handles.append(module.register_forward_hook(after(names)))
        run()
    finally:
        for handle in handles:
            handle.remove()
    return found


def _width(module: nn.Module) -> int | None:
    """Features that a layer with weights gives out; None for a container or a layer without weights."""
    weight = getattr(module, "weight", None)
    if not isinstance(weight, Tensor) or not weight.ndim:
        return None
    for attribute in ("out_features", "out_channels", "num_features"):
        if isinstance(getattr(module, attribute, None), int):
            return getattr(module, attribute)
    return weight.shape[-1] if weight.ndim == 1 or hasattr(module, "normalized_shape") else weight.shape[0]


See = Callable[[str, Tensor], Tensor | None]


@contextmanager
def tap(model: nn.Module, names: list[str], see: See) -> Iterator[None]:
    """While inside, every named layer's tensor goes through `see`; what it returns (if not None) takes its place.

    A module under several paths has several names; each of them that is asked for is shown.
    """
    modules = dict(model.named_modules(remove_duplicate=False))
    wanted: dict[tuple[nn.Module, bool], dict[int, list[str]]] = {}
    for name in names:
        site = Site.parse(name)
        calls = wanted.setdefault((modules[site.path], site.takes_input), {})
        calls.setdefault(site.call, []).append(name)
    handles = []
    for (module, takes_input), by_call in wanted.items():
        if takes_input:
            handles.append(module.register_forward_pre_hook(_input_hook(by_call, see), with_kwargs=True))
        else:
            handles.append(module.register_forward_hook(_output_hook(by_call, see)))
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _output_hook(by_call: dict[int, list[str]], see: See) -> Callable[..., Any]:
    seen = Counter[str]()

    def hook(module: nn.Module, args: Any, output: Any) -> Any:
        new = _show(by_call.get(seen["calls"], []), output, see)
        seen["calls"] += 1
        return output if new is None else replace_first(output, new)

    return hook


def _input_hook(by_call: dict[int, list[str]], see: See) -> Callable[..., Any]:
    seen = Counter[str]()

    def hook(module: nn.Module, args: Any, kwargs: Any) -> Any:
        given = args if first_tensor(args) is not None else kwargs
        new = _show(by_call.get(seen["calls"], []), given, see)
        seen["calls"] += 1
        if new is None:
            return None
        return (replace_first(args, new), kwargs) if given is args else (args, replace_first(kwargs, new))

    return hook


def _show(names: list[str], value: Any, see: See) -> Tensor | None:
    """Show the value's tensor under each name, one after the other; what is to take its place, if anything."""
    tensor = first_tensor(value) if names else None
    if tensor is None:
        return None
    new = None
    for name in names:
        shown = see(name, tensor if new is None else new)
        new = new if shown is None else shown
    return new


def check(name: str, model: nn.Module, found: Probe) -> Form:
    """The layout of a named layer. Raises UserError if there is none such, it never runs, runs often, has no tokens."""
    site = Site.parse(name)
    known = dict(model.named_modules(remove_duplicate=False))
    if site.path not in known:
        near = nearest(name, found.names())
        raise UserError("layer", name, "no such layer", f"nearest: {', '.join(near)}" if near else "list the layers")
    calls = found.calls[site.path]
    if calls == 0:
        near = nearest(name, found.names())
        raise UserError("layer", name, "never runs in a forward pass", f"nearest that do: {', '.join(near)}")
    if site.call >= calls or (calls > 1 and "@" not in name):
        raise UserError(
            "layer", name, f"runs {calls} times in a pass", f"name one call, {name.partition('@')[0]}@0 to @{calls - 1}"
        )
    form = found.forms[site.path, site.takes_input, site.call]
    if form is None:
        what = "takes" if site.takes_input else "gives"
        raise UserError("layer", name, f"{what} no tensor [images, ...] of 2 to 4 axes", "choose a block around it")
    return form


def nearest(name: str, names: list[str]) -> list[str]:
    """Up to four real names like a wrong one: by spelling, then those that share its last part."""
    close = similar(name, names, 4)
    last = name.rpartition(".")[2]
    return (close + [n for n in names if n.rpartition(".")[2] == last and n not in close] or names[-4:])[:4]


def matches(pattern: str, names: list[str]) -> list[str]:
    """The names that a pattern covers; `*` is one part of a dotted path, `**` any number. `in:` must be spelt out."""
    translated = re.escape(pattern).replace(r"\*\*", ".+").replace(r"\*", r"[^.]+")
    regex = re.compile(translated)
    return [name for name in names if regex.fullmatch(name) and name.startswith("in:") == pattern.startswith("in:")]
