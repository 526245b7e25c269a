"""Units as Neuronpedia's importer reads them: <model>/<source>/ with metadata, features, explanations and activations.

The layout is that of its own exports, the columns those of its database (tables Model, SourceSet, Source, Neuron,
Explanation, Activation). A picture has no tokens: its activation is one token, the link to the picture. Kinds of
explanations have to be known to the database beforehand, so how a label was found stands in its notes.
"""

import gzip
import hashlib
import json
import math
import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from saelab.report import pictures
from saelab.report.reading import ReadBasis, Run

Row = dict[str, Any]
BATCH = 1024  # features of one file
LEVEL = 6  # of compression: 9 takes 2.5 times as long for 2 % less
CREATOR = "clkht01d40000jv08hvalcvly"  # the account that every instance is seeded with, owner of imported data


class Sources:
    """Writes a folder for each basis below `folder`, from its records as they come.

    `site`: where the report will lie, for links to pictures; None: they are relative to it.
    """

    def __init__(self, run: Run, folder: Path, site: str | None) -> None:
        self._run, self._folder, self._site = run, folder, site
        model, taken = _slug(run.facts.get("host") or run.facts["name"]), set[str]()
        neurons = max(len(basis.labels) for basis in run.bases)
        self.places: list[str] = []  # of each basis, in `folder`
        self._named: list[tuple[Row, str]] = []  # what every row of a basis begins with, and the name of its set
        for basis in run.bases:
            own = _set_name(basis, taken)
            source = f"{_layer_number(basis.layer)}-{own}"
            about = [_model(run, model, neurons), _source_set(run, basis, model, own), _source(run, model, source, own)]
            self.places.append(f"{model}/{source}")
            self._named.append(({"modelId": model, "layer": source}, own))
            for name, row in zip(("model", "sourceset", "source"), about):
                _put(folder / self.places[-1] / f"{name}.jsonl", [row])
        self._begin(0, 0)

    def add(self, number: int, records: Iterable[Row]) -> None:
        """Records of basis `number`, in the order of bases and units; a file is written when its batch is whole."""
        for record in records:
            if number != self._number:
                self.close()
                self._begin(number, 0)
            elif self._taken == BATCH:
                self.close()
                self._begin(number, self._batch + 1)
            self._taken += 1
            place, own = self._named[number]
            self._tables["features"].append(place | _feature(record) | {"sourceSetName": own})
            if record["label"] is not None:
                self._tables["explanations"].append(place | _explanation(place, record))
            rows = _activations(self._run, place, record, self._site)
            self._tables["activations"] += [place | row for row in rows]

    def close(self) -> None:
        """Write what waits for its batch to be whole."""
        for table, rows in self._tables.items():
            if rows:  # the importer reads the columns off the first line
                place = self._folder / self.places[self._number] / table
                _put(place / f"batch-{self._batch}.jsonl.gz", rows)
                rows.clear()

    def _begin(self, number: int, batch: int) -> None:
        self._number, self._batch, self._taken = number, batch, 0
        self._tables: dict[str, list[Row]] = {"features": [], "explanations": [], "activations": []}


def _model(run: Run, model: str, neurons: int) -> Row:
    name = run.facts.get("host") or run.facts["name"]
    layers = len({basis.layer for basis in run.bases})
    known = {"id": model, "displayName": name, "displayNameShort": name, "layers": layers, "neuronsPerLayer": neurons}
    return known | {"owner": "saelab", "creatorId": CREATOR, "visibility": "PUBLIC"}


def _source_set(run: Run, basis: ReadBasis, model: str, name: str) -> Row:
    text = f"{basis.short} of layer {basis.layer}, on pictures of {run.images.name}"
    known = {"modelId": model, "name": name, "description": text, "type": basis.kind, "urls": []}
    return known | {"creatorName": "saelab", "creatorId": CREATOR, "visibility": "PUBLIC"}


def _source(run: Run, model: str, source: str, own: str) -> Row:
    known = {"id": source, "modelId": model, "setName": own, "dataset": run.images.name, "notes": run.images.credit}
    return known | {"creatorId": CREATOR, "visibility": "PUBLIC"}


def _feature(record: Row) -> Row:
    low, high = record["range"]
    middles = np.linspace(low, high, 2 * len(record["histogram"]) + 1)[1::2].tolist()
    return {
        "index": str(record["unit"]),
        "creatorId": CREATOR,
        "maxActApprox": record["max"] if math.isfinite(record["max"]) else None,
        "frac_nonzero": (record["images"] - record["silent"]) / record["images"],
        "freq_hist_data_bar_heights": record["histogram"],
        "freq_hist_data_bar_values": middles,
    }


def _explanation(place: Row, record: Row) -> Row:
    index, scorer = str(record["unit"]), record["scorer"]
    score = record["scores"].get(scorer) or {}
    numbers = [f"{word} {score[key]:.3f}" for key, word in _NOTED.items() if score.get(key) is not None]
    notes = f"saelab, {scorer}: " + ", ".join(numbers + ["abstains"] * bool(record["abstained"]))
    row = {"index": index, "authorId": CREATOR, "description": record["label"], "notes": notes}
    return {"id": _id(place, index, record["label"], notes)} | row


_NOTED = {"score": "score", "margin": "margin", "null_percentile": "null percentile"}


def _activations(run: Run, place: Row, record: Row, site: str | None) -> list[Row]:
    index, rows = str(record["unit"]), []
    for i, value in zip(record["positives"], record["activations"], strict=True):
        link = f"{site.rstrip('/')}/{pictures.place(i)}" if site else pictures.place(i)
        row: Row = {"id": _id(place, index, str(i), repr(value)), "index": index, "creatorId": CREATOR}
        row |= {"dataSource": run.images.name, "dataIndex": run.images.files[i], "tokens": [link], "values": [value]}
        rows.append(row | {"maxValue": value, "minValue": value, "maxValueTokenIndex": 0})
    return rows


def _put(path: Path, rows: Sequence[Row]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    data = "".join(json.dumps(row, ensure_ascii=False, allow_nan=False) + "\n" for row in rows).encode()
    path.write_bytes(gzip.compress(data, LEVEL, mtime=0) if path.suffix == ".gz" else data)


def _set_name(basis: ReadBasis, taken: set[str]) -> str:
    """A name that no other basis has; it says the layer, too, because the source's id only holds its number."""
    base = name = f"{_slug(basis.layer)}-{_slug(basis.short)}"
    count = 2
    while name in taken:
        name, count = f"{base}-{count}", count + 1
    taken.add(name)
    return name


def _layer_number(layer: str) -> int:
    """Sources are sorted by a layer's number: the first in its name."""
    found = re.search(r"\d+", layer)
    return int(found[0]) if found else 0


def _slug(name: str) -> str:
    """Letters, digits, dashes and underscores, in lower case: what an id of a model may hold."""
    return re.sub(r"[^a-z0-9_]+", "-", name.lower()).strip("-")[:100] or "x"


def _id(place: Row, *parts: str) -> str:
    """25 characters, like the ids that its database gives; the same for the same row."""
    return "c" + hashlib.sha256("\n".join([place["modelId"], place["layer"], *parts]).encode()).hexdigest()[:24]
