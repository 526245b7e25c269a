"""A short cut to a layer: what comes before it is remembered, so that passes which go on from its tokens begin there.

Where a layer cuts the graph, nothing after it depends on what comes before but through its tokens, which are given. So
the modules that end before the layer begins need not run: each gives the output that it gave for a blank picture.
"""

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves, tree_map

Outputs = dict[nn.Module, list[Any]]  # of the outermost modules that end before a layer, call by call


@dataclass
class Recorder:
    """Watches a pass: which modules have ended, the outermost of them alone, until `stop`."""

    _depth: int = 0
    _ended: list[tuple[int, nn.Module, Any]] = field(default_factory=list)
    _found: Outputs | None = None

    @contextmanager
    def watching(self, model: nn.Module) -> Iterator[None]:
        """While inside, calls of the model's modules are written down, but of scripted ones: they allow no hooks."""
        with ExitStack() as stack:
            for module in (m for m in model.modules() if not isinstance(m, torch.jit.ScriptModule)):
                stack.enter_context(_removed(module.register_forward_pre_hook(self._begin)))
                stack.enter_context(_removed(module.register_forward_hook(self._end)))
            yield

    def stop(self) -> None:
        """The layer is reached; the first time counts."""
        if self._found is None:
            self._found = {}
            for _, module, output in self._ended:
                self._found.setdefault(module, []).append(output)

    @property
    def found(self) -> Outputs:
        """Outputs of the modules that ended before the layer; none where it was not reached, or one can't be copied."""
        found = self._found or {}
        leaves = tree_leaves(list(found.values()))
        return found if all(isinstance(leaf, Tensor | int | float | str | None) for leaf in leaves) else {}

    def _begin(self, module: nn.Module, args: Any) -> None:
        self._depth += 1

    def _end(self, module: nn.Module, args: Any, output: Any) -> None:
        self._depth -= 1
        if self._found is None:
            while self._ended and self._ended[-1][0] > self._depth:  # ran inside this one
                self._ended.pop()
            self._ended.append((self._depth, module, _copy(output)))


@contextmanager
def taken(outputs: Outputs) -> Iterator[None]:
    """While inside, these modules give what they gave, as often as they were called, and then work as ever."""
    own = {module: module.__dict__.get("forward") for module in outputs}
    try:
        for module, given in outputs.items():
            module.forward = _giving(list(given), module.forward)
        yield
    finally:
        for module, before in own.items():
            if before is not None:
                module.forward = before
            else:
                module.__dict__.pop("forward", None)


def _giving(outputs: list[Any], forward: Callable[..., Any]) -> Callable[..., Any]:
    left = iter(outputs)
    nothing = object()

    def give(*args: Any, **kwargs: Any) -> Any:
        output = next(left, nothing)
        return forward(*args, **kwargs) if output is nothing else _copy(output)

    return give


def _copy(output: Any) -> Any:
    """Tensors of their own: what follows may work in place."""
    return tree_map(lambda x: x.clone() if isinstance(x, Tensor) else x, output)


@contextmanager
def _removed(handle: torch.utils.hooks.RemovableHandle) -> Iterator[None]:
    try:
        yield
    finally:
        handle.remove()
