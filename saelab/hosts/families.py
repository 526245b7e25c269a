"""Hosts from timm, torchvision and open_clip, and from your own code or file. Each: (name, weights) -> Built."""

import importlib
import logging
import traceback
from pathlib import Path

import torch
from torch import nn

from saelab.errors import UserError
from saelab.hosts import open_clip_names
from saelab.hosts.files import Built, fetch, load_state, nearest
from saelab.hosts.tokens import Prefix, prefix_of
from saelab.hosts.transform import IMAGENET_MEAN, IMAGENET_STD, Transform

log = logging.getLogger("saelab")


def timm(name: str, weights: str) -> Built:
    """`timm:<model>`, `timm:hf-hub:<repo>` or `timm:local-dir:<folder>`, with timm's transform and prefix tokens."""
    import timm
    from timm.data import resolve_model_data_config

    if not name.startswith(("hf-hub:", "hf_hub:", "local-dir:")) and not timm.is_model(name):
        near = nearest(name, timm.list_models())
        raise UserError("host", f"timm:{name}", "timm has no such model", near)
    model = fetch(f"timm:{name}", lambda: timm.create_model(name, pretrained=weights == "pretrained"))
    if weights not in ("pretrained", "random"):
        load_state(model, weights)
    config = resolve_model_data_config(model)
    height, width = config["input_size"][1:]
    if config["crop_mode"] not in ("center", "squash"):  # border: shrunk to fit, with a margin around it
        what = f"crops by mode {config['crop_mode']}, which saelab does not"
        raise UserError("host", f"timm:{name}", what, "use module: with a Transform")
    if config["crop_mode"] == "squash":
        resize: int | tuple[int, int] = (int(height / config["crop_pct"]), int(width / config["crop_pct"]))
    else:
        resize = int(min(height, width) / config["crop_pct"])
    transform = Transform(resize, (height, width), config["interpolation"], config["mean"], config["std"])
    return Built(model, transform, prefix_of(model))


def torchvision(name: str, weights: str) -> Built:
    """`torchvision:<classifier>`, with torchvision's default weights and their transform."""
    from torchvision import models

    if name not in models.list_models(module=models):
        near = nearest(name, models.list_models(module=models))
        raise UserError("host", f"torchvision:{name}", "torchvision has no such classifier", near)
    known = models.get_model_weights(name)["DEFAULT"]
    asked = known if weights == "pretrained" else None
    model = fetch(f"torchvision:{name}", lambda: models.get_model(name, weights=asked))
    if weights not in ("pretrained", "random"):
        load_state(model, weights)
    preset = known.transforms()
    transform = Transform(
        preset.resize_size[0],
        (preset.crop_size[0],) * 2,
        preset.interpolation.value,
        tuple(preset.mean),
        tuple(preset.std),
    )
    return Built(model, transform, prefix_of(model))


def open_clip(name: str, weights: str) -> Built:
    """The vision tower of `ARCHITECTURE/TAG`, `ARCHITECTURE/FILE`, `hf-hub:<repo>` or `local-dir:<folder>`.

    Its answer is the image embedding. The last two carry their own weights.
    """
    import open_clip

    file = weights not in ("pretrained", "random")
    if name.startswith(("hf-hub:", "local-dir:")) and file:
        remedy = "set host.weights=pretrained, or name the architecture"
        raise UserError("weights", weights, f"open_clip:{name} carries its own weights", remedy)
    architecture, _, tag = name.partition("/")
    if file and "/" not in name:
        choice = open_clip_names.parse(f"{architecture}/{weights}", "host")
    elif file:
        choice = open_clip_names.parse(f"{architecture}/{tag}@{weights}", "host")
    else:
        choice = open_clip_names.parse(name, "host")
    own = weights != "random"
    if own and not choice.weights and not name.startswith(("hf-hub:", "local-dir:")):
        tags = open_clip.list_pretrained_tags_by_model(architecture)
        remedy = f"add one: {'/'.join([architecture, tags[0]]) if tags else ''}"
        raise UserError("host", f"open_clip:{name}", "names no weights", remedy)
    model = fetch(
        f"open_clip:{name}",
        lambda: open_clip.create_model(
            choice.architecture,
            choice.weights or None if own else None,
            load_weights=own,
            require_pretrained=own,
            force_preprocess_cfg=choice.preprocess,
        ),
    )
    settings = open_clip.get_model_preprocess_cfg(model)
    size = settings["size"]
    height, width = (size, size) if isinstance(size, int) else size
    if settings.get("resize_mode", "shortest") == "longest" or (
        settings["resize_mode"] == "shortest" and height != width
    ):
        raise UserError(
            "host", f"open_clip:{name}", "resizes in a way that saelab does not", "use module: with a Transform"
        )
    squash = settings["resize_mode"] == "squash"
    transform = Transform(
        (height, width) if squash else height,
        None if squash else (height, width),
        settings["interpolation"],
        tuple(settings["mean"]),
        tuple(settings["std"]),
    )
    visual = model.visual
    return Built(visual, transform, prefix_of(getattr(visual, "trunk", visual)))


