"""From a listing (what a source found) to an ImageSet: look into every file, skip what can't be used, group, split."""

import hashlib
import json
import logging
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np

from saelab.errors import UserError
from saelab.images import duplicates, scan, splits
from saelab.images.imageset import ImageSet
from saelab.images.remote import Spot
from saelab.images.scan import Scan
from saelab.text import visible

log = logging.getLogger("saelab")


@dataclass(frozen=True)
class Entry:
    """One picture that a source found."""

    file: str  # relative to the listing's root, "/" between the parts
    caption: str | None = None  # in words
    classes: tuple[str, ...] = ()  # concepts true of it
    mask: str | None = None  # label image, relative to the root
    credit: str | None = None  # author and licence, where the picture has its own
    group: str | None = None  # of a series (a patient, a burst), where the source knows
    at: Spot | None = None  # where its bytes lie, if it is no file of its own
    seen: Scan | None = None  # what the source saw, where it has looked already


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
    streamed = any(e.at for e in listing.entries)
    # A stream keeps its own order, so that neighbours are read together.
    entries = listing.entries if streamed else sorted(listing.entries, key=lambda e: e.file)
    entries = [_readable(e) for e in entries]
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
    groups = duplicates.join(duplicates.group(digests, [s.look for s in scans]), [e.group for e in entries])
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
        spots=tuple(e.at for e in entries if e.at),
    )


def _readable(entry: Entry) -> Entry:
    """The entry with its words in one spelling: "café" is one class, whatever system wrote the folder's name."""
    classes = tuple(visible(name) for name in entry.classes)
    caption = None if entry.caption is None else visible(entry.caption)
    if classes == entry.classes and caption == entry.caption:
        return entry
    classes = tuple(name for name in dict.fromkeys(map(str.strip, classes)) if name)
    return replace(entry, classes=classes, caption=None if caption is None else caption.strip() or None)


def _scan_all(listing: Listing, entries: list[Entry]) -> tuple[list[Entry], list[Scan], list[tuple[str, str]]]:
    if entries and all(e.seen for e in entries):
        return entries, [e.seen for e in entries if e.seen], []
    outcomes = scan.look_at_all(listing.root, [(e.file, e.mask) for e in entries], f"looking at {listing.name}")
    good = [(e, o) for e, o in zip(entries, outcomes, strict=True) if isinstance(o, Scan)]
    bad = [(e.file, o) for e, o in zip(entries, outcomes, strict=True) if isinstance(o, str)]
    return [e for e, _ in good], [s for _, s in good], bad


def _classes(entry: Entry, seen: Scan, mask_names: tuple[str, ...]) -> tuple[str, ...]:
    present = [mask_names[v] if v < len(mask_names) else str(v) for v in seen.present]
    return tuple(dict.fromkeys([*entry.classes, *present]))


def _fingerprint(
    entries: list[Entry], scans: list[Scan], classes: Sequence[Sequence[str]], split: np.ndarray, listing: Listing
) -> str:
    total = hashlib.sha256(json.dumps([listing.square, list(listing.mask_names)]).encode())
    for entry, seen, own, part in zip(entries, scans, classes, split.tolist(), strict=True):
        row = [entry.file, seen.digest, entry.caption, list(own), seen.mask_digest, part]
        row += [] if entry.group is None else [entry.group]
        total.update(json.dumps(row, ensure_ascii=True).encode() + b"\n")
    return total.hexdigest()
