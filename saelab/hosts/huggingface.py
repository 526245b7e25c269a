"""Hosts from transformers: vision models, and the vision towers of CLIP, SigLIP and vision-language models."""

from typing import Any

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
    for key in _UNUSED:
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
