"""Pictures from torchvision datasets and Hugging Face datasets.

Their pictures are copied once, byte for byte where the set keeps encoded files, into a folder of the user's cache;
from then on they are files like any others, with one fingerprint, readable by every later stage and process. A copy
that was broken off goes on where it stopped.
"""

import io
import json
import os
from collections.abc import Callable, Iterator, Mapping
from itertools import islice
from pathlib import Path
from typing import Any

from PIL import Image

from saelab import artifacts, bars
from saelab.errors import UserError
from saelab.images import parquet, remote, sources, streams
from saelab.images.build import Entry, Listing
from saelab.images.decode import SUFFIXES, Unreadable, regular
from saelab.images.streams import Found, Item
from saelab.images.user_cache import user_cache
from saelab.text import visible


def imagenette(split: str = "train", size: str = "320px", root: Path | str | None = None) -> Listing:
    """Imagenette: 13k photos in ten ImageNet classes (fastai; split train or val; size full, 320px or 160px)."""
    from torchvision.datasets import Imagenette

    place = Path(root) if root else user_cache("torchvision")
    place.mkdir(parents=True, exist_ok=True)
    there = place / ("imagenette2" if size == "full" else f"imagenette2-{size.removesuffix('px')}")
    with _refusals("imagenette", "needs the network once; images=packaged and images=folder do not"):
        data = Imagenette(str(place), split=split, size=size, download=not there.is_dir())
    named = {wnid: names[0] for wnid, names in zip(data.wnids, data.classes, strict=True)}
    listing = sources.folder(there / split)
    entries = [Entry(e.file, e.caption, tuple(named[c] for c in e.classes)) for e in listing.entries]
    return Listing(
        f"imagenette-{split}", listing.root, entries, listing.skipped, "Imagenette (fastai), ImageNet's terms"
    )


def torchvision(
    dataset: str, arguments: Mapping[str, Any] | None = None, root: Path | str | None = None, download: bool = True
) -> Listing:
    """A classification set of torchvision.datasets by class name ("CIFAR10"), as PNG files.

    arguments: what its constructor takes, such as {train: false} or {split: test}. root: where torchvision keeps it
    (default: the user's cache). Targets that are class numbers become classes.
    """
    import torchvision.datasets as known

    names = [n for n in known.__all__ if n[0].isupper()]
    if dataset not in names:
        raise UserError("images.dataset", dataset, "no such torchvision dataset", f"one of {', '.join(names)}")
    own = {"root": str(Path(root) if root else user_cache("torchvision")), **dict(arguments or {})}
    if download and dataset not in ("ImageFolder", "DatasetFolder", "ImageNet", "FakeData"):
        own["download"] = True
    if dataset == "FakeData":
        own.pop("root")
    with _refusals(dataset, "check images.arguments and images.root"):
        data = getattr(known, dataset)(**own)
    classes = [c if isinstance(c, str) else c[0] for c in getattr(data, "classes", [])]

    def items(start: int) -> Iterator[Item]:
        for i in range(start, len(data)):
            image, target = data[i]
            label = int(target) if isinstance(target, int) or getattr(target, "ndim", None) == 0 else None
            own_class = () if label is None else (classes[label] if label < len(classes) else str(label),)
            yield Item(_png(image), ".png", None, own_class)

    recipe = {"torchvision": dataset, "arguments": dict(arguments or {}), "root": str(own.get("root", ""))}
    return copy_items(dataset, recipe, items, f"torchvision {dataset}", len(data))


def huggingface(
    dataset: str,
    split: str = "train",
    config: str | None = None,
    image: str = "image",
    caption: str | None = None,
    label: str | None = None,
    streaming: bool = False,
    take: int | None = None,
    stored: bool = True,
) -> Listing:
    """A Hugging Face dataset: a name on the hub, or a folder (one written by `save_to_disk`, or any it can load).

    image, caption, label: its columns. streaming: read it without downloading it whole; take: only its first pictures
    (give it with streaming). stored: copy the pictures that are read; false (with streaming, for sets that lie in
    Parquet files, as most do): keep an index of them instead. Needs the package `datasets`.
    Nine parameters: they are the settings in conf/images/huggingface.yaml, by their names.
    """
    if not stored and not streaming:
        raise UserError("images.stored", stored, "is for streamed sets", "give images.streaming=true too")
    try:
        import datasets
    except ImportError:
        raise UserError("images.source", "huggingface", "needs the package datasets", "pip install datasets") from None
    with _refusals(dataset, "check images.dataset, images.split and images.config"):
        saved = Path(dataset, "state.json").is_file() or Path(dataset, "dataset_dict.json").is_file()
        if saved:
            data = datasets.load_from_disk(dataset)
            data = data[split] if isinstance(data, Mapping) else data
        else:
            data = datasets.load_dataset(dataset, config, split=split, streaming=streaming)
    columns = list(data.features or [])
    for setting, column in (("image", image), ("caption", caption), ("label", label)):
        if column is not None and column not in columns:
            raise UserError(f"images.{setting}", column, "no such column", f"{dataset} has {', '.join(columns)}")
    names = getattr(data.features[label], "names", None) if label else None
    version = getattr(data, "_fingerprint", None)  # of its contents; a stream has none
    data = data.cast_column(image, datasets.Image(decode=False))

    roots = _roots(dataset)

    def item(row: Mapping[str, Any]) -> Item:
        cell = row[image] or {"bytes": b"", "path": None}  # without a picture: listed as unreadable
        place = cell["path"] or ""
        try:
            encoded = cell["bytes"] if cell["bytes"] is not None else _bytes_of(place, roots)
        except (Unreadable, OSError, ValueError) as error:
            return Item(b"", "", name=visible(place), problem=visible(str(error)))
        given = row[label] if label else None
        values = [] if given is None else given if isinstance(given, list) else [given]
        classes = tuple(visible(own) for v in values if (own := _class(v, names)))
        return Item(encoded, _suffix(place), sources.text(row[caption]) if caption else None, classes)

    if not stored:
        used = [column for column in (image, caption, label) if column]
        return _stream(dataset, config, split, used, item, take)

    def items(start: int) -> Iterator[Item]:
        yield from map(item, islice(data.skip(start), None if take is None else max(0, take - start)))

    recipe = {
        "huggingface": dataset,
        "config": config,
        "split": split,
        "columns": [image, caption, label],
        "take": take,
        "version": version,
    }
    return copy_items(Path(dataset).name, recipe, items, f"Hugging Face dataset {dataset}", take)


