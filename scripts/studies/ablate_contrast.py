"""Does contrast help the proposer? `python scripts/studies/ablate_contrast.py proposer=tagger` (or openai, ...).

Proposals of every unit without contrasts, with its own, and with another unit's; each unit's first candidate is judged
on the test split as labels are (saelab.evaluate). Only units that got a candidate in every mode count. Differences are
paired by unit, with bootstrap intervals over units and Wilcoxon's p, uncorrected. With `proposer.synthesised=alone` or
`beside` there is one mode more: positives, with pictures that were made to raise the unit in their place or beside them
(Nguyen et al. 2016); `proposer.units=random:20` keeps the time to make them short.
"""

from typing import Any

import numpy as np
import torch
from omegaconf import DictConfig

from saelab import evaluate, tables, units
from saelab.acts import columns, pick
from saelab.cli.edge import command, plain, stages
from saelab.compare.statistics import on_same_units
from saelab.label import propose
from saelab.label.proposal import MODES
from saelab.label.vocabulary import key
from saelab.run.making import Stages

METRICS = ("scs", "caption_r", "truth_r", "auprc", "f1")
ALPHA, RESAMPLES = 0.05, 2000


@command("label")
def main(cfg: DictConfig) -> None:
    """Print, per basis, the means of the modes and the paired differences."""
    asked = plain(cfg.proposer)
    runs = {mode: stages(cfg, proposer=asked | {"mode": mode} | _photos_alone(asked)) for mode in MODES}
    if _photos_alone(asked):
        runs[f"synthesised {asked['synthesised']}"] = stages(cfg, proposer=asked | {"mode": MODES[0]})
    for place, basis in enumerate(runs[MODES[0]].proposed):
        print(f"\n{basis.layer}  {basis.name}: {compare(runs, place)}")


def compare(runs: dict[str, Stages], place: int) -> str:
    """One basis' table: means of the modes, on units with a candidate in every one, and their differences."""
    first = {mode: _first(run, place) for mode, run in runs.items()}
    shared = sorted(set.intersection(*(set(labels) for labels in first.values())))
    numbers = {mode: _judged(run, place, shared, first[mode]) for mode, run in runs.items()}
    distinct = {mode: len({labels[unit] for unit in shared}) for mode, labels in first.items()}
    return f"{len(shared)} units with a candidate in every mode\n{_table(numbers, distinct)}"


def _photos_alone(asked: dict[str, Any]) -> dict[str, Any]:
    """What has to change for a proposer to see no made pictures; {} where it sees none."""
    return {"synthesised": "none"} if asked.get("synthesised", "none") != "none" else {}


def _first(run: Stages, place: int) -> dict[int, str]:
    """Each unit's first candidate, in the spelling of the vocabulary."""
    folder = run.proposed[place].proposals
    assert folder is not None
    spelling = {key(label): label for label in run.vocabulary.labels}
    return {p.unit: spelling[key(p.labels[0])] for p in propose.read(folder) if p.labels}


def _judged(run: Stages, place: int, shared: list[int], labels: dict[int, str]) -> np.ndarray:
    """[units, metrics] of the shared units' labels on the test split; NaN where a number is undefined."""
    splits = evaluate.Splits(run.images.ids("mine"), run.images.ids("test"))
    acts = units.UnitActivations.load(run.proposed[place].units.path)
    chosen = torch.tensor(shared)
    mine, test = (pick(columns(acts.rows(ids)), chosen) for ids in (splits.mine, splits.test))
    found = evaluate.faithfulness(mine, test, [labels[unit] for unit in shared], run.judges, splits)
    return torch.stack([found[metric].double() for metric in METRICS], dim=1).numpy()


def _table(numbers: dict[str, np.ndarray], distinct: dict[str, int]) -> str:
    rows = [[mode, *map(_mean, values.T), str(distinct[mode])] for mode, values in numbers.items()]
    pairs_of = [("contrast", "positives"), ("contrast", "shuffled_contrast")]
    pairs_of += [(name, "positives") for name in numbers if name not in MODES]
    for one, other in pairs_of:
        pairs = on_same_units(numbers[one], numbers[other], ALPHA, RESAMPLES, seed=0)
        cells = ("-" if p is None else f"{p.mean_a - p.mean_b:+.4f} [{p.low:+.4f}, {p.high:+.4f}]" for p in pairs)
        rows.append([f"{one} - {other}", *cells, ""])
    return tables.draw(("", *METRICS, "distinct"), rows)


def _mean(column: np.ndarray) -> str:
    known = column[np.isfinite(column)]
    return f"{known.mean():.4f} (n {len(known)})" if len(known) else "-"


if __name__ == "__main__":
    main()
