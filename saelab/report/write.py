"""The report's data as scripts: a page opened from disk may load scripts but may not fetch files."""

import json
import math
from pathlib import Path
from typing import Any

from saelab.evaluate import BADGES

CHUNK = 40  # units in one data file
DIGITS = 4  # significant digits kept on pages; exports keep all


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
        return {str(k): rounded(v) for k, v in value.items()}
    return [rounded(v) for v in value] if isinstance(value, list | tuple) else value


def summary(records: list[dict[str, Any]], thumbs: int = 5) -> dict[str, Any]:
    """A basis for the browser, column by column: what a table row and a dot in the scatter plot need."""
    labels = sorted({r["label"] for r in records if r["label"] is not None})
    statuses = sorted({r["status"] for r in records})
    place = {label: i for i, label in enumerate(labels)}
    keys = list(records[0]["measured"]) if records else []
    return {
        "units": [r["unit"] for r in records],
        "labels": labels,
        "label": [-1 if r["label"] is None else place[r["label"]] for r in records],
        "abstained": [i for i, r in enumerate(records) if r["abstained"]],
        "several": [i for i, r in enumerate(records) if len(r["meanings"]) > 1],
        "badges": list(BADGES),
        "badge": [BADGES.index(r["badge"]) if r["badge"] in BADGES else -1 for r in records],
        "statuses": statuses,
        "status": [statuses.index(r["status"]) for r in records],
        "thumbs": [r["positives"][:thumbs] for r in records],
        "measured": {key: [r["measured"][key] for r in records] for key in keys},
    }


def basis(out: Path, number: int, records: list[dict[str, Any]]) -> None:
    """Write one basis: its summary, the summary of its first units, and its records, a file for every 40 units.

    The browser of units draws its first page from the small file before it loads the large one.
    """
    put(out, f"summary-{number}", summary(records))
    put(out, f"summary-{number}-first", summary(records[:CHUNK]))
    for start in range(0, len(records), CHUNK):
        put(out, f"units/{number}/{start // CHUNK}", records[start : start + CHUNK])
