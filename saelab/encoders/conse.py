"""ConSE (Norouzi et al., ICLR 2014): an image-text space out of a classifier and a sentence encoder. It is not CLIP.

An image is the probability-weighted mean of the sentence vectors of the ten ImageNet classes that a classifier finds in
it; a text is its own sentence vector. So it sees only what 1000 ImageNet classes span: no colours, textures, counts or
scenes. Its worth is that it needs no hub.
"""

from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from PIL import Image
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.nn.functional import normalize

from saelab import hosts
from saelab.artifacts import digest, ensure, file_digest
from saelab.encoders.sentences import PACKAGED, SentenceEncoder, packaged_minilm
from saelab.images.user_cache import user_cache
from saelab.names import imagenet_definitions, imagenet_names


class ConSE:
    """EfficientNet-Lite2's ten most probable classes, each as the MiniLM vector of "class name: definition"."""

    templates: tuple[str, ...] = ("{}",)
    best = 10  # classes that make an image's vector (T in the paper)

    def __init__(self, classifier: str = "efficientnet_lite2", device: str = "cpu") -> None:
        self.host = hosts.load(classifier, device=device)
        self.device = device
        self.name = f"ConSE ({classifier} + {PACKAGED})"
        self.recipe: dict[str, Any] = {
            "encoder": "conse",
            "classifier": classifier,
            "weights": self.host.digest,
            "transform": self.host.transform_spec,
            "sentences": file_digest(packaged_minilm() / "model.safetensors"),
            "classes": digest(list(_class_texts())),
            "best": self.best,
        }

    @cached_property
    def sentences(self) -> SentenceEncoder:
        """The text side; loaded when first used, for a run from caches never needs it."""
        return SentenceEncoder(device=self.device)

    @property
    def d_text(self) -> int:
        """384."""
        return self.sentences.d_text

    @cached_property
    def classes(self) -> Float[Tensor, "classes d_text"]:
        """The sentence vector of "class name: definition" for each of the 1000 classes.

        They depend on packages alone, so they are kept for all runs of this user.
        """
        recipe = {key: self.recipe[key] for key in ("encoder", "sentences", "classes")}

        def build(folder: Path) -> None:
            save_file({"classes": self.sentences.embed_sentences(_class_texts())}, str(folder / "classes.safetensors"))

        try:
            kept = ensure(user_cache(), "vectors", "imagenet classes", recipe, build)
        except OSError:  # nothing can be written there
            return self.sentences.embed_sentences(_class_texts())
        return load_file(str(kept.path / "classes.safetensors"))["classes"]

    def transform(self, image: Image.Image) -> Float[Tensor, "3 height width"]:
        """The classifier's own transform."""
        return self.host.transform(image)

    @torch.inference_mode()
    def embed_batch(self, batch: Float[Tensor, "images 3 height width"]) -> dict[str, Tensor]:
        """`images` [images, d_text] of unit length, and `probabilities` [images, 1000] of the classifier, float32."""
        logits = self.host.logits(batch).float().cpu()
        probabilities = logits.softmax(-1)
        top, index = probabilities.topk(self.best, dim=-1)
        mixed = torch.einsum("nk,nkd->nd", top, self.classes[index])
        return {"images": normalize(mixed, dim=-1), "probabilities": probabilities}

    def embed_sentences(self, sentences: Sequence[str]) -> Float[Tensor, "sentences d_text"]:
        """MiniLM vectors of unit length."""
        return self.sentences.embed_sentences(sentences)


def _class_texts() -> list[str]:
    return [f"{n}: {d}" for n, d in zip(imagenet_names(), imagenet_definitions(), strict=True)]
