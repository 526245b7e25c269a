"""Does a label's own truth predict a unit's work better than the label does, and that better than a label dealt out?

`python scripts/studies/ablation_scores.py RUN [LAYER [SEED ...]]` after `saelab quickstart`: ablation scores of the
run's neurons and features, seeds together, units of one label a cluster. Three sets of units: those whose final label
is true, by captions and classes, of a test picture and of MANY mining pictures or more; those with fewer, 1 at least,
from which little can be learned; and RANDOM of each basis, drawn by seed, for which the best of people's words stands
in.
"""

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from saelab import tables
from saelab.artifacts import read_jsonl
from saelab.effects.summary import mean_of
from saelab.label import pipeline
from saelab.run.basis import Basis
from saelab.run.making import Stages
from saelab.run.record import read_config
from saelab.run.stages.effects import EffectsSettings, choose_units
from saelab.run.stages.simulation import bounded

MANY = 10  # mining pictures that a label is true of
RANDOM = 20  # units of each basis and seed
PREDICTORS = ("truth", "best_truth", "final", "dealt")
PAIRS = (("truth", "final"), ("best_truth", "final"), ("final", "dealt"), ("best_truth", "dealt"))
COLUMNS = ("layer", "basis", "units", *PREDICTORS, *(f"{a} − {b} (95 %; units)" for a, b in PAIRS))


def main(run: Path, layers: Sequence[str] = (), seeds: Sequence[int] = ()) -> None:
    """Print a row for each layer, group of bases and set of units."""
    made, rows = Stages(read_config(run)), []
    for layer in layers or made.config.layers:
        bases = [b for b in made.labelled if b.layer == layer and b.acts and not b.control]
        bases = [b for b in bases if not seeds or b.seed is None or b.seed in seeds]
        for group in dict.fromkeys(b.group for b in bases):
            own = [b for b in bases if b.group == group]
            for title, choose in (("many true", many_true), ("few true", few_true), ("random", draw)):
                found = [pair for basis in own for pair in score(made, basis, choose(made, basis))]
                rows.append([layer, f"{group}, {title}", *cells(found)])
                print(rows[-1], file=sys.stderr)
    print(tables.draw_markdown(COLUMNS, rows))


def draw(made: Stages, basis: Basis) -> str:
    """Any units."""
    return f"random:{RANDOM}"


def many_true(made: Stages, basis: Basis) -> str:
    """Units whose final label is true of a test picture and of MANY mining pictures, as `units=` names them."""
    return ",".join(str(unit) for unit, true in true_of(made, basis).items() if true >= MANY)


def few_true(made: Stages, basis: Basis) -> str:
    """Units whose final label is true of a test picture and of fewer mining pictures, one at least."""
    return ",".join(str(unit) for unit, true in true_of(made, basis).items() if true < MANY)


def true_of(made: Stages, basis: Basis) -> dict[int, int]:
    """Of how many mining pictures a unit's final label is true, where it is true of some in both splits."""
    truth, (mine, test) = made.judges.truth, (np.asarray(made.images.ids(split)) for split in ("mine", "test"))
    assert truth is not None and basis.labels is not None
    holds = {label: truth.member[:, column].numpy() for label, column in truth.column.items()}
    counts = {label: int(true[mine].sum()) for label, true in holds.items() if true[mine].any() and true[test].any()}
    return {row["unit"]: counts[row["label"]] for row in pipeline.read(basis.labels.path) if row["label"] in counts}


def score(made: Stages, basis: Basis, units: str) -> list[tuple[dict[str, Any], str | None]]:
    """The chosen units' rows, with the final label's score by that name, and their final labels."""
    assert basis.labels is not None
    if not units:
        return []
    own, labelled = EffectsSettings(units=units), pipeline.read(basis.labels.path)
    chosen, final = set(choose_units(basis, labelled, own)), made.config.label.final
    found = [row for row in read_jsonl(Path(made.measure_simulation(basis, own)["path"])) if row["unit"] in chosen]
    return [
        (row | {"scores": row["scores"] | {"final": row["scores"].get(final)}}, labelled[row["unit"]]["label"])
        for row in found
    ]


def cells(found: list[tuple[dict[str, Any], str | None]]) -> list[str]:
    """Means of the predictors, then their paired differences."""
    rows = [row | {"unit": place} for place, (row, _) in enumerate(found)]
    labels = [label for _, label in found]
    texts = [str(sum(row["scores"]["final"] is not None for row in rows))]
    for name in PREDICTORS:
        mean = mean_of(column(rows, name), labels)
        texts.append("–" if mean is None else f"{tables.number(mean.mean)} ({tables.number(mean.se)})")
    for a, b in PAIRS:
        gap = mean_of(column(rows, a) - column(rows, b), labels)
        reach = gap and gap.interval()
        texts.append(f"{gap.mean:+.3f} ({reach[0]:+.3f} to {reach[1]:+.3f}; {gap.units})" if gap and reach else "–")
    return texts


def column(rows: list[dict[str, Any]], name: str) -> np.ndarray:
    """A predictor's scores as means take them: bounded, NaN where there is none."""
    return np.array([bounded(row["scores"].get(name)) for row in rows])


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2:3], [int(seed) for seed in sys.argv[3:]])
