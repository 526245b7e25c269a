"""Embeddings as artifacts: images and labels go through an encoder once, survive a kill, and are reused by recipe."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from saelab import bars
from saelab.artifacts import Artifact, ensure, write_json
from saelab.encoders.averages import WordAverages
from saelab.encoders.base import Encoder, embed_templates
from saelab.encoders.sentences import SentenceEncoder
from saelab.errors import UserError
from saelab.images import ImageSet

CODE = 1  # version of this stage; part of every recipe


@dataclass(frozen=True)
class ImageEmbeddings:
    """What an encoder makes of an image set."""

    artifact: Artifact  # where it lies
    images: Tensor  # [images, d_text] float32, unit length, in the order of image ids
    extra: dict[str, Tensor]  # by-products, e.g. ConSE's class probabilities [images, 1000]


def image_embeddings(
    images: ImageSet, encoder: Encoder, root: Path | str, batch_size: int = 32, workers: int = 0
) -> ImageEmbeddings:
    """Embed every image, or reuse what is on disk. Killed runs go on where they stopped."""
    recipe: dict[str, Any] = {"stage": "embeddings", "code": CODE, "encoder": encoder.recipe}
    recipe |= {"images": images.fingerprint}

    def build(folder: Path) -> None:
        _embed_images(images, encoder, folder, batch_size, workers)

    artifact = ensure(root, "embeddings", f"{images.name}-{recipe['encoder']['encoder']}", recipe, build)
    tensors = _load(artifact.path / "embeddings.safetensors")
    return ImageEmbeddings(artifact, tensors.pop("images"), tensors)


def _embed_images(images: ImageSet, encoder: Encoder, folder: Path, batch_size: int, workers: int) -> None:
    """Parts of 8 batches each are written as they are done; a resumed run skips the parts that are there."""
    from safetensors.torch import save_file

    parts = folder / "parts"
    parts.mkdir(exist_ok=True)
    per_part = 8 * batch_size
    wanted = {
        i: parts / f"{i:09d}-{min(i + per_part, len(images)):09d}.safetensors" for i in range(0, len(images), per_part)
    }
    for file in set(parts.iterdir()) - set(wanted.values()):
        file.unlink()  # begun with another batch size: its rows would overlap ours
    starts = [i for i, file in wanted.items() if not file.exists()]
    todo = np.concatenate([np.arange(i, min(i + per_part, len(images))) for i in starts] or [np.arange(0)])
    done: dict[str, list[Tensor]] = {}
    with bars.show(
        total=len(images), initial=len(images) - len(todo), what=f"embed images, {encoder.name}", unit="img"
    ) as bar:
        for ids, batch in images.batches(encoder.transform, batch_size, workers=workers, ids=todo):
            for key, value in encoder.embed_batch(batch).items():
                done.setdefault(key, []).append(value)
            bar.update(len(ids))
            last = int(ids[-1])
            if (last + 1) % per_part == 0 or last + 1 == len(images):
                joined = {key: torch.cat(values).contiguous() for key, values in done.items()}
                temporary = parts / ".writing"
                save_file(joined, str(temporary))
                temporary.replace(wanted[last // per_part * per_part])
                done = {}
    loaded = [_load(file) for file in wanted.values()]
    save_file({k: torch.cat([p[k] for p in loaded]) for k in loaded[0]}, str(folder / "embeddings.safetensors"))
    for file in wanted.values():
        file.unlink()
    parts.rmdir()


def label_embeddings(
    labels: Sequence[str],
    encoder: Encoder | SentenceEncoder | WordAverages,
    root: Path | str,
    templates: Sequence[str] | None = None,
    renormalize: bool = True,
) -> Float[Tensor, "labels d_text"]:
    """Vectors of the labels in the encoder's space, float32, reused by recipe. `templates=None`: the encoder's own."""
    if not labels:
        raise UserError("vocabulary", "[]", "there is no label to embed", "give a vocabulary with at least one label")
    templates = tuple(templates) if templates is not None else encoder.templates
    settings: dict[str, Any] = {"templates": list(templates), "renormalize": renormalize, "labels": list(labels)}
    recipe: dict[str, Any] = {"stage": "embeddings", "code": CODE, "encoder": encoder.recipe} | settings

    def build(folder: Path) -> None:
        from safetensors.torch import save_file

        vectors = embed_templates(encoder.embed_sentences, labels, templates, renormalize)
        save_file({"labels": vectors.contiguous()}, str(folder / "embeddings.safetensors"))
        write_json(folder / "texts.json", settings)

    artifact = ensure(root, "embeddings", f"labels-{recipe['encoder']['encoder']}", recipe, build)
    return _load(artifact.path / "embeddings.safetensors")["labels"]


def _load(path: Path) -> dict[str, Tensor]:
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        return load_file(str(path))
    except (SafetensorError, OSError, json.JSONDecodeError) as error:
        raise UserError(
            "embeddings", path, f"unreadable ({error})", "delete its folder to have it made again"
        ) from None
