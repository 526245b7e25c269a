"""The tables of docs/effects.md, and the pictures of units: what units do, beside what descriptions say of them.

`python scripts/studies/effects_tables.py RUN [controls]` after `saelab effects run=RUN`: a table a layer, of the run's
bases and of the controls that it lacks; for each basis of SAE features, the units on which the two disagree most.
`python scripts/studies/effects_tables.py RUN OUT.png LAYER BASIS UNIT [UNIT ...]`: the test pictures that fire these
units most, a row a unit.
"""

import sys
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageOps

from saelab import tables
from saelab.artifacts import read_json, read_jsonl
from saelab.effects.summary import column
from saelab.run.basis import Basis
from saelab.run.making import Stages
from saelab.run.record import read_config
from saelab.run.stages.effects import ROWS, SUMMARY, EffectsSettings

COLUMNS = (
    *("basis", "caption r", "holds", "own class", "others", "net (se)", "permuted", "top-1 / top-10", "p < .05"),
    *("steered", "push", "detects and uses", "r of net and caption r"),
)
EXTREME = 4  # units of each kind that are listed
SIDE, SHOWN, GAP = 112, 6, 6  # of the strip: pixels a picture, pictures a unit, pixels between


def main(run: Path, controls: bool = False) -> None:
    """Print a table a layer, then units on which descriptions and effects disagree."""
    made = Stages(read_config(run))
    sides = [(made, basis) for basis in made.evaluated if basis.acts]
    sides += [(made.controls, basis) for basis in made.controls.evaluated] if controls else []
    for layer in made.config.layers:
        own = [(stages, basis) for stages, basis in sides if basis.layer == layer]
        found = [(basis, join(stages, basis)) for stages, basis in own]
        rows = [line(stages, basis, units) for (stages, basis), (_, units) in zip(own, found)]
        print(f"\n{layer}\n\n{tables.draw_markdown(COLUMNS, rows)}")
        for basis, units in found:
            if basis.kind == "sae" and not basis.control:
                print(f"\n{extremes(units)}")


def join(made: Stages, basis: Basis) -> list[dict[str, Any]]:
    """The measured units of a basis, each with its caption correlation above chance and its badge."""
    assert basis.evaluation is not None
    said = {row["unit"]: row for row in read_jsonl(basis.evaluation.path / "evaluation.jsonl")}
    rows = read_jsonl(made.measure_effects(basis, EffectsSettings()) / ROWS)
    for row in rows:
        named = said[row["unit"]]["named"]
        known = named.get("caption_r") is not None and named.get("caption_r_chance") is not None
        row["caption"] = named["caption_r"] - named["caption_r_chance"] if known else None
        row["badge"] = said[row["unit"]]["badge"]
    return rows


def line(made: Stages, basis: Basis, rows: list[dict[str, Any]]) -> list[str]:
    """A basis' row of the table."""
    found = read_json(made.measure_effects(basis, EffectsSettings()) / SUMMARY)
    mean = {name: entry and entry["mean"] for name, entry in found["mean"].items()}
    net, caption = column(rows, "causal_net"), column(rows, "caption")
    both = np.isfinite(net) & np.isfinite(caption)
    r = float(np.corrcoef(net[both], caption[both])[0, 1]) if both.sum() > 2 else None
    error = (found["mean"]["causal_net"] or {}).get("se")
    steered = (found["steer_pct"].get("1") or {}).get("mean")
    holds = float(np.mean([row["badge"] == "holds" for row in rows]))
    pair = f"{tables.number(mean['top1'], '.2f')} / {tables.number(mean['top10'], '.2f')}"
    cells = [basis.name, tables.number(float(np.nanmean(caption))), tables.number(holds, ".2f")]
    cells += [tables.number(mean[name]) for name in ("causal_pct", "causal_control")]
    cells += [
        f"{tables.number(mean['causal_net'])} ({tables.number(error)})",
        tables.number(mean["permuted_pct"]),
        pair,
    ]
    cells += [tables.number(found["uses"], ".2f"), tables.number(steered), tables.number(mean["push"], ".2f")]
    return [*cells, tables.number(found["four_field"]["both"], ".2f"), tables.number(r, ".2f")]


def extremes(rows: list[dict[str, Any]]) -> str:
    """Units whose label describes and does nothing, does and does not describe, and does both: the clearest of each."""
    known = [row for row in rows if row.get("causal_net") is not None and row["caption"] is not None]
    kinds = {
        "describes, the network does something else": lambda r: r["caption"] - r["causal_net"],
        "the network uses it so, captions don't say it": lambda r: r["causal_net"] - r["caption"],
        "both": lambda r: min(r["causal_net"], 2 * r["caption"]),
    }
    lines = []
    for kind, score in kinds.items():
        for row in sorted(known, key=score, reverse=True)[:EXTREME]:
            raised = ", ".join(name for name, _ in row["raised"][:3])
            numbers = f"caption r {row['caption']:.2f}, own {row['causal_pct']:.2f}, net {row['causal_net']:.2f}"
            lines.append(f"{kind}: {row['unit']} {row['label']} ({row['badge']}), {numbers}, p {row['causal_p']:.3f}")
            lines[-1] += f"; raises {raised}"
    return "\n".join(lines)


def draw_units(run: Path, out: Path, layer: str, basis: str, units: list[int]) -> None:
    """Write a strip of the test pictures that fire each unit most."""
    made = Stages(read_config(run))
    own = next(b for b in made.labelled if (b.layer, b.name) == (layer, basis))
    rows = {row["unit"]: row for row in read_jsonl(made.measure_effects(own, EffectsSettings()) / ROWS)}
    step = SIDE + GAP
    strip = Image.new("RGB", (SHOWN * step - GAP, len(units) * step - GAP), "white")
    for y, unit in enumerate(units):
        for x, image in enumerate(rows[unit]["pictures"][:SHOWN]):
            padded = ImageOps.pad(made.images.load(image), (SIDE, SIDE), Image.Resampling.LANCZOS, "white")
            strip.paste(padded, (x * step, y * step))
    strip.quantize(192).save(out, optimize=True)


if __name__ == "__main__":
    if len(sys.argv) > 3:
        draw_units(Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3], sys.argv[4], [int(unit) for unit in sys.argv[5:]])
    else:
        main(Path(sys.argv[1]), controls=sys.argv[2:] == ["controls"])
