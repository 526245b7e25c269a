"""The packaged photos: what Debian's Tux Paint stamps and GCompris carry, with captions, categories and credits.

About 590 real photos that any machine with apt can have without root or a model hub. Tux Paint: cut-outs (PNG with
transparency), caption in the `.txt` beside each, categories from the folders. GCompris: photos in Qt archives,
credits per file in the README beside them. Everything lies in the user's cache; nothing is installed.
"""

import re
import shutil
from collections.abc import Iterator
from fnmatch import fnmatch
from pathlib import Path

import numpy as np
from PIL import Image

from saelab import artifacts
from saelab.errors import UserError
from saelab.images.build import Entry, Listing
from saelab.images.demo import apt, qt_archive
from saelab.images.scan import in_order
from saelab.images.user_cache import user_cache

PACKAGES = ["tuxpaint-stamps-default", "gcompris-qt-data"]
SELECTION = 2  # raise it when the rules below choose other pictures

# Stamps that are no photos, by folder; by file: mirrored copies, tiny ones, and drawings, which have even areas.
DRAWN = ("symbols", "cartoon", "clothes", "flags", "roadsigns", "easter", "newyears", "hanukkah")
MIN_SIDE = 48  # pixels of the longer side
MAX_EVEN = 0.30  # share of neighbouring opaque pixels that are equal; photographs reach 0.3, drawings start there

# Folders whose names say little outside their tree.
PLAIN = {
    "aquatic": "sea mammals",
    "arttools": "art tools",
    "auto": "cars",
    "brass": "brass instruments",
    "construction": "construction vehicles",
    "cycle": "cycles",
    "emergency": "emergency vehicles",
    "flight": "aircraft",
    "masstransit": "mass transit",
    "naturalforces": "natural forces",
    "percussion": "percussion instruments",
    "string": "string instruments",
    "wind": "wind instruments",
}

# GCompris: archive or the folder inside it -> classes. Its drawings are SVG, all its WebP pictures are photos.
ARCHIVES = ("categorization", "erase", "explore_*")
CLASSES = {
    "fishes": ("animals", "fish"),
    "renewable": ("renewable energy",),
    "monuments": ("monuments",),
    "tools": ("tools",),
    "explore_farm_animals": ("animals", "farm animals"),
    "explore_world_animals": ("animals",),
    "explore_monuments": ("monuments",),
    "explore_world_music": ("music",),
    "erase": ("animals",),
}


def packaged() -> Listing:
    """The packaged photos, fetched on first use (205 MB, 31 MB are kept). Raises UserError where they can't be."""
    recipe = {"packages": PACKAGES, "selection": SELECTION}
    try:
        artifact = artifacts.ensure(user_cache(), "pictures", "packaged", recipe, _prepare)
    except apt.FetchFailed as error:
        raise UserError(
            "images",
            "packaged",
            f"the photos can't be fetched: {error}",
            "use your own (images=folder images.root=PATH) or images=imagenette",
        ) from None
    rows = artifacts.read_jsonl(artifact.path / "pictures.jsonl")
    entries = [Entry(r["file"], r["caption"], tuple(r["classes"]), credit=r["credit"]) for r in rows]
    credit = (
        "Tux Paint stamps, (C) 2002-2022 Bill Kendrick and contributors, GPL-2; "
        "photos in GCompris, authors and licences (public domain, CC0, CC BY, CC BY-SA) per picture"
    )
    return Listing("packaged", artifact.path / "pictures", entries, credit=credit, square=True)


def _prepare(folder: Path) -> None:
    downloads, unpacked = folder / "packages", folder / "unpacked"
    downloads.mkdir(exist_ok=True)
    for old in (unpacked, folder / "pictures"):
        shutil.rmtree(old, ignore_errors=True)
    for package in apt.fetch(PACKAGES, downloads):
        apt.unpack(package, unpacked)
    share = unpacked / "usr" / "share"
    chosen = [*stamps(share / "tuxpaint" / "stamps"), *gcompris(share / "gcompris-qt" / "rcc")]
    if not chosen:
        raise apt.FetchFailed("this distribution's packages hold no pictures where they are expected")
    for entry, data in chosen:
        target = folder / "pictures" / entry.file
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(data)
    for name in PACKAGES:
        shutil.copy(share / "doc" / name / "copyright", folder / f"copyright-{name}.txt")
    rows = [{"file": e.file, "caption": e.caption, "classes": e.classes, "credit": e.credit} for e, _ in chosen]
    artifacts.write_jsonl(folder / "pictures.jsonl", rows)
    shutil.rmtree(downloads)
    shutil.rmtree(unpacked)


