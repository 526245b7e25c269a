"""What an image-text encoder is, and how a label's templates become one vector."""

from collections.abc import Callable, Sequence
from typing import Any, Protocol

import torch
from jaxtyping import Float
from PIL import Image
from torch import Tensor
from torch.nn.functional import normalize

from saelab import bars
from saelab.errors import UserError

# The CSP authors' templates (arXiv 2604.22477; their public code).
CSP_PAPER_TEMPLATES = (
    "{}",
    "{}-like",
    "a {}",
    "an image of a {}",
    "a closeup of a {}",
    "an image of a closeup of {}",
)


class Encoder(Protocol):
    """Images and texts in one space of `d_text` dimensions; every vector has length 1."""

    name: str  # as a person would cite it
    recipe: dict[str, Any]  # all that its vectors depend on: architecture, weights' digest, transform
    templates: tuple[str, ...]  # the templates that suit it

    @property
    def d_text(self) -> int:
        """Dimensions of the space."""
        ...

    def transform(self, image: Image.Image) -> Float[Tensor, "3 height width"]:
        """A picture as the encoder's own input."""
        ...

    def embed_batch(self, batch: Float[Tensor, "images 3 height width"]) -> dict[str, Float[Tensor, "images ..."]]:
        """`{"images": [images, d_text] unit length, ...}`; further keys are by-products worth keeping."""
        ...

    def embed_sentences(self, sentences: Sequence[str]) -> Float[Tensor, "sentences d_text"]:
        """One unit-length vector a sentence, float32."""
        ...


def embed_templates(
    embed_sentences: Callable[[Sequence[str]], Tensor],
    labels: Sequence[str],
    templates: Sequence[str] = ("{}",),
    renormalize: bool = True,
) -> Float[Tensor, "labels d_text"]:
    """The mean over templates of each label's unit-length sentence vectors.

    `renormalize=False` leaves the mean as it is (shorter than 1), as in the CSP authors' code; a score that is a
    cosine does not change, one that is a product does. Raises UserError for a template without `{}`.
    """
    for template in templates:
        if "{}" not in template:
            raise UserError("template", repr(template), "has no {} for the label", 'write it like "a photo of a {}"')
    total: Tensor | None = None
    for template in templates:
        vectors = embed_sentences([template.replace("{}", label) for label in labels]).float()
        total = vectors if total is None else total + vectors
    if total is None:
        raise UserError("templates", list(templates), "expected at least one template", 'use ["{}"] for the bare label')
    mean = total / len(templates)
    return normalize(mean, dim=-1) if renormalize else mean


def in_batches(function: Callable[[Sequence[str]], Tensor], texts: Sequence[str], size: int, title: str) -> Tensor:
    """`function` over `texts` in batches, with a progress bar once there is enough to wait for."""
    starts = range(0, len(texts), size)
    bar = bars.show(starts, what=title, unit="batch", hidden=len(starts) < 8)
    return torch.cat([function(texts[i : i + size]).cpu() for i in bar])
