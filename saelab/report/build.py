"""Run folder in, report folder out."""

import base64
import hashlib
import json
import logging
import shutil
from importlib import metadata
from importlib.resources import files
from numbers import Integral
from pathlib import Path
from platform import python_version
from typing import Any

import numpy as np

import saelab
from saelab.artifacts import file_digest, locked, plain, read_json
from saelab.errors import UserError
from saelab.evaluate import BADGES
from saelab.files import check_folder
from saelab.images import ImageSet
from saelab.report import (
    exports,
    glossary,
    label_pictures,
    matched_pairs,
    meaning,
    people,
    pictures,
    reading,
    sae_quality,
    synthesised,
    units,
    vlm_answers,
    write,
)
from saelab.report.called import Called, in_few_words, in_words
from saelab.report.records import main_scorer

log = logging.getLogger("saelab")

STATIC = files("saelab.report") / "static"
PAGES = {
    "index": "Results",
    "units": "Units",
    "unit": "Unit",
    "beside": "Side by side",
    "map": "Map",
    "compare": "Comparison",
    "methods": "Methods",
}
VENDOR = ("d3.min.js", "plot.umd.min.js")  # loaded when a chart is drawn
CARDS = 4  # units of a basis on the overview, of the best and of the evenly spaced
COMMON = "report.js"  # what every page uses, as one file: a page waits for each that it loads
SCRIPTS = (
    "core.js",
    "columns.js",
    "charts.js",
    "pieces.js",
    "people.js",
    "list.js",
    "triage.js",
    "answers.js",
    "heat.js",
    "label_pictures.js",
    "members.js",
    "vlm_answers.js",
    "synthesised.js",
)  # in this order in COMMON
Light = list[list[dict[str, Any]]]  # per basis and unit: `units.Assembled.light`
BESIDE = {
    "compare": ("forest.js", "dictionaries.js"),
    "unit": ("neighbours.js",),
}  # scripts of one page, beside its own
FONTS = {"Inter": "inter-latin-wght-normal.woff2", "Source Serif 4": "source-serif-4-latin-wght-normal.woff2"}


def build(run_json: Path | str | reading.Run, out: Path | str, shown: int = 30, site: str | None = None) -> Path:
    """Write the report of a run and return the path of its `index.html`, to be opened in a browser.

    `run_json`: the run's file, or what `reading.read` made of it. `shown` limits the strongest images on a unit's page.
    `site`: the address (https://...) where the folder will lie, for the links to pictures in Neuronpedia's files. An
    existing report in `out` is replaced only when the new one is complete, and reused when its inputs are unchanged;
    two builds into one folder take turns.
    Raises UserError if the run is missing, half-written, moved or of another version, if `out` holds something other
    than a report, or if `site` is no address.
    """
    check_shown(shown)
    if not isinstance(run_json, reading.Run):
        reading.read_record(Path(run_json))  # before anything is written beside what is no run
    out = Path(out)
    check_folder("out", out)
    out.parent.mkdir(parents=True, exist_ok=True)
    with locked(out.with_name(f"{out.name}.lock")):  # of two builds into one folder the second reuses the first's
        return _build(run_json, out, shown, site)


def check_shown(shown: int) -> None:
    """Raise UserError where a unit's page would show no image."""
    if isinstance(shown, bool) or not isinstance(shown, Integral) or shown < 1:
        raise UserError("shown", shown, "expected a whole number of at least 1", "30 is usual")


def _build(run_json: Path | str | reading.Run, out: Path, shown: int, site: str | None) -> Path:
    if site is not None and not site.startswith(("https://", "http://")):
        raise UserError("site", site, "is no address", "give site=https://HOST/PATH")
    if out.exists() and any(out.iterdir()) and not (out / "report.json").is_file():
        raise UserError("out", out, "is not empty and holds no report", "give another folder")
    run = run_json if isinstance(run_json, reading.Run) else reading.read(run_json)
    source = _source(run, shown, site)
    if (out / "report.json").is_file() and read_json(out / "report.json").get("source") == source:
        log.info("reused  %s", out)
        return out / "index.html"
    partial = out.with_name(out.name + ".partial")
    if partial.exists() and _written_from(partial) != source:
        shutil.rmtree(partial)
    partial.mkdir(parents=True, exist_ok=True)
    (partial / "source.txt").write_text(source, encoding="utf-8")
    _write(run, partial, shown, site)
    (partial / "report.json").write_text(json.dumps({"source": source, "saelab": saelab.__version__}), encoding="utf-8")
    (partial / "source.txt").unlink()
    if out.exists():
        shutil.rmtree(out)
    partial.rename(out)
    return out / "index.html"


