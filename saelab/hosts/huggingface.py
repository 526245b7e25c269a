"""Hosts from transformers: vision models, and the vision towers of CLIP, SigLIP and vision-language models."""

from typing import Any

import numpy as np
from PIL import Image

from saelab.errors import UserError
from saelab.hosts.files import Built, fetch
from saelab.hosts.tokens import Prefix
from saelab.hosts.transform import Transform


def transformers(name: str, weights: str) -> Built:
    """`transformers:<hub name or local folder>`; `weights` may be another folder with the same configuration."""
    from transformers import AutoConfig

    title = f"transformers:{name}"
    config = fetch(title, lambda: AutoConfig.from_pretrained(name))
    vision = getattr(config, "vision_config", None)
    factory = _tower_class(config) if vision is not None else _image_class(config)
    if vision is not None and config.model_type == "clip":
        vision.projection_dim = config.projection_dim  # what CLIP builds by; the tower's own may differ
    source = name if weights == "pretrained" else weights
    if weights == "random":
        model = factory._from_config(vision or config)
    else:
        model = fetch(title, lambda: factory.from_pretrained(source, config=vision or config))
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


_UNUSED = ("do_pad", "do_reduce_labels", "do_flip_channel_order", "do_thumbnail", "do_align_long_axis")
_APART = 2.0  # grey levels, on average, up to which a smooth picture may come out otherwise (docs/hosts.md)
_REMEDY = "use module: with a Transform"


def _processor_transform(name: str, config: Any, may_guess: bool) -> Transform:
    """The image processor's settings as a Transform; for random weights without one, ImageNet's usual settings."""
    from transformers import AutoImageProcessor

    try:
        processor = AutoImageProcessor.from_pretrained(name)
        settings = processor.to_dict()
    except Exception as error:
        size = getattr(config, "image_size", 224)
        if may_guess:
            return Transform((size, size) if isinstance(size, int) else tuple(size))
        why = " ".join(str(error).split())[:160]
        raise UserError(
            "host", f"transformers:{name}", f"no image processor ({why})", "put its preprocessor_config.json there"
        ) from None
    for key in _UNUSED:
        if settings.get(key):
            raise UserError("host", f"transformers:{name}", f"its image processor uses {key}", _REMEDY)
    return read_processor(processor, f"transformers:{name}")


def read_processor(processor: Any, title: str) -> Transform:
    """What a Hugging Face image processor does, as a Transform: its settings, held against what it makes of a picture.

    Raises UserError where it does something that its settings do not say, or that no Transform does.
    """
    kind = type(processor).__name__
    try:
        transform = processor_transform(processor.to_dict())
    except (KeyError, TypeError, ValueError) as error:
        what = f"the settings of its {kind} are no Transform's ({type(error).__name__}: {error})"
        raise UserError("host", title, what, _REMEDY) from None
    picture = _smooth_picture()
    for shown in (picture.crop((0, 0, 427, 320)), picture):  # some make sides multiples of a number
        try:
            theirs = processor(images=shown, return_tensors="pt")["pixel_values"][0].float()
        except Exception as error:  # a processor may raise anything
            why = " ".join(str(error).split())[:160]
            raise UserError("host", title, f"its {kind} fails on a picture ({why})", _REMEDY) from None
        shape = [3, *transform.size_of(shown)]
        if list(theirs.shape) != shape:
            what = f"its {kind} makes {list(theirs.shape)} of a picture, its settings read as {shape}"
            raise UserError("host", title, what, _REMEDY)
    ours = transform(picture)
    levels = float(((ours - theirs).abs() * ours.new_tensor(transform.std).view(3, 1, 1)).mean()) / transform.scale
    if not levels <= _APART:
        what = f"its {kind} does more than its settings say: {levels:.0f} grey levels apart on average"
        raise UserError("host", title, what, _REMEDY)
    return transform


def _smooth_picture() -> Image.Image:
    """Slow waves, another in each channel, twice as wide as high: interpolation hardly shows, all else does.

    At this aspect, a crop needs no rounding where sides are even; libraries round it differently.
    """
    y, x = np.mgrid[0:320, 0:640] / 320 * np.pi
    waves = np.stack([np.sin(x), np.cos(2 * y), np.sin(x + 2 * y)], axis=-1)
    return Image.fromarray((128 + 100 * waves + [20, 0, -20]).astype(np.uint8))


def processor_transform(settings: dict[str, Any]) -> Transform:
    """A Hugging Face image processor's settings (its `to_dict()`) as a Transform."""
    size, crop = dict(settings["size"] or {}), dict(settings.get("crop_size") or {})
    box = (crop["height"], crop["width"]) if settings.get("do_center_crop") and crop else None
    if settings.get("do_resize", True):
        resize = size["shortest_edge"] if size.get("shortest_edge") else (size["height"], size["width"])
        share = settings.get("crop_pct")
        if share and isinstance(resize, int) and resize < 384:  # ConvNeXt: resize by the share, then crop to size
            resize, box = int(resize / share), (resize, resize)
        elif share and isinstance(resize, int):  # from there on it squashes
            resize = (resize, resize)
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
