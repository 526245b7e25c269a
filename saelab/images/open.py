"""`load(source=..., ...)`: an ImageSet from any source, by name."""

import inspect
from collections.abc import Callable, Sequence
from typing import Any

from saelab.errors import UserError
from saelab.images import hubs, sources, splits, tars
from saelab.images.build import Listing, build
from saelab.images.demo import packaged
from saelab.images.imageset import ImageSet
from saelab.settings import similar

SOURCES: dict[str, Callable[..., Listing]] = {
    "packaged": packaged.packaged,
    "folder": sources.folder,
    "csv": sources.table,
    "imagenette": hubs.imagenette,
    "torchvision": hubs.torchvision,
    "huggingface": hubs.huggingface,
    "webdataset": tars.webdataset,
}


def load(
    source: str = "packaged",
    seed: int = 0,
    fractions: Sequence[float] = splits.FRACTIONS,
    limit: int | None = None,
    **options: Any,
) -> ImageSet:
    """Open the pictures of a source.

    source: a key of SOURCES; options: what that source's function takes. seed, fractions (of mine, show, test): the
    splits; limit: draw that many pictures at random. Raises UserError for an unknown source or option (with the
    nearest real ones) and where no usable picture is found.
    """
    if source not in SOURCES:
        raise UserError("images.source", source, f"one of {', '.join(SOURCES)}", _nearest(source, SOURCES))
    opener = SOURCES[source]
    known = list(inspect.signature(opener).parameters.values())
    names = [p.name for p in known]
    for option in options:
        if option not in names:
            own = ", ".join(["seed", "fractions", "limit", *names])
            raise UserError(
                f"images.{option}", options[option], f"source {source} has no such setting", f"it takes {own}"
            )
    for p in known:
        if p.default is p.empty and options.get(p.name) is None:
            raise UserError(f"images.{p.name}", None, f"source {source} needs it", f"give images.{p.name}=...")
    return build(opener(**options), seed=seed, fractions=fractions, limit=limit)


def _nearest(word: str, known: Sequence[str] | dict[str, Any]) -> str:
    close = similar(word, known, 1)
    return f"did you mean {close[0]}?" if close else "for your own pictures: images=folder images.root=PATH"
