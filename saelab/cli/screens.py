"""What commands print for a person: the table of scorers and the last screen of a run."""

import shlex
import shutil
import textwrap
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from saelab import tables
from saelab.artifacts import read_json
from saelab.images import ImageSet
from saelab.label.sets import CANDIDATES
from saelab.run.basis import Basis
from saelab.run.record import Outcome

HEADLINE = ("caption_r", "truth_r", "auprc", "monosemanticity")
OWN = ("scs", "monosemanticity")  # for pictures that nobody described: the labeller's own judgement is all there is
COLUMNS = ("scs", "caption_r", "truth_r", "auprc", "f1")


def label_table(bases: Sequence[Basis]) -> str:
    """Basis x scorer x metric over all units (an unlabelled unit counts 0), and how many distinct labels were given."""
    rows = []
    for basis in bases:
        assert basis.evaluation is not None
        summary = read_json(basis.evaluation.path / "evaluation.json")
        for scorer, entry in summary["by_scorer"].items():
            means = (tables.number(entry["metrics"][c]["mean_all"]) for c in COLUMNS)
            rows.append([f"{basis.layer} {basis.name}", scorer, *means, str(entry["distinct"])])
    return tables.draw(("basis", "scorer", *COLUMNS, "distinct"), rows, names=2)


def planted_table(found: Sequence[dict[str, Any]]) -> str:
    """Labeller x kind of planted unit: recall / precision / precision of the labels dealt out / recall of what is seen.

    Below it how many concepts the encoder sees; the last number is left out where it sees none. Empty without rows.
    """
    if not found:
        return ""
    kinds = list(dict.fromkeys(row["kind"] for row in found))
    units = {kind: max(row["units"] for row in found if row["kind"] == kind) for kind in kinds}
    whole = {row["kind"]: row for row in reversed(found) if row["units"] == units[row["kind"]]}
    seen = any(row["seen"] for row in whole.values())
    names = ("recall", "precision", "dealt", *(["recall_seen"] if seen else []))
    cells: dict[str, dict[str, str]] = {}
    for row in found:
        numbers = (tables.number(row[name], ".2f") for name in names)
        some = "" if row["units"] == units[row["kind"]] else f" of {row['units']}"  # a proposer was asked about fewer
        cells.setdefault(row["labeller"], {})[row["kind"]] = " / ".join(numbers) + some
    title = "planted units: recall / precision / dealt" + (" / recall of seen" if seen else "")
    head = (title, *(f"{kind} ({units[kind]})" for kind in kinds))
    rows = [[name, *(own.get(kind, "-") for kind in kinds)] for name, own in cells.items()]
    counts = ", ".join(f"{kind} {whole[kind]['seen']} of {whole[kind]['concepts']}" for kind in kinds)
    line = f"seen: concepts whose words the encoder tells from others, {counts}\n" if seen else ""
    return "\n" + tables.draw(head, rows) + "\n" + line


def sets_line(rows: Sequence[dict[str, Any]]) -> str:
    """How many labels the sets of named units hold, on a line; empty where `label.sets` made none.

    `rows`: of labels.jsonl.
    """
    named = [row for row in rows if row["label"] is not None and not row["abstained"]]
    sizes = sorted(len(row["label_set"]) for row in named if row.get("label_set") is not None)
    if not sizes:
        return ""
    counts = f"{sum(n == 1 for n in sizes)} hold one label, {sum(n <= 3 for n in sizes)} at most three"
    most = f"{sum(n >= CANDIDATES for n in sizes)} the most that are looked at ({CANDIDATES})"
    none = "" if len(sizes) == len(named) else f"; {len(named) - len(sizes)} fire on too few pictures for one"
    return f"label sets of {len(sizes)} named units: {counts}, {most}; median {sizes[len(sizes) // 2]}{none}"


def pixel_table(bases: Sequence[Basis]) -> str:
    """NetDissect's IoU with marked pixels on the test pictures, for bases that have it; empty where none has."""
    rows = []
    for basis in bases:
        assert basis.evaluation is not None
        found = read_json(basis.evaluation.path / "evaluation.json").get("pixel_iou")
        if found is not None and found["mean"] is not None:
            numbers = (f"{found[name]:.3f}" for name in ("mean", "best", "above_bar"))
            rows.append([f"{basis.layer} {basis.name}", *numbers, str(found["units"])])
    head = ("NetDissect's pixel IoU on test", "mean", "best", "share above .04", "units")
    return "\n" + tables.draw(head, rows) + "\n" if rows else ""


