"""What all loaders share: what they give, state dicts from files, errors in one line."""

import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

from torch import Tensor, nn

from saelab import tensor_files
from saelab.errors import UserError
from saelab.hosts.tokens import Prefix
from saelab.hosts.transform import Transform
from saelab.settings import similar

log = logging.getLogger("saelab")


class Built(NamedTuple):
    """What a loader gives."""

    model: nn.Module
    transform: Transform
    prefix: Prefix = Prefix()
    call: Callable[[nn.Module, Tensor], Any] | None = None


def load_state(model: nn.Module, path: str) -> None:
    """Load a state dict strictly from a safetensors or torch file (tensors only: nothing in it is run).

    Wrappers' prefixes are taken off the names (`module.`, `_orig_mod.`, `model.`, `backbone.`), and a last layer of
    another size (a fine-tuned head) is made to fit; a line in the log says so. Raises UserError for a missing or
    unreadable file and for keys or shapes that do not fit.
    """
    file = Path(path).expanduser()
    if not file.is_file():
        raise UserError("weights", path, "no such file", "give pretrained, random or a .safetensors / .pth file")
    try:
        found, _ = tensor_files.read(file, "weights", path)
    except UserError as error:
        raise UserError("weights", path, f"unreadable: {error.expected}", error.remedy) from None
    state = _unwrap(found, model, path)
    _fit_head(model, state, path)
    try:
        model.load_state_dict(state)
    except RuntimeError as error:
        raise UserError("weights", path, " ".join(str(error).split())[:300], "give the weights of this model") from None


_WRAPPERS = ("module.", "_orig_mod.", "model.", "backbone.")


def _unwrap(state: dict[str, Tensor], model: nn.Module, path: str) -> dict[str, Tensor]:
    """The state dict under the model's own names: of all ways to take wrappers' prefixes off, the best fit."""
    own = set(model.state_dict())
    best, taken = state, ""
    prefixes = [""]
    for _ in range(4):
        prefixes += [p + w for p in prefixes for w in _WRAPPERS if p + w not in prefixes]
        prefixes = [p for p in prefixes if not p or any(n.startswith(p) for n in state)]
    for prefix in prefixes:
        names = {n: n.removeprefix(prefix) for n in state}
        if len(set(names.values())) == len(names):
            renamed = {names[n]: tensor for n, tensor in state.items()}
            if len(own & set(renamed)) > len(own & set(best)):
                best, taken = renamed, prefix
    if taken:
        log.warning("weights=%s: the prefix %r is taken off its names", path, taken)
    return best


def _fit_head(model: nn.Module, state: dict[str, Tensor], path: str) -> None:
    """Give last layers as many outputs as the file's have, where nothing but that number differs."""
    own = {n: tuple(t.shape) for n, t in model.state_dict().items()}
    other = {n: tuple(t.shape) for n, t in state.items() if n in own and tuple(t.shape) != own[n]}
    heads = {n.rpartition(".")[0] for n in other}
    modules = dict(model.named_modules())
    for head in heads:
        layer, weight = modules[head], other.get(f"{head}.weight", ())
        if not isinstance(layer, nn.Linear | nn.Conv2d) or weight[1:] != own[f"{head}.weight"][1:]:
            return  # another model: loading says so
    for head in sorted(heads):
        layer, outputs = modules[head], other[f"{head}.weight"][0]
        kind = "out_features" if isinstance(layer, nn.Linear) else "out_channels"
        log.warning("weights=%s: %s has %d outputs, not %d", path, head, outputs, getattr(layer, kind))
        setattr(layer, kind, outputs)
        for name in ("weight", "bias"):
            if getattr(layer, name) is not None:
                shape = (outputs, *getattr(layer, name).shape[1:])
                setattr(layer, name, nn.Parameter(getattr(layer, name).new_zeros(shape)))
    if heads and isinstance(getattr(model, "num_classes", None), int):
        setattr(model, "num_classes", other[f"{sorted(heads)[0]}.weight"][0])  # noqa: B010  (an attribute of timm's)


def fetch(name: str, get: Callable[[], Any]) -> Any:
    """Return `get()`; raise whatever a hub, a cache or a library raises as a UserError of one line."""
    try:
        return get()
    except Exception as error:
        why = " ".join(str(error).split())[:200]
        raise UserError(
            "host", name, f"is out of reach: {why}", "set weights=random or to a local file or folder"
        ) from error


def nearest(name: str, names: list[str]) -> str:
    """The real names most like a wrong one, as a remedy; "" if none is."""
    close = similar(name, names, 4, 0.5)
    return f"nearest: {', '.join(close)}" if close else ""
