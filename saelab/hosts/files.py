"""What all loaders share: what they give, state dicts from files, errors in one line."""

import difflib
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from saelab.errors import UserError
from saelab.hosts.tokens import Prefix
from saelab.hosts.transform import Transform


class Built(NamedTuple):
    """What a loader gives."""

    model: nn.Module
    transform: Transform
    prefix: Prefix = Prefix()
    call: Callable[[nn.Module, Tensor], Any] | None = None


def load_state(model: nn.Module, path: str) -> None:
    """Load a state dict strictly from a safetensors or torch file (tensors only: nothing in it is run).

    Raises UserError for a missing or unreadable file and for keys or shapes that do not fit.
    """
    file = Path(path).expanduser()
    if not file.is_file():
        raise UserError("weights", path, "no such file", "give pretrained, random or a .safetensors / .pth file")
    try:
        if file.suffix == ".safetensors":
            from safetensors.torch import load_file

            state: dict[str, Any] = dict(load_file(str(file)))
        else:
            state = torch.load(file, map_location="cpu", weights_only=True)
    except Exception as error:
        raise UserError(
            "weights", path, f"unreadable: {' '.join(str(error).split())[:160]}", "fetch it again"
        ) from None
    for key in ("state_dict", "model", "model_state_dict"):
        if isinstance(state.get(key), dict):
            state = state[key]
    state = {k.removeprefix("module."): v for k, v in state.items()}
    try:
        model.load_state_dict(state)
    except RuntimeError as error:
        raise UserError("weights", path, " ".join(str(error).split())[:300], "give the weights of this model") from None


def fetched(name: str, get: Callable[[], Any]) -> Any:
    """`get()`, with whatever a hub, a cache or a library raises told in one line."""
    try:
        return get()
    except Exception as error:
        why = " ".join(str(error).split())[:200]
        raise UserError(
            "host", name, f"can't be had: {why}", "set weights=random or to a local file or folder"
        ) from error


def nearest(name: str, names: list[str]) -> str:
    """The real names most like a wrong one, as a remedy; "" if none is."""
    close = difflib.get_close_matches(name, names, n=4, cutoff=0.5)
    return f"nearest: {', '.join(close)}" if close else ""
