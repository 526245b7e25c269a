"""Pictures of labels by a generator, for CoSy: a folder with one sub-folder a label, filled as pictures come."""

import re
from collections.abc import Iterator, Sequence
from pathlib import Path

from PIL import Image

from saelab import bars
from saelab.artifacts import atomic, digest
from saelab.errors import UserError
from saelab.evaluate.painters import Generation, Paint
from saelab.files import DEVICES, folder_name


def generate(
    labels: Sequence[str], folder: Path, settings: Generation, source: str = "diffusers", device: str = "cpu"
) -> Path:
    """Write the pictures that are not there yet as `<folder>/<recipe>/<label>/<number>.png`; returns that folder.

    A picture of `diffusers` is seeded by label, number and seed alone, so that a run that was stopped goes on where it
    stopped, and a larger `count` only adds. In a larger `batch` seeds and names are the same, pixels differ by
    rounding. What a server refuses to paint is left out, and asked for again by the next run. Raises UserError where
    the model can't be loaded, for whatever the server says to every request, and where no picture came at all.
    """
    root = _root(folder, settings, source)
    missing = _missing(dict.fromkeys(labels), root, settings)
    if not missing:
        return root
    paint = _painter(settings, source, device)
    total = sum(len(numbers) for numbers in missing.values())
    with bars.show(total=total, what="generate pictures", unit="img", leave=True) as bar:
        for label, numbers in _batches(missing, settings.batch):
            seeds = [int(digest([label, i, settings.seed])[:12], 16) for i in numbers]
            for number, picture in zip(numbers, paint(settings.prompt.format(label), seeds), strict=True):
                if picture is not None:
                    _save(picture, _file(root, label, number))
            bar.update(len(numbers))
    if not root.is_dir():
        what, remedy = f"painted none of {total} pictures", "see why above; name another model, or other words"
        raise UserError("cosy.generate.model", settings.model, what, remedy)
    return root


def count_missing(labels: Sequence[str], folder: Path, settings: Generation, source: str) -> int:
    """How many pictures `generate` would paint; nothing is loaded or asked."""
    missing = _missing(dict.fromkeys(labels), _root(folder, settings, source), settings)
    return sum(len(numbers) for numbers in missing.values())


def files_of(labels: Sequence[str], count: int) -> list[str]:
    """Names, below the folder that `generate` returns, of the first `count` pictures of each label."""
    return [_file(Path(), label, i).as_posix() for label in labels for i in range(count)]


def _root(folder: Path, settings: Generation, source: str) -> Path:
    return folder / f"{Path(settings.model).name}-{_recipe(settings, source)}"


def _recipe(settings: Generation, source: str) -> str:
    names = ["model", "size", "prompt"] + (["steps", "guidance", "seed"] if source == "diffusers" else ["base_url"])
    return digest({"source": source, "code": 2} | {name: getattr(settings, name) for name in names})[:10]


def _missing(labels: dict[str, None], root: Path, settings: Generation) -> dict[str, list[int]]:
    """Per label the numbers of the pictures that are not there; labels that have all are left out."""
    found = {}
    for label in labels:
        if numbers := [i for i in range(settings.count) if not _file(root, label, i).is_file()]:
            found[label] = numbers
    return found


def _batches(missing: dict[str, list[int]], size: int) -> Iterator[tuple[str, list[int]]]:
    for label, numbers in missing.items():
        for first in range(0, len(numbers), size):
            yield label, numbers[first : first + size]


def _painter(settings: Generation, source: str, device: str) -> Paint:
    if source == "openai":
        from saelab.evaluate.images_api import ImagesServer

        return ImagesServer(settings)
    from saelab.evaluate.diffusion import load_painter

    return load_painter(settings, device)


def label_folder(label: str) -> str:
    """The sub-folder of a label: the label itself where every file system takes it, else as near to it as that goes."""
    plain = _PLAIN.fullmatch(label) is not None and label.casefold() not in DEVICES
    return label if plain else f"{folder_name(label).replace('_', ' ').strip()} {digest(label)[:6]}"


_PLAIN = re.compile(r"\w([\w ',.&()+-]{0,58}[\w')+])?")  # nothing that a file system refuses or drops


def _file(root: Path, label: str, number: int) -> Path:
    return root / label_folder(label) / f"{number:03}.png"


def _save(picture: Image.Image, file: Path) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    with atomic(file) as temporary:
        picture.save(temporary, format="PNG")
