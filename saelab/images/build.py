"""From a listing (what a source found) to an ImageSet: look into every file, skip what can't be used, group, split."""

import hashlib
import json
import logging
import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import numpy as np
from tqdm import tqdm

from saelab.errors import UserError
from saelab.images import decode, duplicates, splits
from saelab.images.imageset import ImageSet

log = logging.getLogger("saelab")

_SCAN_SIDE = 256  # enough for hashes of 32 x 32; JPEGs are decoded at a fraction of their size


@dataclass(frozen=True)
class Entry:
    """One picture that a source found."""

    file: str  # relative to the listing's root, "/" between the parts
    caption: str | None = None  # in words
    classes: tuple[str, ...] = ()  # concepts true of it
    mask: str | None = None  # label image, relative to the root
    credit: str | None = None  # author and licence, where the picture has its own


@dataclass(frozen=True)
class Listing:
    """What a source found, before anybody looked into the files."""

    name: str  # short, for people
    root: Path  # where the files lie
    entries: list[Entry]
    skipped: list[tuple[str, str]] = field(default_factory=list)  # (file, reason)
    credit: str = ""  # whose pictures, which licence
    mask_names: tuple[str, ...] = ()  # name of pixel value 0, 1, ... of the label images
    square: bool = False  # pad to a white square when loading


@dataclass(frozen=True)
class Scan:
    """What one look into a file tells."""

    digest: str  # SHA-256 of the bytes
    size: tuple[int, int]  # width and height, upright
    look: duplicates.Look
    mask_digest: str = ""  # SHA-256 of the label image's bytes
    present: tuple[int, ...] = ()  # class numbers in the label image


def build(
    listing: Listing,
    seed: int = 0,
    fractions: Sequence[float] = splits.FRACTIONS,
    limit: int | None = None,
) -> ImageSet:
    """The ImageSet of a listing. Unusable files end up in `skipped`, never as an error.

    seed: of the splits and of the choice under `limit` (that many pictures, drawn at random). Raises UserError where
    no usable picture is left.
    """
    entries = sorted(listing.entries, key=lambda e: e.file)
    if limit is not None and limit < len(entries):
        if limit < 1:
            raise UserError("images.limit", limit, "at least 1, or null for all")
        chosen = np.random.default_rng(seed).permutation(len(entries))[:limit]
        entries = [entries[i] for i in sorted(chosen)]
    entries, scans, bad = _scan_all(listing, entries)
    skipped = sorted([*listing.skipped, *bad])
    if skipped:
        shown = "; ".join(f"{file}: {reason}" for file, reason in skipped[:3])
        log.warning("%d files of %s skipped (%s%s)", len(skipped), listing.name, shown, " ..." * (len(skipped) > 3))
    if not entries:
        first = f" (the first of {len(skipped)} skipped: {': '.join(skipped[0])})" if skipped else ""
        raise UserError("images.root", listing.root, f"no usable picture there{first}", "give a folder with pictures")
    digests = [s.digest for s in scans]
    classes = tuple(_classes(e, s, listing.mask_names) for e, s in zip(entries, scans, strict=True))
    groups = duplicates.group(digests, [s.look for s in scans])
    split = splits.assign(groups, [c[0] if c else "" for c in classes], digests, seed, fractions)
    has_masks = any(e.mask for e in entries)
    return ImageSet(
        name=listing.name,
        root=listing.root,
        files=tuple(e.file for e in entries),
        captions=tuple(e.caption for e in entries),
        classes=classes,
        splits=split,
        groups=groups,
        fingerprint=_fingerprint(entries, scans, classes, split, listing),
        skipped=tuple(skipped),
        credit=listing.credit,
        sizes=tuple(s.size for s in scans),
        masks=tuple(e.mask for e in entries) if has_masks else (),
        mask_names=listing.mask_names,
        square=listing.square,
        credits={e.file: e.credit for e in entries if e.credit},
    )


def _scan_all(listing: Listing, entries: list[Entry]) -> tuple[list[Entry], list[Scan], list[tuple[str, str]]]:
    with ThreadPoolExecutor(min(16, os.cpu_count() or 1)) as pool:  # Pillow and hashlib release the interpreter's lock
        results = pool.map(partial(_scan, listing.root), entries)
        bar = tqdm(results, total=len(entries), desc=f"looking at {listing.name}", unit="image", disable=None)
        outcomes = list(bar)
    good = [(e, o) for e, o in zip(entries, outcomes, strict=True) if isinstance(o, Scan)]
    bad = [(e.file, o) for e, o in zip(entries, outcomes, strict=True) if isinstance(o, str)]
    return [e for e, _ in good], [s for _, s in good], bad


def _scan(root: Path, entry: Entry) -> Scan | str:
    """What is in the file, or why it can't be used."""
    try:
        data = (root / entry.file).read_bytes()
        image, size = decode.glance(data, _SCAN_SIDE)
    except decode.Unreadable as error:
        return str(error)
    except OSError as error:
        return error.strerror or str(error)
    look, digest = duplicates.look(image), hashlib.sha256(data).hexdigest()
    if entry.mask is None:
        return Scan(digest, size, look)
    try:
        labels = decode.decode_labels(root / entry.mask)
        mask_digest = hashlib.sha256((root / entry.mask).read_bytes()).hexdigest()
    except (decode.Unreadable, OSError) as error:
        return f"its label image {entry.mask}: {error}"
    return Scan(digest, size, look, mask_digest, tuple(np.unique(labels).tolist()))


def _classes(entry: Entry, scan: Scan, mask_names: tuple[str, ...]) -> tuple[str, ...]:
    seen = [mask_names[v] if v < len(mask_names) else str(v) for v in scan.present]
    return tuple(dict.fromkeys([*entry.classes, *seen]))


def _fingerprint(
    entries: list[Entry], scans: list[Scan], classes: Sequence[Sequence[str]], split: np.ndarray, listing: Listing
) -> str:
    total = hashlib.sha256(json.dumps([listing.square, list(listing.mask_names)]).encode())
    for entry, scan, own, part in zip(entries, scans, classes, split.tolist(), strict=True):
        row = [entry.file, scan.digest, entry.caption, list(own), scan.mask_digest, part]
        total.update(json.dumps(row, ensure_ascii=True).encode() + b"\n")
    return total.hexdigest()
