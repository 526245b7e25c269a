"""What scripts print for a person: the table of scorers and the last screen of a run."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from saelab.artifacts import read_json

if TYPE_CHECKING:
    from stages import Basis, Run

COLUMNS = ("scs", "caption_r", "truth_r", "auprc", "f1")


def label_table(bases: "Sequence[Basis]") -> str:
    """Basis x scorer x metric over all units (an unlabelled unit counts 0), and how many distinct labels were given."""
    lines = [f"{'basis':<28}{'scorer':<24}" + "".join(f"{c:>10}" for c in COLUMNS) + f"{'distinct':>10}"]
    for basis in bases:
        assert basis.evaluation is not None
        summary = read_json(basis.evaluation.path / "evaluation.json")
        for scorer, entry in summary["by_scorer"].items():
            means = (entry["metrics"][c]["mean_all"] for c in COLUMNS)
            cells = "".join(f"{'-' if m is None else format(m, '.3f'):>10}" for m in means)
            lines.append(f"{basis.layer + ' ' + basis.name:<28}{scorer:<24}{cells}{entry['distinct']:>10}")
    return "\n".join(lines)


def last_screen(run: "Run", index: Path, seconds: float) -> str:
    """What was compared, the answer in words, and where the report is."""
    lines = [
        f"{len(run.images)} photos ({len(run.images.skipped)} skipped), {run.host.name}, labels by {run.encoder.name}",
    ]
    for layer, made in run.comparisons.items():
        result = read_json(made.path / "comparison.json")
        sizes = ", ".join(f"{b['name']} {b['after']} of {b['before']}" for b in result["bases"])
        lines += [f"{layer}: units compared: {sizes}", result["conclusion"]]
    reused = sum(artifact.reused for basis in run.evaluated for artifact in basis.made())
    lines.append(f"{seconds:.0f} s, {reused} artifacts reused. Report: {index.resolve().as_uri()}")
    return "\n".join(lines)
