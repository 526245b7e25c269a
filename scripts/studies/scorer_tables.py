"""The tables of docs/scorers.md from what scorer_study.py measured.

python scripts/studies/scorer_tables.py [FOLDER]/study.json
"""

import json
import sys
from pathlib import Path

from saelab.tables import draw_markdown

OURS = "contrast_evidence"
NAMES = {"cos_cubed": "cos-cubed", "pearson": "Pearson", "semanticlens": "SemanticLens", "soft_wpmi": "soft-WPMI"}
NAMES |= {"csp": "CSP 1", "csp_0.5": "CSP 0.5"}


def shown(value: float, digits: int = 3) -> str:
    """Without the leading zero, as tables of shares are read."""
    return f"{value:.{digits}f}".replace("0.", ".", 1) if abs(value) < 1 else f"{value:.{digits}f}"


def worlds(result: dict) -> str:
    """Share of units named right: a row for each kind of world, a column for each scorer."""
    kinds = {name.removeprefix("world, "): shares for name, shares in result.items() if name.startswith("world, ")}
    if not kinds:
        return ""
    scorers = [s for s in next(iter(kinds.values())) if all(s in shares for shares in kinds.values())]
    rows = []
    for kind, shares in kinds.items():
        best = max(round(shares[s], 3) for s in scorers)
        rows.append([kind, *(marked(shares[s], best) for s in scorers)])
    means = {s: sum(shares[s] for shares in kinds.values()) / len(kinds) for s in scorers}
    rows.append(["mean", *(marked(means[s], round(max(means.values()), 3)) for s in scorers)])
    return draw_markdown(["world", *(NAMES.get(s, s) for s in scorers)], rows)


def marked(value: float, best: float, digits: int = 3) -> str:
    """Bold where it is the best of its row."""
    return f"**{shown(value, digits)}**" if round(value, digits) >= best else shown(value, digits)


def photos(result: dict) -> str:
    """A table for each basis, and ours against the best of the others."""
    parts = []
    for name, measured in result.items():
        if name.startswith(("world, ", "sizes, ")):
            continue
        rows = [
            [
                NAMES.get(scorer, scorer),
                shown(row["truth_r"], 4),
                shown(row["auprc"], 4),
                shown(row["f1"], 4),
                str(row["distinct"]),
                shown(row["named"], 2),
            ]
            for scorer, row in measured["rows"].items()
        ]
        parts.append(f"### {name}\n\n" + draw_markdown(["scorer", "truth r", "AUPRC", "F1", "distinct", "named"], rows))
        for key, found in measured["against"].items():
            best = NAMES.get(found["best"], found["best"])
            named = {"ours - best": f"ours − {best}", "sum - ours": "the sum − ours"}
            told = ["{} = {:+.4f} [{:+.4f}, {:+.4f}]".format(named[of], *found[of]) for of in named if of in found]
            parts.append(f"* {key}: {'; '.join(told)}")
    return "\n\n".join(parts).replace("\n\n* ", "\n* ").replace("|\n* ", "|\n\n* ")


def sizes(result: dict) -> str:
    """Truth r with few and many photos: a table for each basis."""
    parts = []
    for name, rows in result.items():
        if name.startswith("sizes, "):
            scorers = list(next(iter(rows.values())))
            body = []
            for kind, row in rows.items():
                best = max(round(value, 4) for value in row.values())
                body.append([kind, *(marked(row[s], best, 4) for s in scorers)])
            parts.append(
                f"{name.removeprefix('sizes, ')}:\n\n" + draw_markdown(["", *(NAMES.get(s, s) for s in scorers)], body)
            )
    return "\n\n".join(parts)


if __name__ == "__main__":
    measured = json.loads(Path(sys.argv[1]).read_text())
    print(worlds(measured), photos(measured), sizes(measured), sep="\n\n")
