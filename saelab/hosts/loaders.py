"""A host by its name: timm, torchvision, transformers, open_clip, packages with weights, your own code or file."""

import importlib
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from saelab.errors import UserError
from saelab.hosts import packaged
from saelab.hosts.host import Host
from saelab.hosts.tokens import Prefix
from saelab.hosts.transform import IMAGENET_MEAN, IMAGENET_STD, Transform


class Built(NamedTuple):
    """What a loader gives."""

    model: nn.Module
    transform: Transform
    prefix: Prefix = Prefix()
    call: Callable[[nn.Module, Tensor], Any] | None = None


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
    `weights`: `pretrained` (the library's own), `random` (seeded with `seed`: a control), or a file or folder.
    `transform`: fields of `Transform` to override. `dtype`: float32, bfloat16 or float16; None: as loaded.
    Raises UserError for a name, weights, dtype or device that can't be had.
    """
    kind, _, rest = name.partition(":")
    loader = _LOADERS.get(kind) if rest else packaged.HOSTS.get(name)
    if loader is None:
        known = [f"{k}:<name>" for k in _LOADERS] + list(packaged.HOSTS)
        raise UserError("host", name, "unknown", f"known: {', '.join(known)}")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        built = Built(*loader(rest or name, str(weights)))
    title = f"{name} (random, seed {seed})" if weights == "random" else name
    changed = built.transform.changed(dict(transform or {}))
    host = Host(built.model, changed, title, built.prefix, built.call)
    _move(host.model, device, dtype)
    return host


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


def _timm(name: str, weights: str) -> Built:
    import timm
    from timm.data import resolve_model_data_config

    if not timm.is_model(name):
        near = timm.list_models(f"*{name.split('.')[0][:8]}*")[:4]
        raise UserError("host", f"timm:{name}", "timm has no such model", f"it has: {', '.join(near)}" if near else "")
    model = _fetched(f"timm:{name}", lambda: timm.create_model(name, pretrained=weights == "pretrained"))
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


def _torchvision(name: str, weights: str) -> Built:
    from torchvision import models

    if name not in models.list_models(module=models):
        near = [m for m in models.list_models(module=models) if m.startswith(name[:5])][:4]
        raise UserError(
            "host", f"torchvision:{name}", "torchvision has no such classifier", f"it has: {', '.join(near)}"
        )
    known = models.get_model_weights(name)["DEFAULT"]
    asked = known if weights == "pretrained" else None
    model = _fetched(f"torchvision:{name}", lambda: models.get_model(name, weights=asked))
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


def _transformers(name: str, weights: str) -> Built:
    from transformers import AutoConfig

    title = f"transformers:{name}"
    config = _fetched(title, lambda: AutoConfig.from_pretrained(name))
    vision = getattr(config, "vision_config", None)
    factory = _tower_class(config) if vision is not None else _image_class(config)
    source = name if weights == "pretrained" else weights
    if weights == "random":
        model = factory._from_config(vision or config)
    else:
        model = _fetched(title, lambda: factory.from_pretrained(source))
    model.config.return_dict = True
    shown = vision or config
    registers = int(getattr(shown, "num_register_tokens", 0) or 0)
    cls = 1 if any(n.endswith(("cls_token", "class_embedding")) for n, _ in model.named_parameters()) else 0
    distilled = any(n.endswith("distillation_token") for n, _ in model.named_parameters())
    transform = _processor_transform(name, shown, weights == "random")
    return Built(model, transform, Prefix(cls, registers + int(distilled)), lambda m, batch: m(pixel_values=batch))


def _tower_class(config: Any) -> Any:
    """The class of the vision tower that goes with a two-tower or vision-language configuration."""
    import transformers

    kind = config.vision_config.model_type
    stem = {"clip_vision_model": "CLIPVisionModel", "siglip_vision_model": "SiglipVisionModel"}.get(kind)
    stem = stem or {"siglip2_vision_model": "Siglip2VisionModel"}.get(kind)
    if kind == "clip_vision_model" and config.model_type == "clip":
        stem = "CLIPVisionModelWithProjection"
    if stem is None:
        mapping = transformers.models.auto.modeling_auto.MODEL_MAPPING
        if type(config.vision_config) in mapping:
            return mapping[type(config.vision_config)]
        raise UserError("host", config.model_type, f"its vision tower ({kind}) can't be loaded alone", "use module:")
    return getattr(transformers, stem)


def _image_class(config: Any) -> Any:
    from transformers.models.auto.modeling_auto import (
        MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING as CLASSIFIERS,
    )
    from transformers.models.auto.modeling_auto import MODEL_MAPPING

    named = (config.architectures or [""])[0]
    wanted = CLASSIFIERS if named.endswith("ForImageClassification") else MODEL_MAPPING
    if type(config) not in wanted:
        raise UserError("host", config.model_type, "is no vision model that transformers knows", "use module:")
    found = wanted[type(config)]
    return found[0] if isinstance(found, tuple) else found


_NOT_TOLD = ("do_pad", "do_reduce_labels", "do_flip_channel_order", "do_thumbnail", "do_align_long_axis")


def _processor_transform(name: str, config: Any, may_guess: bool) -> Transform:
    """The image processor's settings as a Transform; for random weights without one, ImageNet's usual settings."""
    from transformers import AutoImageProcessor

    try:
        settings = AutoImageProcessor.from_pretrained(name).to_dict()
    except Exception as error:
        size = getattr(config, "image_size", 224)
        if may_guess:
            return Transform((size, size) if isinstance(size, int) else tuple(size))
        why = " ".join(str(error).split())[:160]
        raise UserError(
            "host", f"transformers:{name}", f"no image processor ({why})", "put its preprocessor_config.json there"
        ) from None
    for key in _NOT_TOLD:
        if settings.get(key):
            raise UserError(
                "host", f"transformers:{name}", f"its image processor uses {key}", "use module: with a Transform"
            )
    return processor_transform(settings)


def processor_transform(settings: dict[str, Any]) -> Transform:
    """A Hugging Face image processor's settings (its `to_dict()`) as a Transform."""
    from PIL import Image

    size, crop = dict(settings["size"] or {}), dict(settings.get("crop_size") or {})
    box = (crop["height"], crop["width"]) if settings.get("do_center_crop") and crop else None
    if settings.get("do_resize", True):
        resize = size["shortest_edge"] if size.get("shortest_edge") else (size["height"], size["width"])
        share = settings.get("crop_pct")
        if share and isinstance(resize, int) and resize < 384:  # ConvNeXt: resize by the share, then crop to size
            resize, box = int(resize / share), (resize, resize)
    else:
        resize = box or (size["height"], size["width"])
    return Transform(
        resize,
        box,
        Image.Resampling(settings.get("resample", 2)).name.lower(),
        tuple(settings["image_mean"]) if settings.get("do_normalize", True) else (0.0, 0.0, 0.0),
        tuple(settings["image_std"]) if settings.get("do_normalize", True) else (1.0, 1.0, 1.0),
        settings.get("rescale_factor", 1 / 255) if settings.get("do_rescale", True) else 1.0,
    )


def _open_clip(name: str, weights: str) -> Built:
    import open_clip

    model_name, _, tag = name.partition("/")
    if model_name not in open_clip.list_models():
        near = [m for m in open_clip.list_models() if m.startswith(model_name[:5])][:4]
        raise UserError("host", f"open_clip:{name}", "open_clip has no such model", f"it has: {', '.join(near)}")
    if weights == "pretrained" and not tag:
        tags = open_clip.list_pretrained_tags_by_model(model_name)
        raise UserError(
            "host",
            f"open_clip:{name}",
            "names no weights",
            f"add one: {'/'.join([model_name, tags[0]]) if tags else ''}",
        )
    source = {"pretrained": tag, "random": None}.get(weights, weights)
    model = _fetched(
        f"open_clip:{name}",
        lambda: open_clip.create_model(model_name, pretrained=source, load_weights=source is not None),
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


def _module(name: str, weights: str) -> Built:
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


def _torchscript(name: str, weights: str) -> Built:
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
    return Built(model, _usual_transform())


def _usual_transform() -> Transform:
    return Transform(256, (224, 224), "bilinear", IMAGENET_MEAN, IMAGENET_STD)


def _fetched(name: str, get: Callable[[], Any]) -> Any:
    """`get()`, with whatever a hub, a cache or a library raises told in one line."""
    try:
        return get()
    except Exception as error:
        why = " ".join(str(error).split())[:200]
        raise UserError(
            "host", name, f"can't be had: {why}", "set weights=random or to a local file or folder"
        ) from error


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


_LOADERS: dict[str, Callable[[str, str], Any]] = {
    "timm": _timm,
    "torchvision": _torchvision,
    "transformers": _transformers,
    "open_clip": _open_clip,
    "module": _module,
    "torchscript": _torchscript,
}
