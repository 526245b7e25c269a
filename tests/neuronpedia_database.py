"""Neuronpedia's database as far as an import touches it, in SQLite, and its importer's way of filling it.

Columns, types, what may be null and what refers to what: apps/webapp/prisma/schema.prisma of hijohnnylin/neuronpedia at
008d504; order and columns of an import: its routes of /api/admin and lib/db/import.ts (efd6e35). Arrays are JSON here.
Ids have no default: only its own client makes them, an import doesn't.
"""

import gzip
import json
import sqlite3
from pathlib import Path

SEEDED = "clkht01d40000jv08hvalcvly"
VISIBLE = "TEXT NOT NULL DEFAULT 'PRIVATE' CHECK (visibility IN ('PUBLIC', 'UNLISTED', 'PRIVATE'))"
USER = "TEXT NOT NULL REFERENCES User(id)"
NUMBERS = "TEXT DEFAULT '[]' CHECK (json_type({0}) = 'array')"
SCHEMA = f"""
CREATE TABLE User (id TEXT PRIMARY KEY) STRICT;
INSERT INTO User VALUES ('{SEEDED}');
CREATE TABLE ExplanationType (name TEXT PRIMARY KEY) STRICT;
CREATE TABLE ExplanationModelType (name TEXT PRIMARY KEY) STRICT;
CREATE TABLE Model (
  id TEXT PRIMARY KEY CHECK (id NOT GLOB '*[^a-z0-9_-]*' AND length(id) BETWEEN 1 AND 128),
  displayNameShort TEXT NOT NULL DEFAULT '', displayName TEXT NOT NULL DEFAULT '', creatorId {USER},
  visibility {VISIBLE}, layers INTEGER NOT NULL CHECK (layers >= 0),
  neuronsPerLayer INTEGER NOT NULL CHECK (neuronsPerLayer >= 0), owner TEXT NOT NULL CHECK (trim(owner) <> ''),
  website TEXT) STRICT;
CREATE TABLE SourceSet (
  modelId TEXT NOT NULL REFERENCES Model(id), name TEXT NOT NULL, visibility {VISIBLE}, description TEXT NOT NULL,
  type TEXT NOT NULL DEFAULT '', creatorName TEXT NOT NULL, urls {NUMBERS.format("urls")}, creatorId {USER},
  UNIQUE (modelId, name)) STRICT;
CREATE TABLE Source (
  id TEXT NOT NULL, modelId TEXT NOT NULL, visibility {VISIBLE}, setName TEXT NOT NULL, creatorId {USER},
  hfRepoId TEXT, hfFolderId TEXT, dataset TEXT, notes TEXT, UNIQUE (modelId, id),
  FOREIGN KEY (modelId, setName) REFERENCES SourceSet(modelId, name)) STRICT;
CREATE TABLE Neuron (
  modelId TEXT NOT NULL, layer TEXT NOT NULL, "index" TEXT NOT NULL, sourceSetName TEXT,
  creatorId TEXT REFERENCES User(id), maxActApprox REAL DEFAULT 0, frac_nonzero REAL NOT NULL DEFAULT 0,
  freq_hist_data_bar_heights {NUMBERS.format("freq_hist_data_bar_heights")},
  freq_hist_data_bar_values {NUMBERS.format("freq_hist_data_bar_values")}, UNIQUE (modelId, layer, "index"),
  FOREIGN KEY (modelId, layer) REFERENCES Source(modelId, id),
  FOREIGN KEY (modelId, sourceSetName) REFERENCES SourceSet(modelId, name)) STRICT;
CREATE TABLE Explanation (
  id TEXT NOT NULL PRIMARY KEY, modelId TEXT NOT NULL, layer TEXT NOT NULL, "index" TEXT NOT NULL,
  description TEXT NOT NULL, authorId {USER}, notes TEXT, scoreV1 REAL NOT NULL DEFAULT 0,
  typeName TEXT REFERENCES ExplanationType(name),
  explanationModelName TEXT REFERENCES ExplanationModelType(name),
  FOREIGN KEY (modelId, layer, "index") REFERENCES Neuron(modelId, layer, "index")) STRICT;
CREATE TABLE Activation (
  id TEXT NOT NULL PRIMARY KEY, tokens {NUMBERS.format("tokens")}, dataIndex TEXT, "index" TEXT NOT NULL,
  layer TEXT NOT NULL, modelId TEXT NOT NULL, dataSource TEXT, maxValue REAL NOT NULL,
  maxValueTokenIndex INTEGER NOT NULL, minValue REAL NOT NULL, "values" {NUMBERS.format('"values"')}, creatorId {USER},
  FOREIGN KEY (modelId, layer, "index") REFERENCES Neuron(modelId, layer, "index")) STRICT;
"""
FILES = {"model.jsonl": "Model", "sourceset.jsonl": "SourceSet", "source.jsonl": "Source"}
FOLDERS = {"features": "Neuron", "activations": "Activation", "explanations": "Explanation"}


def load(folders: list[Path]) -> sqlite3.Connection:
    """A database with what these folders (`<model>/<source>`) hold; raises sqlite3.IntegrityError as Postgres would."""
    database = sqlite3.connect(":memory:")
    database.row_factory = sqlite3.Row
    database.executescript("PRAGMA foreign_keys = ON;" + SCHEMA)
    for folder in folders:
        for file, table in FILES.items():
            lines = (folder / file).read_text(encoding="utf-8").splitlines()
            assert len(lines) == 1
            if table != "Model" or not database.execute("SELECT 1 FROM Model").fetchall():
                _insert(database, table, lines)
        for name, table in FOLDERS.items():
            for file in sorted((folder / name).glob("*.jsonl.gz")):
                _insert(database, table, gzip.decompress(file.read_bytes()).decode().strip().split("\n"))
    return database


def _insert(database: sqlite3.Connection, table: str, lines: list[str]) -> None:
    known = {row["name"] for row in database.execute(f'PRAGMA table_info("{table}")')}
    columns = list(json.loads(lines[0]))  # the importer's choice: the first line's
    for line in lines:
        row = json.loads(line)
        assert set(row) <= set(columns) <= known, "a column that the import would pass over"
        values = [json.dumps(v) if isinstance(v, list) else v for v in (row.get(column) for column in columns)]
        names = ", ".join(f'"{column}"' for column in columns)
        database.execute(f'INSERT INTO "{table}" ({names}) VALUES ({", ".join("?" * len(columns))})', values)