def _stream(
    dataset: str,
    config: str | None,
    split: str,
    columns: list[str],
    item: Callable[[Mapping[str, Any]], Item],
    take: int | None,
) -> Listing:
    """The listing of a set whose pictures are read where they lie; `columns`: that of pictures, then the others."""
    import datasets

    with _refusals(dataset, "check images.dataset, images.split and images.config"):
        files = datasets.load_dataset_builder(dataset, config).config.data_files
    own = [str(file) for file in (files or {}).get(split, [])]
    if not own or not all(file.endswith(".parquet") for file in own):
        remedy = "give images.stored=true; tars: images=webdataset images.streaming=true"
        raise UserError("images.stored", False, f"{dataset} does not lie in Parquet files", remedy)

    def read(file: str, after: list[int] | None) -> Iterator[Found]:
        return parquet.samples(file, columns, item, after)

    def spot(file: str, place: tuple[int, int], sha256: str) -> remote.Spot:
        return remote.Cell(file, *place, columns[0], sha256)

    recipe = {"parquet": {file: remote.size(file) for file in own}, "columns": columns}
    name, credit = Path(dataset).name, f"Hugging Face dataset {dataset}"
    return streams.listing(streams.Stream(name, own, recipe, read, spot, credit), take)


def copy_items(
    name: str, recipe: dict[str, Any], items: Callable[[int], Iterator[Item]], credit: str, total: int | None
) -> Listing:
    """Copy the items into the user's cache unless they are there; the listing of the copies."""

    def build(folder: Path) -> None:
        table = folder / "pictures.jsonl"
        rows = artifacts.read_jsonl(table) if table.is_file() else []
        artifacts.write_jsonl(table, rows)  # without the line that a kill cut off
        with table.open("a", encoding="utf-8") as out:
            bar = bars.show(
                items(len(rows)), initial=len(rows), total=total, what=f"copying {name}", unit="image", leave=True
            )
            for number, item in enumerate(bar, len(rows)):
                if item.problem is not None:
                    out.write(json.dumps({"file": item.name, "reason": item.problem}, ensure_ascii=False) + "\n")
                    continue
                file = f"{number // 1000:04d}/{number:07d}{item.suffix}"
                target = folder / "pictures" / file
                target.parent.mkdir(parents=True, exist_ok=True)
                target.write_bytes(item.data)
                row = {"file": file, "caption": item.caption, "classes": item.classes}
                out.write(json.dumps(row, ensure_ascii=False) + "\n")
                out.flush()

    folder = artifacts.ensure(user_cache(), "pictures", name, recipe, build).path
    rows = artifacts.read_jsonl(folder / "pictures.jsonl")
    entries = [Entry(r["file"], r["caption"], tuple(r["classes"])) for r in rows if "reason" not in r]
    skipped = [(r["file"], r["reason"]) for r in rows if "reason" in r]
    return Listing(name, folder / "pictures", entries, skipped, credit=credit)


def _roots(dataset: str) -> list[Path]:
    """The folders in which files of a dataset may lie: its own, and where `datasets` keeps what it fetched."""
    import datasets
    from huggingface_hub import constants

    own = [Path(dataset)] if Path(dataset).exists() else []
    kept = [datasets.config.HF_DATASETS_CACHE, datasets.config.DOWNLOADED_DATASETS_PATH, constants.HF_HUB_CACHE]
    return [Path(os.path.realpath(folder)) for folder in [*own, *kept]]


def _bytes_of(place: str, roots: list[Path]) -> bytes:
    """The file that a cell names. Raises Unreadable for one that lies outside the set: nobody may send us anywhere."""
    real = Path(os.path.realpath(place))
    if not any(real.is_relative_to(root) for root in roots):
        raise Unreadable("its cell names a file outside the set")
    with regular(real) as file:
        return file.read()


def _class(value: Any, names: list[str] | None) -> str:
    """A label's name; nothing for a number below 0, which stands for no label."""
    if names and isinstance(value, int):
        return names[value] if 0 <= value < len(names) else "" if value < 0 else str(value)
    return str(value)


class _refusals:
    """Turns what a foreign library raises for a bad name, split or missing network into one line."""

    def __init__(self, dataset: str, remedy: str) -> None:
        self.dataset, self.remedy = dataset, remedy

    def __enter__(self) -> None:
        return None

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        if isinstance(error, Exception) and not isinstance(error, UserError):
            reason = " ".join(f"{type(error).__name__}: {error}".split())[:200]
            raise UserError("images.dataset", self.dataset, f"can't be opened ({reason})", self.remedy) from None


def _png(image: Any) -> bytes:
    if not isinstance(image, Image.Image):
        raise UserError("images.dataset", type(image).__name__, "gives no PIL pictures", "use images=folder")
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    return buffer.getvalue()


def _suffix(path: str) -> str:
    suffix = Path(path).suffix.lower()
    return suffix if suffix in SUFFIXES else ".img"
