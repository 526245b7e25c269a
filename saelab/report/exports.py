"""Files to take away: tables of all units, Neuronpedia's import, SAEs in SAELens' format, a methods text."""

import json
from collections.abc import Iterable, Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

from saelab.artifacts import read_json, write_csv, write_jsonl
from saelab.errors import UserError
from saelab.files import folder_names
from saelab.report import methods, neuronpedia, people
from saelab.report.reading import Run
from saelab.report.records import FAITHFULNESS
from saelab.report.shelf import Row, Shelf

BATCH = 1024  # rows of a Parquet file that are made at once


class Takeaway:
    """`takeaway/` in the report's folder, from records as they come.

    `site`: the address where the report will lie, for links to its pictures.
    """

    def __init__(self, run: Run, out: Path, site: str | None = None) -> None:
        self._run, self._out, self._folder = run, out, out / "takeaway"
        self._folder.mkdir(exist_ok=True)
        self._said = people.read(run.bases, people.folder(run.path))
        self._table = Table(run, people.merged(self._said))
        self._sources = neuronpedia.Sources(run, self._folder / "neuronpedia", site)

    def add(self, number: int, records: Sequence[Row]) -> None:
        """Records of basis `number`, in the order of bases and units."""
        self._table.add(number, records)
        self._sources.add(number, records)

    def write(self) -> list[list[str]]:
        """Write what waited for the last record. Returns [file, what it is] of each file, in the order to be shown."""
        run, folder, rows = self._run, self._folder, self._table
        write_csv(folder / "units.csv", rows, rows.keys)
        write_jsonl(folder / "units.jsonl", rows)
        self._sources.close()
        for name, content in (
            ("methods.txt", methods.text),
            ("methods.tex", methods.latex),
            ("references.bib", methods.bibtex),
        ):
            (folder / name).write_text(content(run), encoding="utf-8")
        files = [
            ["takeaway/units.csv", "a row for each unit: label, scores, metrics, image files"],
            ["takeaway/units.jsonl", "the same, one JSON object a line"],
            *(
                [
                    f"takeaway/neuronpedia/{place}/source.jsonl",
                    f"{basis.name} for Neuronpedia's importer, this whole folder",
                ]
                for place, basis in zip(self._sources.places, run.bases)
            ),
            *_saelens(run, self._out),
            [
                "takeaway/methods.txt",
                "a paragraph on how this was made, with every setting (citations as Pandoc reads them)",
            ],
            ["takeaway/methods.tex", "the same for LaTeX"],
            ["takeaway/references.bib", "BibTeX entries of what the paragraph cites"],
        ]
        if self._said:
            write_jsonl(folder / "judgements.jsonl", self._said)
            files.append(["takeaway/judgements.jsonl", "what people said of units, with its history: a line each time"])
        if _parquet(folder / "units.parquet", rows):
            files.insert(2, ["takeaway/units.parquet", "the same as Parquet"])
        for number, comparison in enumerate(run.comparisons):
            (folder / f"comparison-{number}.json").write_text(json.dumps(comparison, indent=1), encoding="utf-8")
            layer = comparison["setup"]["layer"]
            files.append([f"takeaway/comparison-{number}.json", f"every number of the comparison of {layer}"])
        return files


def _saelens(run: Run, out: Path) -> list[list[str]]:
    """Every SAE of the run in SAELens' format; lists the files, and the SAEs that it cannot express."""
    from saelab.sae import SAE
    from saelab.sae.convert import save_saelens

    listed = []
    for basis, name in zip(run.bases, folder_names(basis.name for basis in run.bases), strict=True):
        if basis.sae is None:
            continue
        quality = basis.sae / "quality.json"
        place = f"takeaway/saelens/{name}"
        try:
            sae = SAE.load(basis.sae / "sae.safetensors")
            save_saelens(sae, out / place, read_json(quality) if quality.is_file() else None)
        except UserError as error:
            listed.append([place, f"left out, since SAELens cannot express it: {error}"])
            continue
        listed.append(
            [f"{place}/sae_weights.safetensors", f"{basis.name} for SAELens, with cfg.json and README.md beside it"]
        )
    return listed


class Table:
    """One flat row per unit, each with the keys of all; lists (image files, activations, labels per scorer) stay lists.

    Rows are made once, from a record at a time, and kept as compressed text: they never stand side by side.
    """

    def __init__(self, run: Run, said: dict[tuple[str, int], people.Row] | None = None) -> None:
        """Where people `said` something of any unit (`people.merged`), every row has the columns for it."""
        self._run, self._said = run, said or {}
        self._rows, self._keys = Shelf(), dict[str, None]()

    @property
    def keys(self) -> list[str]:
        """Those of all rows, in the order in which they came."""
        return list(self._keys)

    def add(self, number: int, records: Iterable[Row]) -> None:
        """A row for each of these records of basis `number`."""
        basis = self._run.bases[number]
        own = {"basis": basis.name, "kind": basis.kind, "layer": basis.layer, "seed": basis.seed}
        for record in records:
            of_people = self._said.get((basis.name, record["unit"]))
            row = own | _row(self._run, record, people.columns(of_people, record["label"]) if self._said else {})
            self._keys.update(dict.fromkeys(row))
            self._rows.add(row)

    def __iter__(self) -> Iterator[Row]:
        return ({key: row.get(key) for key in self._keys} for row in self._rows)


def _row(run: Run, record: dict[str, Any], said: people.Row) -> dict[str, Any]:
    """What a table says of one unit, beside its basis; `said`: the columns of what people said."""
    keep = ("unit", "status", "label", "abstained", "badge", "source", "scorer", "fires_on")
    return (
        {key: record[key] for key in keep}
        | ({"label_set": record["label_set"]} if "label_set" in record else {})
        | said
        | record["measured"]
        | {f"{key}_{side}": bound for key, two in _bounds(record).items() for side, bound in two.items()}
        | {"max_activation": record["max"], "polysemantic": len(record["meanings"]) > 1}
        | {"meanings": [m["label"] for m in record["meanings"]]}
        | {"meaning_shares": [m["share"] for m in record["meanings"]]}
        | {f"label_{name}": found["label"] for name, found in record["scores"].items()}
        | {f"score_{name}": found["score"] for name, found in record["scores"].items()}
        | {"images": [run.images.files[i] for i in record["positives"]], "activations": record["activations"]}
        | {"contrasts": [run.images.files[i] if i >= 0 else None for i in record["contrasts"]]}
    )


def _bounds(record: dict[str, Any]) -> dict[str, dict[str, float | None]]:
    """Low and high of every metric's 95 % interval, None where there is none."""
    found = {key: record["interval"].get(key) or [None, None] for key in FAITHFULNESS if key != "auroc"}
    return {key: {"low": low, "high": high} for key, (low, high) in found.items()}


def _parquet(path: Path, rows: Table) -> bool:
    """Write a Parquet file, some rows at a time; False where pyarrow is not installed."""
    from importlib.util import find_spec

    if find_spec("pyarrow") is None:
        return False
    import pyarrow
    from pyarrow import parquet

    schemas = (pyarrow.Table.from_pylist(some).schema for some in _in_batches(rows))
    schema = pyarrow.unify_schemas(list(dict.fromkeys(schemas)), promote_options="permissive")
    with parquet.ParquetWriter(path, schema) as writer:
        for some in _in_batches(rows):
            writer.write_table(pyarrow.Table.from_pylist(some, schema=schema))
    return True


def _in_batches(rows: Table) -> Iterator[list[dict[str, Any]]]:
    walk = iter(rows)
    while some := list(islice(walk, BATCH)):
        yield some
