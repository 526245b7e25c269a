"""ImageSet: pictures with ids, what is known about them, and honest splits; the object that every later stage takes."""

import operator
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, overload

import numpy as np
from jaxtyping import Bool, Float, Int
from PIL import Image
from torch import Tensor

from saelab import artifacts
from saelab.errors import UserError
from saelab.images import decode, loader, remote, spots
from saelab.images.crops import Crops
from saelab.images.splits import SPLITS


class _Load:
    """`images.load(i)` is a picture; `ImageSet.load(folder)` is the set that `images.save(folder)` wrote."""

    @overload
    def __get__(self, instance: None, owner: "type[ImageSet]") -> "Callable[[Path | str], ImageSet]": ...
    @overload
    def __get__(self, instance: "ImageSet", owner: "type[ImageSet]") -> Callable[[int], Image.Image]: ...
    def __get__(self, instance: "ImageSet | None", owner: "type[ImageSet]") -> Callable[..., Any]:
        return owner.read if instance is None else instance.picture


@dataclass(frozen=True, eq=False, repr=False)
class ImageSet:
    """Pictures by row number (the image id), the truth known about them, their splits and near-duplicate groups."""

    name: str  # a short name for people
    root: Path  # the folder that `files` are relative to
    files: tuple[str, ...]  # relative, "/" between the parts, sorted (a stream's: as they come); the position is the id
    captions: tuple[str | None, ...]  # a sentence or a few words, where known
    classes: tuple[tuple[str, ...], ...]  # concepts true of the picture; several, or none
    splits: np.ndarray  # [images] of "mine" | "show" | "test"
    groups: Int[np.ndarray, "images"]  # near-duplicate group: equal number = same picture
    fingerprint: str  # SHA-256 of contents, names, truth and splits; the same wherever the files lie
    skipped: tuple[tuple[str, str], ...] = ()  # (file, reason) of what was found and could not be used
    credit: str = ""  # whose pictures, under which licence
    sizes: tuple[tuple[int, int], ...] = ()  # (width, height) in pixels, upright
    masks: tuple[str | None, ...] = ()  # label image of each picture, relative to root; () where there are none
    mask_names: tuple[str, ...] = ()  # the name of pixel value 0, 1, ... of the label images
    square: bool = False  # pad to a white square when loading (cut-outs on white)
    credits: dict[str, str] = field(default_factory=dict)  # file -> author and licence, where each has its own
    spots: tuple[remote.Spot, ...] = ()  # where each picture's bytes lie, if they are streamed; () for files

    load = _Load()

    def __len__(self) -> int:
        return len(self.files)

    def __repr__(self) -> str:
        named = len({name for own in self.classes for name in own})
        known = f"{sum(map(bool, self.captions))} captions, {named} classes"
        splits = ", ".join(f"{count} {split}" for split, count in self.counts.items())
        return f"ImageSet({self.name}: {len(self)} images ({splits}), {known}, {len(self.skipped)} skipped)"

    def path(self, i: int) -> Path:
        """Where picture `i` lies. Raises UserError for a number that no picture has."""
        try:
            return self.root / self.files[operator.index(i)]
        except (TypeError, IndexError):
            what = f"{self.name} has pictures 0 to {len(self) - 1}" if len(self) else f"{self.name} has no pictures"
            raise UserError("image", i, what, "give the number of one") from None

    def picture(self, i: int) -> Image.Image:
        """Picture `i`: RGB, upright, longer side at most 2048. Raises UserError where it can't be read any more."""
        return next(self.pictures([i]))

    def pictures(self, ids: Sequence[int]) -> Iterator[Image.Image]:
        """Pictures one after the other; of a streamed set, those that lie together are fetched together."""
        paths = [self.path(i) for i in ids]
        sources: Iterator[Path | bytes] = iter(paths)
        if self.spots:
            sources = spots.read([self.spots[i] for i in ids])
        for path in paths:
            try:
                yield decode.decode(next(sources), self.square)
            except (decode.Unreadable, remote.Changed, OSError) as error:
                raise self._gone(path, error) from None

    def mask(self, i: int) -> Int[np.ndarray, "height width"]:
        """Class number of every pixel of picture `i`, in the label image's own resolution, -1 where padded.

        Names of the numbers: `mask_names`. Raises UserError where the picture has no label image.
        """
        path = self.path(i)
        file = self.masks[i] if self.masks else None
        if file is None:
            raise UserError(
                "image", path.relative_to(self.root).as_posix(), "has no label image", "give images.masks=FOLDER"
            )
        try:
            labels = decode.decode_labels(self.root / file)
        except (decode.Unreadable, OSError) as error:
            raise self._gone(self.root / file, error) from None
        if not self.square:
            return labels
        height, width = labels.shape
        side = max(labels.shape)
        padded = np.full((side, side), -1, dtype=np.int64)
        top, left = (side - height) // 2, (side - width) // 2
        padded[top : top + height, left : left + width] = labels
        return padded

    def ids(self, split: str | None = None) -> Int[np.ndarray, "images"]:
        """Image ids of a split (`mine`, `show`, `test`), or of all, ascending."""
        if split is None:
            return np.arange(len(self), dtype=np.int64)
        if split not in SPLITS:
            raise UserError("split", split, f"one of {', '.join(SPLITS)}")
        return np.flatnonzero(self.splits == split).astype(np.int64)

    def require(self, count: int, split: str | None = None, purpose: str = "") -> None:
        """Raise UserError unless the split (or the set) holds at least `count` images."""
        found = len(self.ids(split))
        if found < count:
            where = f"the {split} split of {self.name}" if split else self.name
            raise UserError(
                "images",
                f"{found} in {where}",
                f"at least {count} are needed{f' for {purpose}' if purpose else ''}",
                "give more pictures, other images.fractions, or a smaller k",
            )

    def truth(self) -> tuple[tuple[str, ...], Bool[np.ndarray, "images concepts"]]:
        """All class names, sorted, and which image has which."""
        names = tuple(sorted({c for own in self.classes for c in own}))
        column = {name: j for j, name in enumerate(names)}
        table = np.zeros((len(self), len(names)), dtype=bool)
        for i, own in enumerate(self.classes):
            table[i, [column[c] for c in own]] = True
        return names, table

    def batches(
        self,
        transform: Callable[[Image.Image], Float[Tensor, "3 height width"]],
        batch_size: int = 32,
        workers: int = 0,
        ids: Sequence[int] | np.ndarray | None = None,
        crops: Crops | None = None,
    ) -> Iterator[tuple[Int[np.ndarray, "batch"], Float[Tensor, "batch 3 height width"]]]:
        """Decoded and transformed pictures in the order of `ids`; see `saelab.images.loader.batches`."""
        return loader.batches(self, transform, batch_size, workers, ids, crops)

    @cached_property
    def counts(self) -> dict[str, int]:
        """Images per split."""
        return {split: len(self.ids(split)) for split in SPLITS}

    def save(self, folder: Path | str) -> None:
        """Write images.jsonl and images.json (formats: docs/architecture.md) into an existing folder."""
        folder = Path(folder)
        artifacts.write_jsonl(folder / "images.jsonl", [self._row(i) for i in range(len(self))])
        head = {
            "name": self.name,
            "root": str(Path(self.root).resolve()),
            "fingerprint": self.fingerprint,
            "credit": self.credit,
            "skipped": self.skipped,
            "mask_names": self.mask_names,
            "square": self.square,
        }
        artifacts.write_json(folder / "images.json", head)

    @classmethod
    def read(cls, folder: Path | str) -> "ImageSet":
        """The set that `save` wrote there."""
        folder = Path(folder)
        head, rows = artifacts.read_json(folder / "images.json"), artifacts.read_jsonl(folder / "images.jsonl")
        return cls(
            name=head["name"],
            root=Path(head["root"]),
            files=tuple(r["file"] for r in rows),
            captions=tuple(r["caption"] for r in rows),
            classes=tuple(tuple(r["classes"]) for r in rows),
            splits=np.array([r["split"] for r in rows], dtype="<U4"),
            groups=np.array([r["group"] for r in rows], dtype=np.int64),
            fingerprint=head["fingerprint"],
            skipped=tuple((file, reason) for file, reason in head["skipped"]),
            credit=head["credit"],
            sizes=tuple((r["width"], r["height"]) for r in rows if "width" in r),
            masks=tuple(r.get("mask") for r in rows) if any("mask" in r for r in rows) else (),
            mask_names=tuple(head["mask_names"]),
            square=head["square"],
            credits={r["file"]: r["credit"] for r in rows if "credit" in r},
            spots=tuple(remote.spot(r) for r in rows if "shard" in r),
        )

    def _row(self, i: int) -> dict[str, Any]:
        row: dict[str, Any] = {
            "id": i,
            "file": self.files[i],
            "caption": self.captions[i],
            "classes": self.classes[i],
            "split": str(self.splits[i]),
            "group": int(self.groups[i]),
        }
        if self.sizes:
            row |= {"width": self.sizes[i][0], "height": self.sizes[i][1]}
        if self.masks:
            row["mask"] = self.masks[i]
        if self.files[i] in self.credits:
            row["credit"] = self.credits[self.files[i]]
        if self.spots:
            row |= remote.row(self.spots[i])
        return row

    def _gone(self, path: Path, error: Exception) -> UserError:
        if not self.sizes and not self.spots:
            remedy = "give their vectors too: embeddings={'images': ..., 'labels': ...}, or images=FOLDER"
            return UserError("images", self.name, "are rows of arrays, without pictures to look at", remedy)
        if self.spots:
            file = path.relative_to(self.root)
            return UserError("image", file, f"can't be read any more ({error})", "see that its shard can be reached")
        return UserError(
            "image", path, f"can't be read any more ({error})", "put the file back, or run the images stage again"
        )
