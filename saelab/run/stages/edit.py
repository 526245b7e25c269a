"""The edit stage: pictures with classes and groups, a probe that may lean on the group, and the units named as it.

The pictures are not of the run: they go through its host, SAE and labels. Page and numbers go to
<root>/edits/<pictures>-<basis>-<hash>/.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from saelab import artifacts, settings, units
from saelab.effects import fit_probe
from saelab.effects.ablate import Active
from saelab.effects.edit import DRAWS, Groups, Named, find_named, judge, matched_sets, size_of, without_all
from saelab.effects.targets import Embed
from saelab.errors import UserError
from saelab.files import folder_name, read_csv
from saelab.hosts import Host
from saelab.images.decode import Unreadable, decode
from saelab.label import pipeline
from saelab.report.edits import write_edit
from saelab.run.basis import Basis
from saelab.settings import nearest

CODE = 3  # version of this stage
COLUMNS = ("file", "class", "group", "split")
SPLITS = ("train", "test")
TABLE = "photos.csv"
BATCH = 16  # pictures at once
MATCHED_ON = 48  # training pictures on which random sets get their size
FEWEST = 5  # test pictures of a group


@dataclass(frozen=True)
class EditSettings:
    """What is taken out, and how units are recognised."""

    concepts: tuple[str, ...] = ()  # what the units to take out are named as, such as water, forest
    match: str = "text"  # exact: the label is a concept | words: it has its words | text: or a sentence encoder says so
    abstained: bool = False  # also units whose label abstains
    draws: int = DRAWS  # random sets of equal effect
    seed: int = 0

    def __post_init__(self) -> None:
        """Raise UserError for settings that can't be used."""
        settings.check(self, "", {"draws": (1, 1000)})
        if not self.concepts or not all(str(c).strip() for c in self.concepts):
            raise UserError("concepts", list(self.concepts), "says what to take out", "for example concepts=[water]")
        if self.match not in ("exact", "words", "text"):
            near = nearest(self.match, ["exact", "words", "text"])
            raise UserError("match", self.match, "unknown", f"{near}known: exact, words, text")


@dataclass(frozen=True)
class Photo:
    """One line of photos.csv."""

    path: Path
    klass: str
    group: str
    split: str


def read_photos(folder: Path) -> list[Photo]:
    """The pictures of a folder with photos.csv: columns file, class, group, split (train | test).

    Raises UserError for a missing table, column, cell or file, another split, and what no edit could be judged on:
    fewer than two classes or groups, a group of a class with fewer than FEWEST test pictures, a class without training
    pictures.
    """
    table = folder / TABLE
    if not table.is_file():
        what = "is not there" if not folder.is_dir() else f"holds no {TABLE}"
        raise UserError("photos", folder, what, f"give a folder with {TABLE}: columns {', '.join(COLUMNS)}")
    rows = read_csv(table, "photos", COLUMNS, f"give a table with the columns {', '.join(COLUMNS)}")
    photos = [_photo(folder, row, f"{table}, line {line}") for line, row in rows]
    _check(photos, table)
    return photos


def _photo(folder: Path, row: Mapping[str | None, str | None], where: str) -> Photo:
    """A line's picture. Raises UserError, with its line, where it lacks a cell, its split is none or its file is not
    there."""
    lacking = [column for column in COLUMNS if row[column] is None]
    if lacking:
        raise UserError("photos", where, f"has no {', '.join(lacking)}", f"give {', '.join(COLUMNS)} on every line")
    file, klass, group, split = (str(row[column]) for column in COLUMNS)
    if split not in SPLITS:
        raise UserError("photos", where, f"{split[:40]!r} is no split", "use train or test")
    try:
        there = (folder / file).is_file()
    except (OSError, ValueError):  # too long a name, or one that no file can have
        there = False
    if not there:
        raise UserError("photos", where, f"{file[:200]!r} is not on disk", "correct its file")
    return Photo(folder / file, klass, group, split)