def module(name: str, weights: str) -> Built:
    """`package.module:factory`; the factory gives a torch module, or (module, Transform), or a Host's parts."""
    path, _, attribute = name.partition(":")
    try:
        factory = getattr(importlib.import_module(path), attribute or "model")
    except Exception as error:  # a module runs when it is imported, and may raise anything
        why = " ".join(str(error).split())[:160]
        what = f"can't be imported ({type(error).__name__}: {why}{_where(error)})"
        raise UserError("host", f"module:{name}", what, "write module:<package.module>:<factory>") from None
    title = f"module:{name}"
    try:
        made = factory()
    except UserError:
        raise
    except Exception as error:
        place = _where(error)
        why = f"the factory raised {type(error).__name__}: {' '.join(str(error).split())[:160]}{place}"
        raise UserError("host", title, why, "mend it, or call it in Python to see the traceback") from error
    parts = made if isinstance(made, tuple) else (made,)
    wanted = (nn.Module, Transform, Prefix)
    if not parts or not isinstance(parts[0], nn.Module):
        found = type(parts[0] if parts else made).__name__
        raise UserError("host", title, f"the factory gave a {found}", "it must give a torch.nn.Module")
    if len(parts) > 3 or not all(isinstance(part, kind) for part, kind in zip(parts, wanted)):
        found = ", ".join(type(part).__name__ for part in parts)
        what = f"the factory gave ({found}), expected (Module, saelab.hosts.Transform, saelab.hosts.Prefix)"
        raise UserError("host", title, what, "write the transform as a Transform; the last two may be left out")
    if weights not in ("pretrained", "random"):
        load_state(parts[0], weights)
    if len(parts) == 1:
        log.warning(
            "host=%s: the factory gives no Transform; ImageNet's usual one is taken (set host.transform)", title
        )
    prefix = parts[2] if len(parts) == 3 else prefix_of(parts[0])
    return Built(parts[0], parts[1] if len(parts) > 1 else _usual_transform(), prefix)


def _where(error: BaseException) -> str:
    """The line that raised, in brackets."""
    frames = traceback.extract_tb(error.__traceback__)
    return f" ({Path(frames[-1].filename).name}, line {frames[-1].lineno})" if frames else ""


def torchscript(name: str, weights: str) -> Built:
    """A TorchScript file. It executes outside Python, so only the layer `output` is available."""
    try:
        model = torch.jit.load(name, map_location="cpu")
    except (RuntimeError, ValueError, OSError) as error:
        why = " ".join(str(error).split())[:160]
        raise UserError(
            "host", f"torchscript:{name}", f"can't be read ({why})", "give a file made by torch.jit.save"
        ) from None
    if weights != "pretrained":
        raise UserError("weights", weights, "a TorchScript file holds its own weights", "set weights=pretrained")
    return Built(_Scripted(model), _usual_transform())


class _Scripted(nn.Module):
    """A TorchScript module in an ordinary one, which can be hooked."""

    def __init__(self, net: torch.jit.ScriptModule) -> None:
        super().__init__()
        self.net = net

    def forward(self, batch: torch.Tensor) -> torch.Tensor:
        return self.net(batch)


def _usual_transform() -> Transform:
    return Transform(256, (224, 224), "bilinear", IMAGENET_MEAN, IMAGENET_STD)