def stamps(root: Path) -> Iterator[tuple[Entry, bytes]]:
    """Tux Paint's photo stamps below `root`: entry and the file's bytes."""
    found = [p for p in sorted(root.rglob("*.png")) if not set(p.relative_to(root).parts[:-1]) & set(DRAWN)]
    found = [path for path in found if "mirror" not in path.stem]
    for path, photo in zip(found, in_order(is_photo, found), strict=True):
        if not photo:
            continue
        file = path.relative_to(root)
        described = path.with_suffix(".txt")  # the first line is English, translations follow
        text = described.read_text(encoding="utf-8", errors="replace").split("\n", 1)[0] if described.is_file() else ""
        classes = tuple(PLAIN.get(part, part.replace("_", " ")) for part in file.parts[:-1])
        credit = "Tux Paint stamps, (C) 2002-2022 Bill Kendrick and contributors, GPL-2"
        yield Entry(f"tuxpaint/{file.as_posix()}", text.strip() or None, classes, credit=credit), path.read_bytes()


def is_photo(path: Path) -> bool:
    """Whether a cut-out is large enough and not evenly coloured, as drawings are."""
    with Image.open(path) as image:
        if max(image.size) < MIN_SIDE:
            return False
        pixels = np.asarray(image.convert("RGBA")).astype(np.int16)
    opaque = pixels[..., 3] > 200
    inside = opaque[:, 1:] & opaque[:, :-1]
    if not inside.any():
        return False
    equal = (pixels[:, 1:, :3] == pixels[:, :-1, :3]).all(-1)
    return float(equal[inside].mean()) <= MAX_EVEN


def gcompris(folder: Path) -> Iterator[tuple[Entry, bytes]]:
    """The photos in GCompris' archives below `folder`: entry and the file's bytes."""
    for path in sorted(folder.glob("*.rcc")):
        if not any(fnmatch(path.stem, pattern) for pattern in ARCHIVES):
            continue
        contents = dict(qt_archive.read(path))
        titles = _titles(contents)
        credits = _credits(contents)
        for name in sorted(contents):
            if not name.endswith(".webp") or name not in credits:  # no picture whose licence nobody names
                continue
            inner = name.rsplit("/resource/", 1)[-1]
            above = inner.split("/")[-2] if "/" in inner else ""
            caption = titles.get(name) or words(Path(name).stem)
            classes = CLASSES.get(above) or CLASSES.get(path.stem, ())
            yield Entry(f"gcompris/{path.stem}/{inner}", caption, classes, credit=credits[name]), contents[name]


def words(stem: str) -> str:
    """A file's stem as words: "arcDeTriomphe" -> "arc de triomphe", "windmill12" -> "windmill"."""
    text = re.sub(r"(?<=[a-z])(?=[A-Z])", " ", stem.rstrip("0123456789")).replace("_", " ")
    return text.lower().strip()


def _titles(contents: dict[str, bytes]) -> dict[str, str]:
    """What the game calls each picture: the "title" before its "image2" in the boards."""
    found: dict[str, str] = {}
    for name, data in contents.items():
        if not name.endswith(".qml"):
            continue
        for block in data.decode("utf-8", "replace").split("{"):
            title = re.search(r'"title":\s*qsTr\("([^"]+)"\)', block)
            image = re.search(r'"image2":\s*"qrc:/([^"]+)"', block)
            if title and image:
                found[image[1]] = title[1]
    return found


def _credits(contents: dict[str, bytes]) -> dict[str, str]:
    """Author, licence and source of each file, from the README beside it."""
    found: dict[str, str] = {}
    for name, data in contents.items():
        if not name.endswith("/README"):
            continue
        folder = name.removesuffix("README")
        for block in re.split(r"\n\s*\n", data.decode("utf-8", "replace")):
            keys = dict(re.findall(r"^(Copyright|License|Source):\s*(.+)$", block, flags=re.M))
            credit = ", ".join(keys[k].strip() for k in ("Copyright", "License", "Source") if k in keys)
            for pattern in block.partition("Files:")[2].split():
                found.update({n: credit for n in contents if n == folder + pattern or fnmatch(n, folder + pattern)})
    return found
