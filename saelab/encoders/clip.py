"""CLIP-like encoders: open_clip models, and CLIP / SigLIP of transformers, by hub name or local path."""

from collections.abc import Sequence
from typing import Any

import torch
from jaxtyping import Float
from PIL import Image
from torch import Tensor
from torch.nn.functional import normalize

from saelab.encoders.base import CSP_PAPER_TEMPLATES, in_batches
from saelab.errors import UserError
from saelab.hosts import open_clip_names, weights_digest


class OpenClip:
    """A model of open_clip: `ViT-B-32/` and a tag, a file, `TAG@FILE` or `random`; `hf-hub:REPO`; `local-dir:FOLDER`.

    The last two carry their own weights. A file's pictures are preprocessed as the tag's were, or as those of all the
    architecture's tags, where these agree. Raises UserError for an unknown model, for weights that are not available
    (random ones are never a stand-in), and where the preprocessing or the GELU is not the weights' own.
    """

    templates: tuple[str, ...] = CSP_PAPER_TEMPLATES

    def __init__(self, name: str, device: str = "cpu", seed: int = 0) -> None:
        import open_clip

        whole = name.startswith(("hf-hub:", "local-dir:"))
        choice = open_clip_names.parse(name, "encoder")
        architecture, weights = choice.architecture, choice.weights
        if not weights and not whole:
            tags = ", ".join(open_clip.list_pretrained_tags_by_model(architecture)[:4])
            remedy = f"write it like open_clip:{architecture}/TAG{f' (known tags: {tags} ...)' if tags else ''}"
            raise UserError("encoder", f"open_clip:{name}", "names no weights", f"{remedy}, or /FILE, or /random")
        settings = {f"image_{key}": value for key, value in (choice.preprocess or {}).items()}
        try:
            if weights == "random":
                torch.manual_seed(seed)
                model, _, transform = open_clip.create_model_and_transforms(architecture, device=device, **settings)
            else:
                model, transform = open_clip.create_model_from_pretrained(
                    architecture, weights or None, device=device, **settings
                )
        except (RuntimeError, OSError, ValueError) as error:
            raise UserError(
                "encoder",
                f"open_clip:{name}",
                f"its weights could not be loaded ({str(error).splitlines()[0][:200]})",
                "without access to a hub, give a local checkpoint (open_clip:ViT-B-32/FILE) or use encoder=conse",
            ) from None
        self.model, self._transform, self.device = model.eval(), transform, device
        self.tokenizer = open_clip.get_tokenizer(architecture)
        self.name = f"open_clip {architecture} ({weights})" if weights else f"open_clip {architecture}"
        self.recipe: dict[str, Any] = {
            "encoder": "open_clip",
            "weights": weights_digest(model),
            "model": architecture,
            "transform": open_clip.get_model_preprocess_cfg(model),
        }
        self.d_text = int(self.embed_sentences(["a"]).shape[1])

    def transform(self, image: Image.Image) -> Float[Tensor, "3 height width"]:
        """The model's own inference transform."""
        result: Tensor = self._transform(image)
        return result

    @torch.inference_mode()
    def embed_batch(self, batch: Float[Tensor, "images 3 height width"]) -> dict[str, Tensor]:
        """`images` [images, d_text] of unit length, float32."""
        features: Any = self.model.encode_image(batch.to(self.device))
        return {"images": normalize(features.float(), dim=-1).cpu()}

    @torch.inference_mode()
    def _embed(self, sentences: Sequence[str]) -> Tensor:
        features: Any = self.model.encode_text(self.tokenizer(list(sentences)).to(self.device))
        return normalize(features.float(), dim=-1)

    def embed_sentences(self, sentences: Sequence[str]) -> Float[Tensor, "sentences d_text"]:
        """Text features of unit length, float32."""
        return in_batches(self._embed, sentences, 256, "embed texts")


class TransformersClip:
    """CLIP, SigLIP or SigLIP 2 of transformers, from a hub name or a local folder."""

    templates: tuple[str, ...] = CSP_PAPER_TEMPLATES

    def __init__(self, name: str, device: str = "cpu") -> None:
        from transformers import AutoModel, AutoProcessor

        try:
            self.model: Any = AutoModel.from_pretrained(name).to(device).eval()
            self.processor: Any = AutoProcessor.from_pretrained(name)
        except (OSError, ValueError, ImportError) as error:  # ImportError: SigLIP's tokenizer wants sentencepiece
            raise UserError(
                "encoder",
                f"transformers:{name}",
                f"could not be loaded ({' '.join(str(error).split())[:200]})",
                "give a local folder made by save_pretrained, or use encoder=conse",
            ) from None
        if not hasattr(self.model, "get_image_features"):
            raise UserError(
                "encoder", f"transformers:{name}", "has no image-text space", "choose a CLIP or SigLIP model"
            )
        if hasattr(self.model.config.vision_config, "num_patches"):
            wanted = "choose a SigLIP 2 model of fixed resolution, such as google/siglip2-base-patch16-224"
            raise UserError(
                "encoder", f"transformers:{name}", "takes pictures in patches of any number (NaFlex)", wanted
            )
        self.device, self.name = device, f"transformers {name}"
        # SigLIP was trained on texts padded to their full length; CLIP's attention mask makes padding harmless. The
        # length is the model's: SigLIP 2's tokenizer knows none.
        self._padding = "max_length" if "siglip" in self.model.config.model_type else True
        self._longest = int(self.model.config.text_config.max_position_embeddings)
        self.recipe: dict[str, Any] = {
            "encoder": "transformers",
            "weights": weights_digest(self.model),
            "processor": self.processor.image_processor.to_dict() | {"_processor_class": None},
        }
        if self._padding == "max_length":  # it decides the vectors
            self.recipe["text_tokens"] = self._longest
        self.d_text = int(self.embed_sentences(["a"]).shape[1])

    def transform(self, image: Image.Image) -> Float[Tensor, "3 height width"]:
        """The processor's own preprocessing."""
        pixels: Tensor = self.processor.image_processor(images=image, return_tensors="pt")["pixel_values"][0]
        return pixels

    @torch.inference_mode()
    def embed_batch(self, batch: Float[Tensor, "images 3 height width"]) -> dict[str, Tensor]:
        """`images` [images, d_text] of unit length, float32."""
        features = _pool(self.model.get_image_features(pixel_values=batch.to(self.device)))
        return {"images": normalize(features.float(), dim=-1).cpu()}

    @torch.inference_mode()
    def _embed(self, sentences: Sequence[str]) -> Tensor:
        tokens = self.processor.tokenizer(
            list(sentences), padding=self._padding, truncation=True, max_length=self._longest, return_tensors="pt"
        )
        features = _pool(self.model.get_text_features(**tokens.to(self.device)))
        return normalize(features.float(), dim=-1)

    def embed_sentences(self, sentences: Sequence[str]) -> Float[Tensor, "sentences d_text"]:
        """Text features of unit length, float32."""
        return in_batches(self._embed, sentences, 256, "embed texts")


def _pool(features: Any) -> Tensor:
    # transformers 5 returns an output object where 4 returned the tensor itself.
    result: Tensor = features if isinstance(features, Tensor) else features.pooler_output
    return result