def _source(run: reading.Run, shown: int, site: str | None) -> str:
    """A digest of the report's inputs: the run, its artifacts' recipes, this code."""
    parts = [json.dumps(plain(run.facts), sort_keys=True), str(shown), str(site), saelab.__version__, meaning.method()]
    stages = ("units", "labels", "evaluation", "quality")
    folders = [run.facts["images"], *(basis[s] for basis in run.facts["bases"] for s in stages if basis.get(s))]
    folders += list((run.facts.get("comparisons") or {}).values())
    for folder in folders:
        parts.append((run.path.parent / folder / "complete.json").read_text(encoding="utf-8"))
    for entry in run.facts["bases"]:
        if entry.get("effects"):  # it grows, so its rows count
            parts.append(file_digest(run.path.parent / entry["effects"] / "effects.jsonl"))
    for basis in run.bases:
        parts.append(str(basis.sheets and basis.sheets.name))
        folders = vlm_answers.find_verifications(run.path.parent, basis.recipes["labels"])
        folders += synthesised.find_folders(run.path.parent, basis.recipes["units"])
        parts.append(str(label_pictures.find_measured(run.path.parent, basis.recipes["labels"])))
        parts += [file_digest(rows) for folder in folders for rows in sorted(folder.glob("*.jsonl"))]
    parts += [file_digest(path) for path in people.files(run.path)]
    here = Path(__file__).parent
    for file in sorted(p for p in here.rglob("*") if p.suffix in (".py", ".js", ".css", ".html")):
        parts.append(hashlib.sha256(file.read_bytes()).hexdigest())
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()


def _written_from(partial: Path) -> str:
    mark = partial / "source.txt"
    return mark.read_text(encoding="utf-8") if mark.is_file() else ""


def _write(run: reading.Run, out: Path, shown: int, site: str | None) -> None:
    pairs, takeaway = matched_pairs.Pairs(run), exports.Takeaway(run, out, site)

    def take(number: int, place: int, records: list[dict[str, Any]]) -> None:
        write.units(out, number, place, records)
        pairs.add(number, records)
        takeaway.add(number, records)

    made = units.assemble(run, out, shown, take)
    side = pictures.side_for(len(made.images))
    unreadable = pictures.write(sorted(made.images), run.images, out, side)
    for number, light in enumerate(made.light):
        write.summaries(out, number, light)
    facts = _facts(run, made.light, side, unreadable)
    facts |= {"sides": pairs.draw(), "takeaway": takeaway.write(), "prompts": list(made.prompts)}
    write.put(out, "run", facts)
    write.put(out, "people", people.read(run.bases, people.folder(run.path)))
    for number, comparison in enumerate(run.comparisons):
        write.put(out, f"comparison-{number}", comparison)
    _assets(out)
    _pages(run, out)


def _facts(run: reading.Run, light: Light, side: int, unreadable: dict[int, str]) -> dict[str, Any]:
    scorers = list(dict.fromkeys(s for basis in run.bases for row in basis.labels for s in row["scores"]))
    names = [Called(b.short, b.kind, b.layer, b.seed, b.control) for b in run.bases]
    keep = ("name", "version", "created", "config", "host", "encoder", "timings", "reused", "notes")
    return {key: run.facts.get(key) for key in keep} | {
        "images": _images(run.images),
        "bases": [
            _basis(b, rows) | {"words": words, "few_words": few}
            for b, rows, words, few in zip(run.bases, light, in_words(names), in_few_words(names), strict=True)
        ],
        "scorers": scorers,
        "scorer": next((main_scorer(row) for basis in run.bases for row in basis.labels if row["scores"]), None),
        "terms": glossary.terms(scorers),
        "chunk": write.CHUNK,
        "side": side,
        "unreadable": list(unreadable.values()),
        "compared": [c["setup"]["layer"] for c in run.comparisons],
        "cost": {basis.name: vlm_answers.spent(basis.proposals, basis.verified) for basis in run.bases},
        "made_with": {name: _version(name) for name in ("numpy", "scipy", "torch")} | {"python": python_version()},
    }


def _version(package: str) -> str:
    return metadata.version(package)


def _images(images: ImageSet) -> dict[str, Any]:
    facts = {key: getattr(images, key) for key in ("name", "fingerprint", "credit", "skipped")}
    credits = {i: images.credits[file] for i, file in enumerate(images.files) if file in images.credits}
    return facts | {"count": len(images), "splits": images.counts, "credits": credits}


