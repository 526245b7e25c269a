"""A pretended device: CPU tensors that say they lie on MPS or CUDA, and refuse what these refuse.

A tensor there and one on the CPU don't mix; numpy doesn't read it; MPS has no float64 and no sparse matrices, and ranks
no int64. `waits` counts what would make the host wait for the device.
"""

import contextlib
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map

T = torch.Tensor
NUMPY = {T.numpy, T.__array__}
READS = {T.item, T.tolist, T.__bool__, T.__int__, T.__float__, T.__index__, T.nonzero, T.unique, torch.bincount}
MOVES = {T.copy_, T.grad.__set__}  # between devices as well


class There(Tensor):
    """A tensor on the pretended device."""


class Elsewhere(TorchFunctionMode):
    """Within the block, `kind` (mps | cuda) is a device."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        self.kind, self.waits = kind, 0

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is torch.device:
            return func(*args, **(kwargs or {}))
        given = tree_leaves((args, kwargs or {}))
        tensors = [value for value in given if isinstance(value, Tensor)]
        there = any(map(is_there, tensors))
        if there and func == T.device.__get__:
            return torch.device(self.kind)
        if there and func in (T.is_cuda.__get__, T.is_mps.__get__):
            return (func == T.is_cuda.__get__) == (self.kind == "cuda")
        if there and func in NUMPY:
            raise TypeError(f"can't convert {self.kind} tensor to numpy")
        if there and self.kind == "mps" and func is T.topk and tensors[0].dtype == torch.int64:
            raise TypeError("MPS ranks no int64")
        named = [str(value).split(":")[0] for value in given if isinstance(value, str | torch.device)]
        target = self.kind if self.kind in named else "cpu" if func is T.cpu or "cpu" in named else None
        counted = func is T.__getitem__ and any(t.dtype == torch.bool for t in tensors[1:])
        counted |= func is T.repeat_interleave and "output_size" not in (kwargs or {})
        if there and (counted or func in READS or (target == "cpu" and func in (T.cpu, T.to))):
            self.waits += 1
        mixed = there and any(not is_there(t) and t.ndim for t in tensors)
        if mixed and func not in MOVES and torch._C._current_graph_task_id() == -1:
            raise RuntimeError(f"{func}: expected all tensors to be on the same device")
        args, kwargs = tree_map(self._on_the_cpu, (args, kwargs or {}))
        with torch._C.DisableTorchFunctionSubclass():
            found = func(*args, **kwargs)
        goes_there = there if target is None else target == self.kind
        return tree_map(lambda value: self._placed(value, goes_there), found)

    def _on_the_cpu(self, value: Any) -> Any:
        return "cpu" if isinstance(value, str | torch.device) and str(value).split(":")[0] == self.kind else value

    def _placed(self, value: Any, there: bool) -> Any:
        if not isinstance(value, Tensor) or is_there(value) == there:
            return value
        if there and self.kind == "mps" and (value.dtype == torch.float64 or value.layout != torch.strided):
            raise TypeError(f"MPS has no {value.dtype} {value.layout}")
        if value.layout != torch.strided:  # these can't be of a subclass
            value.there = there
            return value
        return value.as_subclass(There if there else Tensor)


def is_there(tensor: Tensor) -> bool:
    """Whether the tensor lies on the pretended device."""
    return isinstance(tensor, There) or getattr(tensor, "there", False)


class Streams:
    """CUDA's streams and events as they are without a card: everything is there at once. `seen`: what was asked."""

    def __init__(self, monkeypatch: Any) -> None:
        self.seen: list[str] = []
        one = SimpleNamespace(wait_event=lambda event: self.seen.append("wait"))
        event = SimpleNamespace(synchronize=lambda: None, record=lambda stream: self.seen.append("copied"))
        monkeypatch.setattr(torch.cuda, "Stream", lambda device=None: one)
        monkeypatch.setattr(torch.cuda, "current_stream", lambda device=None: one)
        monkeypatch.setattr(torch.cuda, "stream", lambda stream: contextlib.nullcontext())
        monkeypatch.setattr(torch.cuda, "Event", lambda: event)
        monkeypatch.setattr(Tensor, "pin_memory", lambda t: (self.seen.append(f"pinned {t.dtype}"), t)[1])
        monkeypatch.setattr(Tensor, "record_stream", lambda t, stream: None)


