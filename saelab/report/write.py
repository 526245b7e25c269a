"""The report's data as scripts: a page opened from disk may load scripts but may not fetch files."""

import base64
import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from saelab.evaluate import BADGES

CHUNK = 40  # units in one data file
THUMBS = 5  # images in a row of a table
DIGITS = 4  # significant digits kept on pages; exports keep all
NONE = -(2**15)  # digits that stand for no number
AS_IT_IS = frozenset((int, str, bool, type(None)))  # most values of a page


def put(out: Path, key: str, value: Any) -> None:
    """Write `data/<key>.js`, which hands `value` to the page under `key`."""
    path = out / "data" / f"{key}.js"
    path.parent.mkdir(parents=True, exist_ok=True)
    text = json.dumps(rounded(value), ensure_ascii=False, separators=(",", ":"), allow_nan=False)
    # JSON inside a JavaScript string is parsed several times faster than an object literal
    path.write_text(f"saelab.put({json.dumps(key)},{_quoted(text)})\n", encoding="utf-8")


def _quoted(text: str) -> str:
    escaped = text.replace("\\", "\\\\").replace("'", "\\'").replace("\u2028", "\\u2028").replace("\u2029", "\\u2029")
    return f"'{escaped}'"


def rounded(value: Any) -> Any:
    """`value` with floats cut to a few significant digits and what is not a number as null."""
    if isinstance(value, float):
        return float(f"{value:.{DIGITS}g}") if math.isfinite(value) else None
    if isinstance(value, dict):
        return {str(k): v if type(v) in AS_IT_IS else rounded(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [v if type(v) in AS_IT_IS else rounded(v) for v in value]
    return value


def summary(records: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """A basis for the browser, column by column: what a table row and a dot in the scatter plot need.

    `{"units", "labels", "badges", "statuses", "columns", "thumbs", "measured"}`: a unit's place in the words of
    `labels`, `badges` and `statuses`, and its `flags` (1 abstains, 2 has two meanings), are integers of the columns of
    the same names (-1: none), its strongest images a row of `thumbs` integers, all by `integers`; `measured`
    holds its numbers by `decimals`.
    """
    labels = sorted({r["label"] for r in records if r["label"] is not None})
    statuses = sorted({r["status"] for r in records})
    place = {label: i for i, label in enumerate(labels)}
    keys = list(records[0]["measured"]) if records else []
    columns = {
        "label": [place.get(r["label"], -1) for r in records],
        "badge": [BADGES.index(r["badge"]) if r["badge"] in BADGES else -1 for r in records],
        "status": [statuses.index(r["status"]) for r in records],
        "flags": [bool(r["abstained"]) + 2 * r["several"] for r in records],
    }
    strongest = np.full((len(records), THUMBS), -1)
    for row, r in zip(strongest, records, strict=True):
        row[: len(r["positives"])] = r["positives"][:THUMBS]
    return {
        "units": len(records),
        "labels": labels,
        "badges": list(BADGES),
        "statuses": statuses,
        "columns": {key: integers(column) for key, column in columns.items()},
        "thumbs": integers(strongest.ravel()),
        "measured": {key: decimals([r["measured"][key] for r in records]) for key in keys},
    }


def integers(values: Sequence[int] | np.ndarray) -> str:
    """Integers as base64 of little-endian int32."""
    return base64.b64encode(np.asarray(values, dtype="<i4").tobytes()).decode()


def decimals(values: Sequence[float | None]) -> str:
    """Numbers of `DIGITS` significant digits as base64 of all digits (little-endian int16) and all exponents (int8).

    A number is digits times ten to the exponent, which is what its decimal text says, to the bit. Digits of -32768
    stand for no number; what is too large or small for the exponent becomes none and 0.
    """
    pairs = [_decimal(value) for value in values]
    digits, exponents = np.array(pairs, dtype="<i2").reshape(-1, 2).T
    return base64.b64encode(digits.tobytes() + exponents.astype(np.int8).tobytes()).decode()


def _decimal(value: float | None) -> tuple[int, int]:
    if value is None or not math.isfinite(value):
        return NONE, 0
    digits, exponent = f"{value:.{DIGITS - 1}e}".split("e")
    places = int(exponent) - (DIGITS - 1)
    if places > 127:
        return NONE, 0
    return (0, 0) if places < -128 else (round(float(digits) * 10 ** (DIGITS - 1)), places)


def read_summary(found: dict[str, Any]) -> dict[str, Any]:
    """What `summary` packed, column by column as lists: each of `columns`, `thumbs` per unit, `measured` by number."""
    count = found["units"]

    def whole(text: str) -> list[int]:
        return np.frombuffer(base64.b64decode(text), "<i4").tolist()

    def numbers(text: str) -> list[float | None]:
        data = base64.b64decode(text)
        digits, exponents = np.frombuffer(data[: 2 * count], "<i2"), np.frombuffer(data[2 * count :], np.int8)
        pairs = zip(digits.tolist(), exponents.tolist(), strict=True)
        return [None if d == NONE else float(f"{d}e{e}") for d, e in pairs]

    thumbs = whole(found["thumbs"])
    wide = len(thumbs) // max(count, 1)
    rows = [[i for i in thumbs[u * wide : (u + 1) * wide] if i >= 0] for u in range(count)]
    words = {key: found[key] for key in ("units", "labels", "badges", "statuses")}
    measured = {key: numbers(text) for key, text in found["measured"].items()}
    return words | {key: whole(text) for key, text in found["columns"].items()} | {"thumbs": rows, "measured": measured}


def units(out: Path, number: int, place: int, records: Sequence[dict[str, Any]]) -> None:
    """Write records of basis `number`: a file for every `CHUNK` units, of which this is the one at `place`."""
    put(out, f"units/{number}/{place}", records)


def summaries(out: Path, number: int, light: Sequence[dict[str, Any]]) -> None:
    """Write the summary of a basis and that of its first units.

    `light`: of each record what `summary` reads, and `several`: has it two meanings? The browser of units draws its
    first page from the small file before it loads the large one.
    """
    put(out, f"summary-{number}", summary(light))
    put(out, f"summary-{number}-first", summary(light[:CHUNK]))