def _check(photos: Sequence[Photo], table: Path) -> None:
    for what in ("klass", "group"):
        found = sorted({getattr(photo, what) for photo in photos})
        if len(found) < 2:
            name = "class" if what == "klass" else what
            raise UserError("photos", table, f"has {len(found)} {name}", "an edit is judged on two or more")
    for klass, group in {(p.klass, p.group) for p in photos}:
        count = sum((p.klass, p.group, p.split) == (klass, group, "test") for p in photos)
        if 0 < count < FEWEST or (klass not in {p.klass for p in photos if p.split == "train"}):
            what = f"{klass}, {group} has {count} test pictures"
            raise UserError("photos", table, what, f"give {FEWEST} or more, and training pictures of every class")


def edit_concepts(
    folder: Path, photos: Sequence[Photo], basis: Basis, seeing: "Looking", own: EditSettings, root: Path
) -> Path:
    """The folder <root>/edits/<pictures>-<basis>-<digest>/ with index.html and edit.json.

    Raises UserError where no unit is named as a concept, and where the host can't tell the classes.
    """
    assert basis.labels is not None
    rows = pipeline.read(basis.labels.path)
    labels = [row["label"] if own.abstained or not row["abstained"] else None for row in rows]
    named = find_named(labels, own.concepts, seeing.embed if own.match == "text" else None, exact=own.match == "exact")
    if not named:
        what = f"no unit of {basis.name} is named so"
        raise UserError("concepts", ", ".join(own.concepts), what, "name others, or abstained=true")
    seen = [(artifacts.file_digest(photo.path), photo.klass, photo.group, photo.split) for photo in photos]
    digest = artifacts.digest([CODE, own, basis.labels.digest, seen])
    place = root / "edits" / f"{folder_name(f'{folder.name}-{basis.name}')}-{digest[:10]}"
    if (place / "index.html").is_file():  # written last
        return place
    place.mkdir(parents=True, exist_ok=True)
    found: dict[str, Any] = {"photos": folder.name, "basis": basis.name, "layer": basis.layer, "host": seeing.host.name}
    found["words"] = seeing.call(basis)
    found |= {"concepts": list(own.concepts), "match": own.match, "named": [asdict(n) for n in named]}
    found |= _measure(photos, basis, seeing, named, own)
    artifacts.write_json(place / "edit.json", found)
    write_edit(place / "index.html", found)
    return place


@dataclass(frozen=True)
class Looking:
    """The host that looks at the pictures, and what reads labels."""

    host: Host
    policy: str
    embed: Embed
    call: Callable[[Basis], str]  # a basis in words, beside its layer
    square: bool = False  # are the run's pictures padded to squares?


def _measure(
    photos: Sequence[Photo], basis: Basis, seeing: Looking, named: Sequence[Named], own: EditSettings
) -> dict[str, Any]:
    """Everything of edit.json that takes passes through the host."""
    look = _Look(seeing, basis)
    train, test = ([p for p in photos if p.split == split] for split in SPLITS)
    known = (look.answers(train), [[p.klass] for p in train])
    probe = fit_probe(*known, *known)  # on the test it may well fail: that is what an edit is to mend
    look.read = probe
    wanted = [n.unit for n in named]
    some = [train[i] for i in np.linspace(0, len(train) - 1, min(len(train), MATCHED_ON)).round().astype(int)]
    held = [look.seen(part) for part in _parts(some)]
    active = sorted({int(u) for _, one in held for u in torch.nonzero((one.acts > 0).any(1).any(0))} - set(wanted))
    if not active:
        raise UserError("concepts", ", ".join(own.concepts), "no other unit fires on the pictures", "name fewer")

    def effect(sets: Sequence[Sequence[int]]) -> np.ndarray:
        parts = [look.without(batch, one, [[], *sets]) for batch, one in held]
        joined = torch.cat(parts, dim=1)
        return size_of(joined[0], joined[1:])

    target = float(effect([wanted])[0])
    sets = matched_sets(effect, target, active, own.draws, own.seed)
    predicted = [look.without(*look.seen(part), [[], wanted, *sets]).argmax(-1) for part in _parts(test)]
    facts = {"effect": target, "random_effects": effect(sets).tolist(), "random_units": [len(s) for s in sets]}
    said = torch.cat(predicted, dim=1).numpy()
    return facts | {"fires": len(active)} | _facts(train, test, probe.outputs.names, said, own.seed)


