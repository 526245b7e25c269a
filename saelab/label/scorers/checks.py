"""Shape checks that scorers share: one line for the user instead of a wrong number or a torch traceback."""

import functools

import torch
from jaxtyping import Float
from torch import Tensor

from saelab.acts import Acts, columns, shape
from saelab.errors import UserError


def check_labels(label_emb: Tensor, d_text: int) -> None:
    """Raise UserError unless there is a label and the labels lie in the images' space."""
    if label_emb.ndim != 2 or not len(label_emb):
        raise UserError("label_emb", tuple(label_emb.shape), "expected at least one label, [labels, d_text]")
    if label_emb.shape[1] != d_text:
        raise UserError(
            "label_emb",
            tuple(label_emb.shape),
            f"the images' embeddings have {d_text} dimensions",
            "embed images and labels with the same encoder",
        )


def check_images(acts: Acts, image_emb: Tensor) -> Acts:
    """The activations by column; raises UserError unless there is one embedding for each image."""
    acts = columns(acts)
    if image_emb.ndim != 2 or len(image_emb) != shape(acts)[0]:
        raise UserError("image_emb", tuple(image_emb.shape), f"expected one row for each of {shape(acts)[0]} images")
    return acts


def similarities(
    acts: Acts, image_emb: Float[Tensor, "images d_text"], label_emb: Float[Tensor, "labels d_text"]
) -> tuple[Acts, Float[Tensor, "images labels"]]:
    """The activations by column and P = E T', checked; P in the embeddings' common dtype (float32 at least)."""
    acts = check_images(acts, image_emb)
    check_labels(label_emb, image_emb.shape[1])
    images, labels = promoted(image_emb, label_emb)
    return acts, images @ labels.T


def promoted(*tensors: Tensor) -> tuple[Tensor, ...]:
    """The same numbers in one dtype that holds them all, float32 at least: products ask for one."""
    dtype = functools.reduce(torch.promote_types, (tensor.dtype for tensor in tensors), torch.float32)
    return tuple(tensor.to(dtype) for tensor in tensors)
