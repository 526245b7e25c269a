"""Decoding ahead of the model: pictures in order, transformed and stacked, by worker processes or inline."""

import sys
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING

import numpy as np
import torch
from jaxtyping import Float, Int
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from saelab.errors import UserError
from saelab.images.crops import Crops

if TYPE_CHECKING:
    from saelab.images.imageset import ImageSet

Transform = Callable[[Image.Image], Float[Tensor, "3 height width"]]
Mistake = tuple[str, str, str, str]  # a UserError's parts: the exception itself does not survive the way from a worker


def batches(
    images: "ImageSet",
    transform: Transform,
    batch_size: int = 32,
    workers: int = 0,
    ids: Sequence[int] | np.ndarray | None = None,
    crops: Crops | None = None,
) -> Iterator[tuple[Int[np.ndarray, "batch"], Float[Tensor, "batch 3 height width"]]]:
    """Yields (ids int64 [batch], pictures float32 [batch, 3, height, width]) in the order of `ids` (default: all).

    workers: processes that decode and transform ahead, two batches each; 0 does it inline. On Linux they are forked,
    so that `transform` may be anything; elsewhere it must be picklable. The order and the values are the same for
    every number of workers. `crops`: what `transform` is given of each of `ids`, instead of the whole picture. Raises
    UserError for a picture that can't be read any more (its name and the reason) and for a worker that dies.
    """
    order = np.arange(len(images), dtype=np.int64) if ids is None else np.asarray(ids, dtype=np.int64)
    if batch_size < 1 or workers < 0:
        raise UserError("batch_size, workers", (batch_size, workers), "batch_size >= 1 and workers >= 0")
    data = _Pictures(images, transform, order, crops)
    context = ("fork" if sys.platform == "linux" else "spawn") if workers else None
    loading = DataLoader(data, batch_size, num_workers=workers, collate_fn=_stack, multiprocessing_context=context)
    start = 0
    for batch in _guard(iter(loading), workers):
        if isinstance(batch, tuple):
            raise UserError(*batch)
        yield order[start : start + len(batch)], batch
        start += len(batch)


class _Pictures(Dataset):
    def __init__(
        self, images: "ImageSet", transform: Transform, order: Int[np.ndarray, "chosen"], crops: Crops | None
    ) -> None:
        self.images, self.transform, self.order, self.crops = images, transform, order, crops

    def __len__(self) -> int:
        return len(self.order)

    def __getitems__(self, rows: list[int]) -> list[Tensor] | list[Mistake]:
        """A batch at once: of a streamed set it is one stretch of its shard."""
        try:
            pictures = self.images.pictures(self.order[rows].tolist())
            if self.crops is not None:
                pictures = map(self.crops.cut, pictures, rows)
            return [self.transform(picture) for picture in pictures]
        except UserError as error:
            return [(error.setting, str(error.value), error.expected, error.remedy)]


def _stack(items: list) -> Tensor | Mistake:
    for item in items:
        if isinstance(item, tuple):
            return item
    shapes = {tuple(x.shape) for x in items}
    if len(shapes) > 1:
        return "transform", str(sorted(shapes)), "must give pictures of one size", "let it crop or resize"
    return torch.stack(items)


def _guard(loading: Iterator, workers: int) -> Iterator:
    while True:
        try:
            batch = next(loading)
        except StopIteration:
            return
        except RuntimeError as error:
            if workers and "DataLoader worker" in str(error):
                reason = " ".join(str(error).split())[:160]
                raise UserError(
                    "workers", workers, f"a decoding process died ({reason})", "often out of memory: use fewer, or 0"
                ) from None
            raise
        yield batch
