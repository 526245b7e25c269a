"""Tensors out of foreign files, safetensors or PyTorch's: nothing in them is run, and one line says what is wrong."""

import io
import re
import zipfile
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from saelab.errors import UserError

WRAPPERS = ("state_dict", "model_state_dict", "model")  # keys under which checkpoints keep their tensors


def read(file: Path | io.BytesIO, setting: str, name: str | Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """The tensors of a file by name (a checkpoint's inner state dict), and what else lies in it or beside them.

    Numbers count as tensors. `name` is the file, for messages. Raises UserError for a file that is missing, cut off or
    damaged, and for one whose pickle holds anything but plain data.
    """
    if isinstance(file, Path) and file.suffix == ".safetensors":
        tensors, metadata = read_safetensors(file, setting)
        return tensors, metadata
    found = _unpickle(file, setting, name)
    beside: dict[str, Any] = {}
    for key in WRAPPERS:
        if isinstance(found.get(key), dict):
            beside |= {str(n): v for n, v in found.items() if n != key}
            found = found[key]
    tensors = {}
    for key, value in found.items():
        if isinstance(value, Tensor):
            tensors[str(key)] = value.detach()
        elif isinstance(value, bool | int | float):
            tensors[str(key)] = torch.tensor(value)
        else:
            beside[str(key)] = value
    return tensors, beside


def read_safetensors(file: Path, setting: str) -> tuple[dict[str, Tensor], dict[str, str]]:
    """The tensors and the metadata of a safetensors file. Raises UserError for a missing, cut-off or foreign one."""
    from safetensors import safe_open

    try:
        with safe_open(str(file), framework="pt") as opened:
            return {n: opened.get_tensor(n) for n in opened.keys()}, dict(opened.metadata() or {})  # noqa: SIM118
    except Exception as error:  # safetensors' own, OSError, and what a header with strange numbers leads to
        why = pointer(file) or f"cut off, damaged or no safetensors file ({_line(error)})"
        raise UserError(setting, file, why, "fetch or copy it again") from None


def pointer(file: Path) -> str:
    """What a file is that stands for another one, in words; else empty."""
    try:
        with file.open("rb") as opened:
            head = opened.read(64)
    except OSError:
        return ""
    if head.startswith(b"version https://git-lfs"):
        return "a Git LFS pointer: the file itself was never fetched (git lfs pull)"
    return "a web page, saved in place of the file" if head.lstrip()[:5].lower() in (b"<!doc", b"<html") else ""


def _unpickle(file: Path | io.BytesIO, setting: str, name: str | Path) -> dict[Any, Any]:
    """The dict in a PyTorch file, unpickled with PyTorch's list of harmless types."""
    again = "fetch or copy it again"
    try:
        found = torch.load(file, map_location="cpu", weights_only=True)
    except Exception as error:  # bytes that are no such file raise nearly anything
        text = str(error)
        held = re.search(r"(?:GLOBAL|global|type|class) [`'\"]?((?:\w+\.)+\w+)", text)
        if _cut_off(file) or isinstance(error, EOFError) or "truncated" in text:
            raise UserError(setting, name, "cut off or damaged: not a whole PyTorch file", again) from None
        if isinstance(file, Path) and pointer(file):
            raise UserError(setting, name, pointer(file), again) from None
        if held:
            what = f"holds pickled objects ({held[1]}), which could run code"
            remedy = "save the tensors alone where it was made: safetensors' save_file(model.state_dict(), FILE)"
            raise UserError(setting, name, what, remedy) from None
        raise UserError(setting, name, "damaged, or no file of tensors that PyTorch reads", again) from None
    if not isinstance(found, dict):
        raise UserError(setting, name, f"holds a {type(found).__name__}, expected tensors by name", "save a state dict")
    return found


def _cut_off(file: Path | io.BytesIO) -> bool:
    """Whether a file begins as PyTorch's do, and has no end (or no content)."""
    if isinstance(file, io.BytesIO):
        head, whole = file.getvalue()[:4], zipfile.is_zipfile(io.BytesIO(file.getvalue()))
    else:
        with file.open("rb") as opened:
            head = opened.read(4)
        whole = zipfile.is_zipfile(file)
    return not head or (head[:2] == b"PK" and not whole)


def _line(error: BaseException) -> str:
    return " ".join(str(error).split())[:120] or type(error).__name__
