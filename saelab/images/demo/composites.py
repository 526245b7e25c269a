"""A Waterbirds-like set from the packaged photos: cut-outs of two classes on scenes of two kinds.

After Sagawa et al. (ICLR 2020): in training nearly all pictures of a class stand on one kind of scene, in the test half
do, so that a classifier that leans on the scene fails where the two disagree. Cut-outs and scenes of the test are in no
training picture.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from saelab import artifacts
from saelab.files import write_csv
from saelab.images.build import Entry
from saelab.images.demo.packaged import packaged
from saelab.images.user_cache import user_cache

VERSION = 1  # raise it when the rules below make other pictures
CLASSES = ("birds", "mammals")  # of Tux Paint's cut-outs
SCENES = ("monuments", "renewable energy")  # of GCompris' photos
SIDE = 224
SHARE = (0.35, 0.5)  # of the picture's side that a cut-out takes
EACH = 4  # pictures of a cut-out
AGREE = {"train": 0.95, "test": 0.5}  # share of pictures on the scene of their class
TEST = 0.4  # share of cut-outs and scenes that are for the test


def composites(seed: int = 0) -> Path:
    """The folder of the pictures with photos.csv (file, class, group, split), made on first use in the user's cache.

    Raises UserError where the packaged photos can't be fetched.
    """
    recipe = {"stage": "composites", "version": VERSION, "seed": seed}

    def build(folder: Path) -> None:
        listing = packaged()
        subjects = {name: _of(listing.entries, name, "tuxpaint/") for name in CLASSES}
        scenes = {name: _of(listing.entries, name, "gcompris/") for name in SCENES}
        make_composites(listing.root, subjects, scenes, folder, np.random.default_rng(seed))

    return artifacts.ensure(user_cache(), "pictures", "composites", recipe, build).path


def make_composites(
    root: Path,
    subjects: Mapping[str, Sequence[str]],
    scenes: Mapping[str, Sequence[str]],
    folder: Path,
    rng: np.random.Generator,
) -> None:
    """Write pictures and photos.csv. `subjects`: class -> cut-outs below `root`; `scenes`: kind -> photos."""
    kinds, rows = list(scenes), []
    halves = {name: _halves(files, rng) for name, files in {**subjects, **scenes}.items()}
    for place, klass in enumerate(subjects):
        for split in ("train", "test"):
            for file in halves[klass][split]:
                for n in range(EACH):
                    agrees = rng.random() < AGREE[split] if split == "train" else n % 2 == 0
                    kind = kinds[place if agrees else 1 - place]
                    scene = rng.choice(halves[kind][split])
                    name = f"{split}/{Path(file).stem}-{n}.jpg"
                    target = folder / name
                    target.parent.mkdir(exist_ok=True)
                    paste(root / file, root / str(scene), rng).save(target, "JPEG", quality=92)
                    rows.append({"file": name, "class": klass, "group": kind, "split": split})
    write_csv(folder / "photos.csv", rows, ("file", "class", "group", "split"))


def paste(subject: Path, scene: Path, rng: np.random.Generator) -> Image.Image:
    """A cut-out on a scene's middle square, its size and place drawn."""
    with Image.open(scene) as opened:
        back = opened.convert("RGB")
    side = min(back.size)
    left, top = (back.size[0] - side) // 2, (back.size[1] - side) // 2
    back = back.resize((SIDE, SIDE), Image.Resampling.LANCZOS, (left, top, left + side, top + side))
    with Image.open(subject) as opened:
        cut = opened.convert("RGBA")
    scale = SIDE * rng.uniform(*SHARE) / max(cut.size)
    cut = cut.resize((max(1, round(cut.size[0] * scale)), max(1, round(cut.size[1] * scale))), Image.Resampling.LANCZOS)
    left, top = (int(rng.integers(0, SIDE - length + 1)) for length in cut.size)
    back.paste(cut, (left, top), cut)
    return back


def _of(entries: Sequence[Entry], name: str, source: str) -> list[str]:
    """Files of a class from one of the two packages."""
    return [entry.file for entry in entries if entry.file.startswith(source) and name in entry.classes]


def _halves(files: Sequence[str], rng: np.random.Generator) -> dict[str, list[str]]:
    order = [files[i] for i in rng.permutation(len(files))]
    count = round(TEST * len(order))
    return {"test": order[:count], "train": order[count:]}