def _facts(
    train: Sequence[Photo], test: Sequence[Photo], names: Sequence[str], said: np.ndarray, seed: int
) -> dict[str, Any]:
    """What edit.json says of accuracies. `said`: predictions [as it is, without the named, without each set; test]."""
    pairs = sorted({(p.klass, p.group) for p in test})
    classes = np.array([list(names).index(p.klass) for p in test])
    groups = Groups(classes, np.array([pairs.index((p.klass, p.group)) for p in test]))
    made = judge(groups, said[0], said[1], said[2:], seed)
    lines = [
        {"class": klass, "group": group}
        | {split: sum((p.klass, p.group) == (klass, group) for p in s) for split, s in zip(SPLITS, (train, test))}
        | {"before": float(made.before[g]), "after": float(made.after[g])}
        | {"random": [float(x) for x in made.random[:, g]]}
        for g, (klass, group) in enumerate(pairs)
    ]
    totals: dict[str, dict[str, Any]] = {}
    for name, over, change in (("worst", np.min, made.worst), ("average", np.mean, made.average)):
        totals[name] = change._asdict()
        totals[name] |= {"before": float(over(made.before)), "after": float(over(made.after))}
        totals[name]["random"] = [float(x) for x in over(made.random, axis=-1)]
    commonest = max(names, key=lambda name: sum(p.klass == name for p in train))
    known = {"accuracy": float((said[0] == classes).mean())}
    known["chance"] = float(np.mean([p.klass == commonest for p in test]))
    return known | {"groups": lines, **totals}


class _Look:
    """Passes of pictures that are in no set."""

    def __init__(self, seeing: Looking, basis: Basis) -> None:
        self.seeing, self.layer = seeing, basis.layer
        self.project = units.Projection.load(basis.units.path, basis.sae_path)
        self.writes = self.project.writes(seeing.host.d_in(basis.layer))
        host = seeing.host
        self.resumes = host.cuts(self.layer) and host.choice(self.layer, seeing.policy).index is None
        self.read = lambda answer: answer.float()

    def answers(self, photos: Sequence[Photo]) -> Tensor:
        """The host's plain answers."""
        return torch.cat([self.seeing.host.logits(self._batch(part)).float().cpu() for part in _parts(photos)])

    def seen(self, photos: Sequence[Photo]) -> tuple[Tensor, Active]:
        """Pictures with what every unit holds of them."""
        batch = self._batch(photos)
        tokens = self.seeing.host.tokens(batch, [self.layer], self.seeing.policy)[self.layer].float().cpu()
        return batch, Active.of(self.project, tokens)

    def without(self, batch: Tensor, active: Active, sets: Sequence[Sequence[int]]) -> Tensor:
        """The probe's outputs [sets, images, outputs] without each set of units."""
        host = self.seeing.host
        found = []
        for own in sets:
            edited = without_all(active, self.writes, own) if len(own) else active.tokens
            edited = edited.to(host.device, host.dtype)
            if self.resumes:
                answer = host.resume(edited, self.layer)
            else:
                answer = host.logits_with(batch, self.layer, edited.to, self.seeing.policy)  # as the layer's own are
            with torch.inference_mode():
                found.append(self.read(answer).cpu())
        return torch.stack(found)

    def _batch(self, photos: Sequence[Photo]) -> Tensor:
        return self.seeing.host.load_images([_open(photo.path, self.seeing.square) for photo in photos])


def _open(path: Path, square: bool) -> Any:
    try:
        return decode(path, square)
    except (OSError, Unreadable) as error:
        raise UserError("photos", path, f"is unreadable ({error})", f"leave it out of {TABLE}") from None


def _parts(photos: Sequence[Photo]) -> Iterator[Sequence[Photo]]:
    for start in range(0, len(photos), BATCH):
        yield photos[start : start + BATCH]
