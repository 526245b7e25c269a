"""ConSE (Norouzi et al., ICLR 2014): an image-text space out of a classifier and a sentence encoder. It is not CLIP.

An image is the probability-weighted mean of the sentence vectors of the ten ImageNet classes that a classifier finds in
it; a text is its own sentence vector. So it sees only what 1000 ImageNet classes span: no colours, textures, counts or
scenes. Its worth is that it needs no hub.
"""

from collections.abc import Sequence
from typing import Any

import torch
from jaxtyping import Float
from PIL import Image
from torch import Tensor
from torch.nn.functional import normalize

from saelab import hosts
from saelab.encoders.sentences import SentenceEncoder
from saelab.names import imagenet_definitions, imagenet_names


class ConSE:
    """EfficientNet-Lite2's ten most probable classes, each as the MiniLM vector of "class name: definition"."""

    templates = ("{}",)
    best = 10  # classes that make an image's vector (T in the paper)

    def __init__(self, classifier: str = "efficientnet_lite2", device: str = "cpu") -> None:
        self.host = hosts.load(classifier, device=device)
        self.sentences = SentenceEncoder(device=device)
        self.name = f"ConSE ({classifier} + {self.sentences.name})"
        self.d_text = self.sentences.d_text
        self.class_names = imagenet_names()
        texts = [f"{n}: {d}" for n, d in zip(self.class_names, imagenet_definitions(), strict=True)]
        self.classes = self.sentences(texts)
        self.recipe: dict[str, Any] = {
            "encoder": "conse",
            "classifier": classifier,
            "weights": self.host.digest,
            "transform": self.host.transform_spec,
            "sentences": self.sentences.name,
            "best": self.best,
        }

    def transform(self, image: Image.Image) -> Float[Tensor, "3 height width"]:
        """The classifier's own transform."""
        return self.host.transform(image)

    @torch.inference_mode()
    def embed_batch(self, batch: Float[Tensor, "images 3 height width"]) -> dict[str, Tensor]:
        """`images` [images, d_text] of unit length, and `probabilities` [images, 1000] of the classifier, float32."""
        logits = self.host.model(batch.to(self.host.device)).float().cpu()
        probabilities = logits.softmax(-1)
        top, index = probabilities.topk(self.best, dim=-1)
        mixed = torch.einsum("nk,nkd->nd", top, self.classes[index])
        return {"images": normalize(mixed, dim=-1), "probabilities": probabilities}

    def embed_sentences(self, sentences: Sequence[str]) -> Float[Tensor, "sentences d_text"]:
        """MiniLM vectors of unit length."""
        return self.sentences(sentences)
