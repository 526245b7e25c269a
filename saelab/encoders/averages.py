"""A second reader of texts: averages of word vectors, trained apart from every transformer that saelab uses.

WordLlama (Miller, 2024) took the token table of Llama 2, trained a projection of it on pairs of sentences, and packages
the result: 32,000 rows of 256 numbers. It knows no word order. What it judges was named by another model.
"""

from collections.abc import Sequence
from functools import cached_property
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import normalize

from saelab.encoders.sentences import SentenceEncoder
from saelab.errors import UserError

WEIGHTS = Path("weights/l2_supercat_256.safetensors")
WORDS = Path("tokenizers/l2_supercat_tokenizer_config.json")


class WordAverages:
    """Unit-length means of token vectors: the WordLlama of 256 dimensions that the package wordllama carries."""

    templates = ("{}",)
    name = "WordLlama-256"
    d_text = 256

    def __init__(self, folder: Path) -> None:
        """`folder`: of the package, as `packaged_averages` finds it; the package itself is not imported."""
        self.folder = folder
        self.recipe: dict[str, Any] = {"encoder": "averages", "name": self.name}

    @cached_property
    def _loaded(self) -> tuple[Any, Tensor]:
        from safetensors.torch import load_file
        from tokenizers import Tokenizer

        words = Tokenizer.from_file(str(self.folder / WORDS))
        words.no_padding()
        words.no_truncation()
        return words, load_file(str(self.folder / WEIGHTS))["embedding.weight"].float()

    def embed_sentences(self, texts: Sequence[str]) -> Float[Tensor, "texts 256"]:
        """Vectors of length 1, float32, in the order of `texts`; zeros for a text without a token."""
        words, table = self._loaded
        found = [words.encode(text, add_special_tokens=False).ids for text in texts]
        means = [table[ids].mean(0) if ids else table.new_zeros(self.d_text) for ids in found]
        return normalize(torch.stack(means), dim=-1) if means else torch.empty(0, self.d_text)


def packaged_averages() -> Path | None:
    """The folder of the package wordllama; None where it, or a file of it that is needed, is missing."""
    spec = find_spec("wordllama")
    if spec is None or spec.origin is None:
        return None
    folder = Path(spec.origin).parent
    return folder if (folder / WEIGHTS).is_file() and (folder / WORDS).is_file() else None


def second_reader(name: str | None, device: str = "cpu") -> SentenceEncoder | WordAverages | None:
    """Who reads captions and labels a second time: `auto` (WordLlama where it is installed), None, or a model.

    A model is a local folder or hub name of a transformers text model, mean-pooled. Raises UserError where it can't be
    loaded.
    """
    if name is None:
        return None
    if name != "auto":
        reader = SentenceEncoder(name, device)
        try:
            reader.d_text  # noqa: B018  (loads it: a name that is wrong shall say so before the long work)
        except (OSError, ValueError) as error:
            what = f"no text model to load ({str(error).splitlines()[0][:120]})"
            remedy = "name a folder or a hub's model of transformers, auto or null"
            raise UserError("second_judge", name, what, remedy) from None
        return reader
    folder = packaged_averages()
    return None if folder is None else WordAverages(folder)
