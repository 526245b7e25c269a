"""The folder that is uploaded, made beside the run: everything in it can be looked at before anybody else sees it."""

import shutil
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from saelab.artifacts import atomic, read_jsonl, write_json, write_jsonl
from saelab.errors import UserError
from saelab.hub import card, facts, labels
from saelab.hub.entries import Entry
from saelab.hub.settings import PushSettings
from saelab.images import ImageSet
from saelab.report import pictures
from saelab.sae import SAE
from saelab.sae.convert import save_saelens

MARK = "saes.json"  # the repository's SAEs as data; a folder that holds it was staged here and may be made anew
SIDE = 256  # pixels of a picture's longer side
SHOWN = 9  # strongest pictures of a latent
COPIED = {
    "sae": ("sae.safetensors", "training.json"),
    "evaluation": ("evaluation.json", "evaluation.jsonl"),
    "effects": ("effects.json", "effects.jsonl"),
}
Files = list[tuple[str, int]]  # path in the repository, bytes


def stage(entries: Sequence[Entry], out: Path, repo: str, settings: PushSettings) -> Files:
    """Write the repository's files into `out`: a folder for each SAE, an index, and pictures if they are asked for.

    An earlier staged folder is replaced, once the new one is whole. The same run gives the same bytes. Raises UserError
    if `out` holds something else, for a damaged artifact, and for pictures that nobody is credited for.
    """
    if out.exists() and any(out.iterdir()) and not (out / MARK).is_file():
        raise UserError("out", out, "is not empty and holds nothing to upload", "give another folder")
    sets = {entry.images: ImageSet.read(entry.images) for entry in entries if entry.images is not None}
    if settings.pictures:
        _check_credits(entries, sets)
    partial = out.with_name(f"{out.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    known = [_write(entry, sets, partial, repo, settings) for entry in entries]
    write_json(partial / MARK, known)
    _text(partial / "README.md", card.write_index(known, repo, settings))
    _text(partial / "index.html", card.write_index_page(known, repo))
    if settings.pictures:
        _pictures(entries, sets, partial)
    shutil.rmtree(out, ignore_errors=True)
    partial.rename(out)
    return list_files(out)


def list_files(folder: Path) -> Files:
    """Every file of a folder, by its path in the repository. Raises UserError where there is none."""
    files = sorted(file for file in folder.rglob("*") if file.is_file())
    if not files:
        raise UserError("folder", folder, "holds nothing to upload", "give the folder of an SAE")
    return [(file.relative_to(folder).as_posix(), file.stat().st_size) for file in files]


def _write(entry: Entry, sets: dict[Path, ImageSet], root: Path, repo: str, settings: PushSettings) -> dict[str, Any]:
    """One SAE's folder; what is known of it."""
    folder = root / entry.place
    folder.mkdir(parents=True)
    for stage_name, names in COPIED.items():
        source = getattr(entry, stage_name)
        for name in names if source is not None else ():
            if (source / name).is_file():
                shutil.copyfile(source / name, folder / name)
    sae = SAE.load(entry.sae)
    known = facts.gather(entry, sae, None if entry.images is None else sets[entry.images])
    quality = entry.quality or entry.sae
    if (quality / "quality.json").is_file():
        shutil.copyfile(quality / "quality.json", folder / "quality.json")
    rows = [] if entry.labels is None else labels.bind(read_jsonl(entry.labels / labels.FILE), sae)
    if rows:
        write_jsonl(folder / labels.FILE, rows)
    try:
        save_saelens(sae, folder)
        known["saelens"] = None
    except UserError as error:
        known["saelens"] = error.expected
    _text(folder / "README.md", card.write_card(known, rows, repo, settings))
    return known


def _text(path: Path, content: str) -> None:
    with atomic(path) as temporary:
        temporary.write_text(content, encoding="utf-8")


def _shown(entries: Sequence[Entry], sets: dict[Path, ImageSet]) -> dict[Path, list[int]]:
    """Image set -> ids of the strongest pictures of every labelled latent."""
    found: dict[Path, set[int]] = {place: set() for place in sets}
    for entry in entries:
        if entry.images is not None and entry.labels is not None:
            named = (row for row in read_jsonl(entry.labels / labels.FILE) if row["label"] is not None)
            found[entry.images] |= {i for row in named for i in row["positives"][:SHOWN] if i >= 0}
    return {place: sorted(ids) for place, ids in found.items()}


def _check_credits(entries: Sequence[Entry], sets: dict[Path, ImageSet]) -> None:
    for place, ids in _shown(entries, sets).items():
        images = sets[place]
        bare = [images.files[i] for i in ids if not _credit(images, i)]
        if bare:
            what = f"nobody is credited for {len(bare)} of {len(ids)} pictures of {images.name}, such as {bare[0]}"
            raise UserError("pictures", True, f"{what}; they may not be shared", "leave pictures=false")


def _credit(images: ImageSet, i: int) -> str:
    return (images.credits.get(images.files[i]) or images.credit).strip()


def _pictures(entries: Sequence[Entry], sets: dict[Path, ImageSet], root: Path) -> None:
    """pictures/<set>/, and CREDITS.md, which names author and licence of each; those that are gone are listed there."""
    for place, ids in _shown(entries, sets).items():
        images, folder = sets[place], root / "pictures" / place.name
        lost = pictures.write(ids, images, folder, SIDE)
        there = [i for i in ids if i not in lost]
        credits = Counter(_credit(images, i) for i in there)
        lines = [f"* {count} of {len(ids)}: {card.escape(credit)}" for credit, count in credits.most_common()]
        lines += [f"* {len(lost)} of {len(ids)} pictures could not be read, and are missing"] if lost else []
        parts = [f"# Pictures of {card.escape(images.name)}, small", "\n".join(lines)]
        if len(credits) > 1:
            each = [[pictures.place(i), _credit(images, i)] for i in there]
            parts.append(card.draw_table(["picture", "author and licence"], each))
        _text(folder / "CREDITS.md", "\n\n".join(parts) + "\n")
