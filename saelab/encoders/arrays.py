"""An encoder for vectors that somebody has computed already."""

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import normalize

from saelab.arrays import as_tensor
from saelab.artifacts import ensure
from saelab.encoders.embed import CODE, ImageEmbeddings
from saelab.errors import UserError
from saelab.images import ImageSet


class ArrayEncoder:
    """Looks up the vectors of known texts; it cannot embed a picture or another text."""

    templates: tuple[str, ...] = ("{}",)

    def __init__(self, texts: Sequence[str], vectors: Any, name: str = "arrays") -> None:
        """`vectors`: [texts, d_text] of any length. UserError where they don't fit, and for a text with two of them."""
        found = _rows(vectors, len(texts), "embeddings.labels")
        first: dict[str, int] = {}
        for row, text in enumerate(texts):
            if not torch.equal(found[first.setdefault(text, row)], found[row]):
                what = f"has two vectors, in rows {first[text]} and {row}"
                raise UserError("vocabulary", text, what, "give each word once")
        self.name, self._vectors = name, dict(zip(texts, _to_unit_length(found), strict=True))
        self._d_text = found.shape[1]
        self.recipe: dict[str, Any] = {"encoder": name, "texts": list(texts), "digest": _digest(found)}

    @property
    def d_text(self) -> int:
        """Dimensions of the space."""
        return self._d_text

    def transform(self, image: Any) -> Tensor:
        """Raises UserError: vectors of new pictures are unknown."""
        raise UserError("encoder", self.name, "holds vectors of given texts only", "give an encoder to embed pictures")

    def embed_batch(self, batch: Tensor) -> dict[str, Tensor]:
        """Raises UserError, as `transform`."""
        return {"images": self.transform(batch)}

    def embed_sentences(self, sentences: Sequence[str]) -> Float[Tensor, "sentences d_text"]:
        """The vectors of known texts. Raises UserError for another text."""
        unknown = [text for text in sentences if text not in self._vectors]
        if unknown:
            raise UserError(
                "vocabulary", unknown[0], "has no vector among the given ones", "give a vector for each word"
            )
        return torch.stack([self._vectors[text] for text in sentences])


def adopt_embeddings(vectors: Any, images: ImageSet, root: Path | str) -> ImageEmbeddings:
    """Image vectors [images, d_text] that the caller has, as an artifact; scaled to length 1.

    Raises UserError for another number of rows, for numbers that are not finite and for rows of zeros.
    """
    from safetensors.torch import save_file

    found = _to_unit_length(_rows(vectors, len(images), "embeddings"))
    recipe = {"stage": "embeddings", "code": CODE, "given": _digest(found), "images": images.fingerprint}

    def build(folder: Path) -> None:
        save_file({"images": found.contiguous()}, str(folder / "embeddings.safetensors"))

    return ImageEmbeddings(ensure(root, "embeddings", f"{images.name}-given", recipe, build), found, {})


def _rows(vectors: Any, count: int, setting: str) -> Float[Tensor, "rows d_text"]:
    found = as_tensor(vectors, setting).cpu()
    found = (found if found.layout == torch.strided else found.to_dense()).float()
    if found.ndim != 2 or len(found) != count:
        raise UserError(setting, tuple(found.shape), f"expected [{count}, d_text], a row each")
    if not bool(torch.isfinite(found).all()):
        raise UserError(setting, tuple(found.shape), "holds numbers that are not finite", "leave those rows out")
    if len(zeros := (found == 0).all(dim=1).nonzero()):
        what = f"row {int(zeros[0])} is zero everywhere and points nowhere"
        raise UserError(setting, tuple(found.shape), what, "leave such rows out")
    return found


def _to_unit_length(rows: Tensor) -> Tensor:
    """In float32, and where that can't hold a row's squares in float64, which holds all of them."""
    found = normalize(rows, dim=1)
    odd = (torch.linalg.vector_norm(found, dim=1) - 1).abs() > 1e-3
    found[odd] = normalize(rows[odd].double(), dim=1, eps=1e-300).float()
    return found


def _digest(rows: Tensor) -> str:
    return hashlib.sha256(rows.contiguous().numpy().tobytes()).hexdigest()
