"""What a caller brings instead of settings: a model, arrays, embeddings, words, SAEs trained elsewhere."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch import nn

from saelab.cache.arrays import opened
from saelab.encoders import Encoder
from saelab.errors import UserError
from saelab.hosts import Host
from saelab.hosts.transform import Transform
from saelab.images import ImageSet
from saelab.label.vocabulary import Vocabulary, pool
from saelab.sae import SAE


@dataclass(frozen=True)
class Given:
    """Objects that stand in for settings; None or empty: the config says."""

    images: ImageSet | None = None
    host: Host | None = None
    encoder: Encoder | None = None
    activations: Mapping[str, Any] = field(default_factory=dict)  # layer -> array, as saelab.cache.adopt takes it
    embeddings: Any = None  # [images, d_text] of the images, in the encoder's space
    vocabulary: Vocabulary | None = None
    saes: tuple[SAE | Path | str, ...] = ()  # of the one layer


def as_host(model: nn.Module, transform: Any, name: str | None = None) -> Host:
    """A host from a model and its transform: saelab.hosts.Transform, a dict of its fields, or any callable.

    Raises UserError where there is no transform.
    """
    if transform is None:
        remedy = "give transform=saelab.hosts.Transform(resize=224), or the callable that the model was trained with"
        raise UserError("transform", None, "a model of your own needs one", remedy)
    if isinstance(transform, Mapping):
        transform = Transform(**transform)
    if not isinstance(transform, Transform):
        from saelab.hosts.callable_transform import CallableTransform

        transform = CallableTransform(transform)
    return Host(model, transform, name or type(model).__name__)


def as_activations(activations: Any, layers: Sequence[str] | None) -> dict[str, Any]:
    """Arrays by layer: a mapping as it is, one array under the name of the one layer (`arrays` by default)."""
    if isinstance(activations, Mapping):
        if not activations:
            raise UserError("activations", "{}", "holds no layer", "give an array, a file, or a dict {layer: array}")
        return {str(layer): array for layer, array in activations.items()}
    names = list(layers or ["arrays"])
    if len(names) != 1:
        raise UserError("activations", names, "one array holds one layer", "give a dict {layer: array}")
    return {names[0]: activations}


def as_encoder(given: Any) -> Encoder:
    """The caller's own encoder. Raises UserError for an object that can't be one."""
    if not callable(getattr(given, "embed_sentences", None)):
        raise UserError("encoder", type(given).__name__, "expected a name, settings or a saelab.encoders.Encoder")
    return given


def as_vocabulary(words: Sequence[str]) -> Vocabulary:
    """A vocabulary of the caller's own words. Raises UserError where there is none, and for what is no word."""
    for place, word in enumerate(words):
        if not isinstance(word, str) or not word.strip():
            raise UserError("vocabulary", repr(word), f"entry {place} is no word", "give texts that are not empty")
    found = pool((word, ("given",)) for word in words)
    if not found.labels:
        raise UserError("vocabulary", list(words), "holds no word", 'give a list such as ["dog", "cat"]')
    return found


def as_embeddings(given: Any, words: Sequence[str] | None) -> tuple[Any, Encoder | None]:
    """[images, d_text], and the encoder that the labels' own vectors make, where the caller brings them too.

    `given`: an array of the images', or {"images": array, "labels": array with a row for each of `words`}; the file of
    one stands for an array. Raises UserError for a file that is none, and for labels without words.
    """
    if not isinstance(given, Mapping):
        return opened(given, "embeddings"), None
    from saelab.encoders.arrays import ArrayEncoder

    missing = {"images", "labels"} - set(given)
    if missing or words is None:
        what = f"lacks {', '.join(sorted(missing))}" if missing else "needs the words of its labels"
        raise UserError("embeddings", list(given), what, 'give {"images": ..., "labels": ...} and vocabulary=[...]')
    labels = opened(given["labels"], "embeddings.labels")
    return opened(given["images"], "embeddings.images"), ArrayEncoder(words, labels)