def last_screen(images: ImageSet, outcome: Outcome, run: Path, index: Path, seconds: float) -> str:
    """What was compared, the headline numbers, the answer, what overfits, and where to look: report and viewer.

    `run`: the run's record; `index`: the report's first page.
    """
    skipped = f" ({len(images.skipped)} skipped)" if images.skipped else ""
    lines = ["", f"{len(images)} photos{skipped}, {outcome.host}, labels by {outcome.encoder}"]
    for layer, made in outcome.comparisons.items():
        result = read_json(made.path / "comparison.json")
        lines += ["", *_headline(layer, result), "", wrapped(result["headline"])]
        lines += [wrapped(text) for text in _overfits(outcome.bases, layer)]
    reused = all(artifact.reused for artifact in (*outcome.comparisons.values(), *outcome.artifacts))
    lines += [
        "",
        f"{seconds:.0f} s" + (", everything was there already" if reused else ""),
        f"Report: {index.resolve().as_uri()}",
        f"Search it, change labels, rate: saelab view run={shlex.quote(str(run))}",
    ]
    return "\n".join(lines)


def wrapped(text: str) -> str:
    """Text in lines that a terminal of 80 columns or more doesn't break; no word is cut."""
    width = max(80, min(110, shutil.get_terminal_size().columns))
    return textwrap.fill(text, width, break_long_words=False, break_on_hyphens=False)


def _overfits(bases: Sequence[Basis], layer: str) -> list[str]:
    """One sentence where SAEs of the layer do much worse on held-out tokens: the first's."""
    measured = [b for b in bases if b.layer == layer and b.quality is not None and not b.control]
    found = [read_json(b.quality.path / "quality.json")["held_out"]["overfit"] for b in measured if b.quality]
    return [text for text in found if text][:1]


def _headline(layer: str, result: dict[str, Any]) -> list[str]:
    """A table of the groups' mean faithfulness over all selected units, and the first pair's difference."""
    groups = [group["name"] for group in result["groups"]]
    units = {b["group"]: 0 for b in result["bases"]}
    for basis in result["bases"]:
        units[basis["group"]] += basis["after"]
    pairs = [p for p in result["pairs"] if p["matching"] == "all" and p["refused"] is None]
    main = next((p for p in pairs if p["role"] == "main"), None)
    described = any(_row(pair, metric) for pair in pairs for metric in HEADLINE[:3])
    shown = [metric for metric in (HEADLINE if described else OWN) if any(_row(pair, metric) for pair in pairs)]
    against = f"{main['a']} - {main['b']} [95 % interval]" if main else ""
    rows = [["units compared", *(f"{units[g]:,}" for g in groups), ""]]
    rows += [_line(result["metrics"][metric]["title"], metric, groups, pairs) for metric in shown]
    if "causal" in result:
        own = result["causal"]
        acting = [p for p in own["pairs"] if p["refused"] is None]
        counts = {p[side]: sum(p[f"units_{side}"]) for p in acting for side in ("a", "b")}
        if acting:
            rows.append(["units measured for the next", *(f"{counts.get(g, 0):,}" for g in groups), ""])
            rows.append(_line(own["metrics"][own["primary"]]["title"], own["primary"], groups, acting))
    return tables.draw((layer, *groups, against), rows).splitlines()


def _line(title: str, metric: str, groups: Sequence[str], pairs: Sequence[dict[str, Any]]) -> list[str]:
    """A metric's mean in each group, and the main pair's difference.

    Above the main pair's reference, where a mean has several.
    """
    main = next((p for p in pairs if p["role"] == "main"), None)
    means: dict[str, float | None] = {}
    for pair in sorted(pairs, key=lambda p: p is main):
        row = _row(pair, metric)
        means |= {pair["a"]: row["mean_a"], pair["b"]: row["mean_b"]} if row else {}
    return [title, *(tables.number(means.get(g)) for g in groups), _interval(main, metric)]


def _row(pair: dict[str, Any], metric: str) -> dict[str, Any] | None:
    """A metric's line over all named units; None where no unit of a side has the number."""
    found = (r for r in pair["results"] if r["metric"] == metric and r["counting"] == "named")
    return next(found, None)


def _interval(pair: dict[str, Any] | None, metric: str) -> str:
    row = _row(pair, metric) if pair else None
    if row is None or row["difference"] is None:
        return "-" if pair else ""
    return f"{row['difference']:+.3f} [{tables.number(row['low'], '+.3f')}, {tables.number(row['high'], '+.3f')}]"
