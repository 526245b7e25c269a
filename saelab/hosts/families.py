"""Hosts from timm, torchvision and open_clip, and from your own code or file. Each: (name, weights) -> Built."""

import importlib

import torch
from torch import nn

from saelab.errors import UserError
from saelab.hosts.files import Built, fetched, load_state, nearest
from saelab.hosts.tokens import Prefix
from saelab.hosts.transform import IMAGENET_MEAN, IMAGENET_STD, Transform


def timm(name: str, weights: str) -> Built:
    """`timm:<model>`, with timm's own weights, transform and count of prefix tokens."""
    import timm
    from timm.data import resolve_model_data_config

    if not timm.is_model(name):
        near = nearest(name, timm.list_models())
        raise UserError("host", f"timm:{name}", "timm has no such model", near)
    model = fetched(f"timm:{name}", lambda: timm.create_model(name, pretrained=weights == "pretrained"))
    if weights not in ("pretrained", "random"):
        load_state(model, weights)
    config = resolve_model_data_config(model)
    height, width = config["input_size"][1:]
    if config["crop_mode"] == "squash":
        resize: int | tuple[int, int] = (int(height / config["crop_pct"]), int(width / config["crop_pct"]))
    else:
        resize = int(min(height, width) / config["crop_pct"])
    transform = Transform(resize, (height, width), config["interpolation"], config["mean"], config["std"])
    total = int(getattr(model, "num_prefix_tokens", 0) or 0)
    return Built(model, transform, Prefix(min(total, 1), max(total - 1, 0)))


def torchvision(name: str, weights: str) -> Built:
    """`torchvision:<classifier>`, with torchvision's default weights and their transform."""
    from torchvision import models

    if name not in models.list_models(module=models):
        near = nearest(name, models.list_models(module=models))
        raise UserError("host", f"torchvision:{name}", "torchvision has no such classifier", near)
    known = models.get_model_weights(name)["DEFAULT"]
    asked = known if weights == "pretrained" else None
    model = fetched(f"torchvision:{name}", lambda: models.get_model(name, weights=asked))
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
    return Built(model, transform, Prefix(cls=1 if hasattr(model, "class_token") else 0))


def open_clip(name: str, weights: str) -> Built:
    """`open_clip:<architecture>/<tag>`, `hf-hub:<repo>` or `local-dir:<folder>` after the colon: the vision tower.

    Its answer is the image embedding. The last two carry their own weights.
    """
    import open_clip

    if name.startswith(("hf-hub:", "local-dir:")):
        model_name, tag = name, ""
        if weights not in ("pretrained", "random"):
            remedy = "set host.weights=pretrained, or name the architecture"
            raise UserError("weights", weights, f"open_clip:{name} carries its own weights", remedy)
    else:
        model_name, _, tag = name.partition("/")
        _known_to_open_clip(model_name, tag, weights)
    source = {"pretrained": tag or None, "random": None}.get(weights, weights)
    own = weights != "random"
    model = fetched(
        f"open_clip:{name}",
        lambda: open_clip.create_model(model_name, source, load_weights=own, require_pretrained=own),
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
    trunk = getattr(visual, "trunk", visual)
    total = int(getattr(trunk, "num_prefix_tokens", 1 if hasattr(trunk, "class_embedding") else 0) or 0)
    return Built(visual, transform, Prefix(min(total, 1), max(total - 1, 0)))


def _known_to_open_clip(model: str, tag: str, weights: str) -> None:
    import open_clip

    known = open_clip.list_models()
    if model not in known:
        raise UserError("host", f"open_clip:{model}", "open_clip has no such model", nearest(model, known))
    if weights == "pretrained" and not tag:
        tags = open_clip.list_pretrained_tags_by_model(model)
        remedy = f"add one: {'/'.join([model, tags[0]]) if tags else ''}"
        raise UserError("host", f"open_clip:{model}", "names no weights", remedy)


def module(name: str, weights: str) -> Built:
    """`package.module:factory`; the factory gives a torch module, or (module, Transform), or a Host's parts."""
    path, _, attribute = name.partition(":")
    try:
        factory = getattr(importlib.import_module(path), attribute or "model")
    except (ImportError, AttributeError) as error:
        raise UserError(
            "host", f"module:{name}", f"can't be imported ({error})", "write module:<package.module>:<factory>"
        ) from None
    made = factory()
    parts = made if isinstance(made, tuple) else (made,)
    if not isinstance(parts[0], nn.Module):
        raise UserError(
            "host", f"module:{name}", f"the factory gave a {type(parts[0]).__name__}", "it must give a torch.nn.Module"
        )
    if weights not in ("pretrained", "random"):
        load_state(parts[0], weights)
    return Built(parts[0], *(parts[1:] or (_usual_transform(),)))


def torchscript(name: str, weights: str) -> Built:
    """A TorchScript file. Its inside runs without Python, so only the layer `output` can be had."""
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