def _basis(basis: reading.ReadBasis, rows: list[dict[str, Any]]) -> dict[str, Any]:
    judged = (basis.badges or {}).get("metric")
    statuses = [r["status"] for r in rows]
    labels = [r["label"] for r in rows if r["label"] is not None]
    columns = {k: [r["measured"][k] for r in rows if r["measured"][k] is not None] for k in rows[0]["measured"]}
    quartiles = {k: np.quantile(v, [0.25, 0.5, 0.75]).tolist() for k, v in columns.items() if v}
    return {
        "name": basis.name,
        "short": basis.short,
        "kind": basis.kind,
        "layer": basis.layer,
        "seed": basis.seed,
        "control": basis.control,
        "units": len(rows),
        "artifact": basis.units.name,
        "labelled": len(labels),
        "sure": sum(r["label"] is not None and not r["abstained"] for r in rows),
        "distinct": len(set(labels)),
        "several": sum(r["several"] for r in rows),
        "statuses": {s: statuses.count(s) for s in sorted(set(statuses))},
        "quartiles": quartiles,
        "badges": {word: sum(r["badge"] == word for r in rows) for word in BADGES} if judged else None,
        "judge": judged,
        "quality": sae_quality.of_basis(basis),
        "best": [_card(r) for r in _best([r for r in rows if len(r["positives"]) >= 3], judged, CARDS)],
        "sample": [_card(r) for r in _evenly([r for r in rows if r["label"] and len(r["positives"]) >= 3], CARDS)],
        "recipes": basis.recipes,
    }


def _best(rows: list[dict[str, Any]], metric: str | None, count: int) -> list[dict[str, Any]]:
    """The `count` labels that hold best on held-out images: highest lower end of the interval, each label once.

    Labels that captions of held-out images name come before those only near to what they say: a word like
    "ferret" is near to whatever captions say of animals. Of these, units of one meaning come first: a label names one.
    """
    low = {r["unit"]: r["interval"][metric][0] for r in rows if r["badge"] == "holds" and metric in r["interval"]}
    found: dict[str, dict[str, Any]] = {}
    for record in sorted((r for r in rows if r["unit"] in low), key=lambda r: _order(r, low[r["unit"]])):
        found.setdefault(record["label"], record)
    return list(found.values())[:count]


def _order(record: dict[str, Any], low: float) -> tuple[bool, bool, float]:
    return not record["said_of"], record["several"], -low


def _evenly(rows: list[dict[str, Any]], count: int) -> list[dict[str, Any]]:
    """`count` rows spread evenly over the unit numbers: no other property is looked at."""
    return [rows[int((i + 0.5) * len(rows) / count)] for i in range(count)] if len(rows) > count else rows


def _card(record: dict[str, Any]) -> dict[str, Any]:
    rate = record["measured"]["firing_rate"]
    keep = ("unit", "label", "abstained", "badge")
    return {key: record[key] for key in keep} | {"thumbs": record["positives"][:3], "rate": rate}


def _assets(out: Path) -> None:
    assets = out / "assets"
    assets.mkdir(exist_ok=True)
    for name in VENDOR:
        (assets / name).write_bytes((STATIC / "vendor" / name).read_bytes())
    licences = [p for p in (STATIC / "vendor").iterdir() if p.name.startswith(("LICENSE", "README"))]
    own = [p for p in STATIC.iterdir() if p.name.endswith((".js", ".css")) and p.name not in SCRIPTS]
    for file in [*licences, *own]:
        (assets / file.name).write_bytes(file.read_bytes())
    joined = "\n".join((STATIC / name).read_text(encoding="utf-8") for name in SCRIPTS)
    (assets / COMMON).write_text(joined, encoding="utf-8")
    (assets / "fonts.css").write_text("\n".join(_font(*font) for font in FONTS.items()), encoding="utf-8")


def _font(family: str, name: str) -> str:
    """A typeface inside the style sheet: some browsers refuse font files for pages opened from disk."""
    data = base64.b64encode((STATIC / "vendor" / name).read_bytes()).decode()
    source = f'url("data:font/woff2;base64,{data}") format("woff2")'
    return f'@font-face {{ font-family: "{family}"; font-weight: 200 900; font-display: swap; src: {source}; }}'


def _pages(run: reading.Run, out: Path) -> None:
    from jinja2 import Environment, PackageLoader

    template = Environment(loader=PackageLoader("saelab.report", "pages"), autoescape=True).get_template("page.html")
    shown = {key: title for key, title in PAGES.items() if key != "compare" or run.comparisons}
    for key, title in shown.items():
        scripts = [COMMON, *BESIDE.get(key, ()), f"page-{key}.js"]
        text = template.render(key=key, title=title, pages=shown, run=run.facts["name"], scripts=scripts)
        (out / f"{key}.html").write_text(text, encoding="utf-8")
