"""A host by its name: timm, torchvision, transformers, open_clip, packages with weights, your own code or file."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import nn

from saelab.errors import UserError
from saelab.hosts import families, huggingface, packaged
from saelab.hosts.files import Built
from saelab.hosts.host import Host
from saelab.hosts.random_init import settle


def load(
    name: str,
    weights: str | Path = "pretrained",
    device: str | torch.device = "cpu",
    dtype: str | None = None,
    seed: int = 0,
    transform: dict[str, Any] | None = None,
) -> Host:
    """A host by name.

    `name`: `timm:resnet50`, `torchvision:resnet50`, `transformers:<hub name or folder>`, `open_clip:ViT-B-32/<tag>`,
    `module:<package.module>:<factory>`, `torchscript:<file>`, or one of the packaged ones (`efficientnet_lite0`, ...).
    `weights`: `pretrained` (the library's own), `random` (seeded with `seed`: a control; `settle` gives its batch norms
    statistics), or a file or folder.
    `transform`: fields of `Transform` to override. `dtype`: float32, bfloat16 or float16; None: as loaded.
    Raises UserError for an unknown name, missing weights, and a dtype or device that is unusable here.
    """
    kind, _, rest = name.partition(":")
    loader = _LOADERS.get(kind) if rest else packaged.HOSTS.get(name)
    if loader is None:
        known = [f"{k}:<name>" for k in _LOADERS] + list(packaged.HOSTS)
        raise UserError("host", name, "unknown", f"known: {', '.join(known)}")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        built = loader(rest or name, str(weights))
        changed = built.transform.override(dict(transform or {}))
        if weights == "random":
            settle(built._replace(transform=changed), seed)
    title = f"{name} (random, seed {seed})" if weights == "random" else name
    host = Host(built.model, changed, title, built.prefix, built.call)
    _move(host.model, device, dtype)
    host.weights.moved()
    return host


def _move(model: nn.Module, device: str | torch.device, dtype: str | None) -> None:
    names = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}
    if dtype is not None and dtype not in names:
        raise UserError("dtype", dtype, "unknown", f"known: {', '.join(names)}")
    try:
        model.to(device)
        if dtype is not None:
            model.to(names[dtype])
    except (RuntimeError, AssertionError) as error:
        why = " ".join(str(error).split())[:160]
        raise UserError("device", device, f"not usable here ({why})", "set device=cpu") from None


_LOADERS: dict[str, Callable[[str, str], Built]] = {
    "timm": families.timm,
    "torchvision": families.torchvision,
    "transformers": huggingface.transformers,
    "open_clip": families.open_clip,
    "module": families.module,
    "torchscript": families.torchscript,
}