class Graphs:
    """CUDA graphs as they are on a card: what is captured is not carried out, and a replay repeats its operations.

    On the tensors of the capture, with the host's numbers of the capture. A call in it that waits for the device raises
    as there. `replays`: of all graphs.
    """

    def __init__(self, monkeypatch: Any) -> None:
        self.made: list[list[Any]] = []
        self.replays = 0
        monkeypatch.setattr(torch.cuda, "CUDAGraph", self._new)
        monkeypatch.setattr(torch.cuda, "graph", self._capture)
        monkeypatch.setattr(torch.cuda, "Stream", lambda device: device)
        monkeypatch.setattr(torch.optim.Optimizer, "_accelerator_graph_capture_health_check", lambda optimizer: None)

    def _new(self) -> SimpleNamespace:
        graph = SimpleNamespace(calls=[])
        graph.replay = lambda: self._replay(graph.calls)
        return graph

    @contextlib.contextmanager
    def _capture(self, graph: SimpleNamespace, stream: Any, capture_error_mode: str) -> Any:
        assert capture_error_mode == "thread_local", "or a host in another thread breaks the capture"
        recorder = _Recorder()
        try:
            with recorder:
                yield
        finally:
            recorder.undo()
        graph.calls = recorder.calls
        self.made.append(recorder.calls)

    def _replay(self, calls: list[Any]) -> None:
        self.replays += 1
        with torch._C.DisableTorchFunction(), torch.no_grad():
            for func, args, kwargs, before in calls:
                for old, new in zip(before, _tensors(func(*args, **kwargs)), strict=True):
                    old.copy_(new.values() if new.layout == torch.sparse_csr else new)


WAITS = {"_local_scalar_dense", "nonzero", "masked_select", "unique", "equal", "is_nonzero", "bincount"}


class _Recorder(TorchDispatchMode):
    """Notes operations, and what their writes destroy."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[Any] = []
        self.saved: dict[int, tuple[Tensor, Tensor]] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs, name = kwargs or {}, func.overloadpacket.__name__
        masks = name.startswith("index") and any(t.dtype == torch.bool for t in _tensors(args[1:]) if t.ndim)
        if name in WAITS or (masks and name not in ("index_select", "index_add", "index_add_")):
            raise RuntimeError(f"operation not permitted when stream is capturing\n{name}")
        for place, argument in enumerate(func._schema.arguments):
            if argument.alias_info is not None and argument.alias_info.is_write:
                written = args[place] if place < len(args) else kwargs.get(argument.name)
                for tensor in _tensors(written):
                    self.saved.setdefault(tensor.untyped_storage().data_ptr(), (tensor, _whole(tensor).clone()))
        found = func(*args, **kwargs)
        self.calls.append((func, args, kwargs, [_place(t, (args, kwargs)) for t in _tensors(found)]))
        return found

    def undo(self) -> None:
        with torch._C.DisableTorchFunction(), torch.no_grad():
            for tensor, before in self.saved.values():
                _whole(tensor).copy_(before)


def _whole(tensor: Tensor) -> Tensor:
    """All numbers of a tensor's storage."""
    return tensor.as_strided((tensor.untyped_storage().nbytes() // tensor.element_size(),), (1,), 0)


def _tensors(given: Any) -> list[Tensor]:
    return [value for value in tree_leaves(given) if isinstance(value, Tensor)]


def _place(tensor: Tensor, given: Any) -> Tensor:
    """A view of a result as it is now (its shape may be changed in place); of nothing where it lies in an argument."""
    if tensor.layout == torch.sparse_csr:
        return tensor.values()
    others = (t for t in _tensors(given) if t.layout == torch.strided)
    if any(t.untyped_storage().data_ptr() == tensor.untyped_storage().data_ptr() for t in others):
        return torch.empty_like(tensor)
    return tensor.detach()
