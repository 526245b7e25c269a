"""Which metric on which split for which labels: the numbers of one basis, a row per unit.

Thresholds and firing rates come from the `mine` split, every number that is claimed from `test`. An undefined
number is NaN (null on disk), never 0; what it then counts as stands where averages are taken (`summarise`, `compare`).
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from saelab import metrics
from saelab.acts import Acts, columns
from saelab.artifacts import write_json, write_jsonl
from saelab.errors import UserError
from saelab.evaluate.faithfulness import CHANCE, FAITHFULNESS, Judges, Splits, faithfulness, known_rows
from saelab.evaluate.intervals import RESAMPLES, intervals
from saelab.label.mine import fires_on, positive_images, top_images
from saelab.truth import Similarity
from saelab.units import UnitActivations

COHERENCE = ("clarity", "caption_clarity", "monosemanticity", "polysemanticity", "redundancy")
BADGES = ("holds", "weak", "may be luck")
SMALL = 0.1  # a correlation that is worth the name (Cohen 1988)
PIXEL_BAR = 0.04  # IoU above which NetDissect calls a unit a detector of its concept (Bau et al., CVPR 2017)
STRONGEST = 10  # test images a unit that coherence looks at: few enough for exact 2-means clusters in little time


def evaluate(
    units: UnitActivations,
    labels: Sequence[dict[str, Any]],
    evidence: Judges,
    splits: Splits,
    k: int = 30,
    seed: int = 0,
    resamples: int = RESAMPLES,
    groups: Sequence[object] | np.ndarray | None = None,
) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """Rows (one a unit) and summary of one basis; the formats of `evaluation.jsonl` and `evaluation.json`.

    `labels`: rows of labels.jsonl, one for each unit in order. `k`: positives that a unit was mined with; `strength` is
    the mean of so many strongest mine activations. Coherence looks at the strongest test images: k, but at most 10 and
    at most a tenth of them, of which those count on which the unit fires. `seed`: draws the shuffled-label control, in
    which the labels of all named units, abstained or not, change places. `groups`: the group of each image of the set
    (near-duplicates, a series); test images of a group are resampled together in the units' intervals.

    Raises UserError where labels and units don't belong together, splits overlap, or there are too few test images.
    Eight parameters: units, labels, judges and splits are enough; the others have defaults and stand alone.
    """
    splits = splits.check()
    if [row["unit"] for row in labels] != list(range(units.units)):
        raise UserError("labels", f"{len(labels)} rows", f"the basis has {units.units} units", "label this basis anew")
    mine, test = columns(units.rows(splits.mine)), columns(units.rows(splits.test))
    near = max(2, min(k, STRONGEST, len(splits.test) // 10))
    per_unit = {
        "firing_rate": fires_on(mine).double() / len(splits.mine),
        "strength": top_images(mine, min(k, len(splits.mine)))[1].double().mean(1),
        "test_firing_rate": fires_on(test).double() / len(splits.test),
        **coherence(test, evidence, splits.test, near),
    }
    scorers = sorted({name for row in labels for name in row["scores"]})
    chosen = {name: [row["scores"].get(name, {}).get("label") for row in labels] for name in scorers}
    final = [None if row["abstained"] else row["label"] for row in labels]
    named = [row["label"] for row in labels]
    chosen |= {"final": final, "named": named, "shuffled": shuffled(named, seed)}
    measured = {texts: faithfulness(mine, test, texts, evidence, splits) for texts in set(map(tuple, chosen.values()))}
    entries = {name: _entries(texts, measured[tuple(texts)]) for name, texts in chosen.items()}
    for name in scorers:
        for row, entry in zip(labels, entries[name]):
            entry["null_percentile"] = row["scores"].get(name, {}).get("null_percentile")
    of_test = None if groups is None else np.asarray(groups)[splits.test]
    interval = intervals(mine, test, named, evidence, splits, seed, resamples, of_test)
    metric = judging_metric(evidence)
    rows = []
    for u, (row, numbers) in enumerate(zip(labels, _rows(per_unit))):
        head = {name: row[name] for name in ("unit", "status", "label", "abstained")}
        by_scorer = {name: entries[name][u] for name in scorers}
        rows.append(
            head
            | numbers
            | {"by_scorer": by_scorer, **{name: entries[name][u] for name in ("final", "named", "shuffled")}}
            | {"interval": interval[u], "badge": badge(entries["named"][u], interval[u], metric)}
        )
    return rows, summarise(rows, evidence, splits, near, seed)


def coherence(test: Acts, evidence: Judges, ids: np.ndarray, k: int) -> dict[str, Float[Tensor, "units"]]:
    """Unit coherence on the given (test) images, no labels needed: `COHERENCE`; NaN where fewer than two fire.

    `caption_clarity` is clarity of the captions of a unit's strongest images: the only one without an image encoder.
    `test`: activations on the images `ids`, in that order.
    """
    index = torch.as_tensor(ids)
    top, _ = positive_images(test, k)
    fires = top >= 0
    images, known = _vectors(evidence.judge, index)
    seen = fires & known[top]
    numbers = {"monosemanticity": metrics.monosemanticity(known_rows(test, known), images[known])}
    spaces = {"clarity": (images, seen)}
    if evidence.captions is not None:
        captions, written = _vectors(evidence.captions, index)
        spaces["caption_clarity"] = (captions, fires & written[top])
    for name, (space, valid) in spaces.items():
        numbers[name] = _where(valid.sum(1) >= 2, metrics.clarity(space[top], valid=valid))
    for name, metric in (("polysemanticity", metrics.polysemanticity), ("redundancy", metrics.redundancy)):
        numbers[name] = _where(seen.sum(1) >= 2, metric(images[top], valid=seen))
    return numbers | {name: _nothing(len(top)) for name in COHERENCE if name not in numbers}


def _vectors(
    space: Similarity, index: Int[Tensor, "images"]
) -> tuple[Float[Tensor, "images d_text"], Bool[Tensor, "images"]]:
    """Some images' vectors, 0 where they have none, and which have one."""
    known = space.known[index]
    return space.images[index].masked_fill(~known[:, None], 0.0), known


def shuffled(texts: Sequence[str | None], seed: int) -> list[str | None]:
    """The labels of the labelled units, dealt out anew among them: the control that keeps label reuse as it is."""
    labelled = [u for u, text in enumerate(texts) if text is not None]
    result = list(texts)
    for u, source in zip(labelled, np.random.default_rng(seed).permutation(labelled).tolist()):
        result[u] = texts[source]
    return result


def summarise(rows: Sequence[dict[str, Any]], evidence: Judges, splits: Splits, k: int, seed: int) -> dict[str, Any]:
    """The summary in `evaluation.json`: what was measured with what, counts, and means both ways per scorer.

    `mean` is over the units that have the number; `mean_all` counts a unit without a label as 0. Labels without truth
    are in neither (`without_truth` counts them) unless truth is complete: then they are wrong and count 0 in both.
    `confirmed` counts the labels that are true of a test image: what stands beside a scorer's means.
    """
    truth, captions = evidence.truth, evidence.captions
    statuses = [row["status"] for row in rows]
    entries = {name: [row[name] for row in rows] for name in ("final", "named", "shuffled")}
    badges = [row["badge"] for row in rows]
    for name in sorted({name for row in rows for name in row["by_scorer"]}):
        entries[name] = [row["by_scorer"][name] for row in rows]
    return {
        "units": len(rows),
        "statuses": {status: statuses.count(status) for status in sorted(set(statuses))},
        "labelled": sum(row["final"]["label"] is not None for row in rows),
        "abstained": sum(row["label"] is not None and bool(row["abstained"]) for row in rows),
        "images": {"mine": len(splits.mine), "test": len(splits.test)},
        "k": k,
        "seed": seed,
        "judge": evidence.judge.name,
        "captions": None if captions is None else captions.name,
        "captioned_test_images": 0 if captions is None else int(captions.known[torch.as_tensor(splits.test)].sum()),
        "truth": None if truth is None else truth.rule,
        "truth_complete": truth is not None and truth.complete,
        "badges": {word: badges.count(word) for word in BADGES} | {"metric": judging_metric(evidence)},
        "described_test_images": 0 if truth is None else int(truth.known[torch.as_tensor(splits.test)].sum()),
        "coherence": {name: mean_of([row.get(name) for row in rows]) for name in COHERENCE},
        "by_scorer": {name: _summary_of(found) for name, found in entries.items()},
    }


def judging_metric(evidence: Judges) -> str | None:
    """The correlation that decides: with truth where it is complete, else with people's captions; None without both."""
    if evidence.truth is not None and evidence.truth.complete:
        return "truth_r"
    return None if evidence.captions is None else "caption_r"


def badge(entry: dict[str, Any], interval: dict[str, list[float]], metric: str | None) -> str | None:
    """What held-out images say of a unit's label, in a word.

    `holds`: the whole interval of its correlation lies above what dealt-out labels reach on the unit, by 0.1 or more (a
    small effect; Cohen 1988). `weak`: above, but not by so much. `may be luck`: it reaches down to chance, or too few
    images fire the unit to tell. None without a label, or where nothing that people wrote judges.
    """
    if metric is None or entry["label"] is None:
        return None
    low = interval[metric][0] - (entry.get(CHANCE[metric]) or 0.0) if metric in interval else 0.0
    return BADGES[0] if low >= SMALL else BADGES[1] if low > 0 else BADGES[2]


def add_pixels(rows: list[dict[str, Any]], summary: dict[str, Any], iou: Float[Tensor, "units"]) -> None:
    """Put NetDissect's IoU on `test` (`label.concepts.held_out_iou`) into rows and summary, as `pixel_iou`."""
    values = [None if x != x else x for x in iou.tolist()]
    for row, value in zip(rows, values, strict=True):
        if "netdissect" in row["by_scorer"]:
            row["by_scorer"]["netdissect"]["pixel_iou"] = value
    there = [value for value in values if value is not None]
    share = sum(value > PIXEL_BAR for value in there) / len(there) if there else None
    best = max(there) if there else None
    summary["pixel_iou"] = mean_of(values) | {"best": best, "above_bar": share}


def over_all(entries: Sequence[dict[str, Any]], metric: str) -> list[float | None]:
    """Every unit's number as it counts over *all* units: 0 without a label, and 0 where no correlation exists
    because the unit is silent on the test images.

    None, to be left out and counted, where truth has nothing to say: the label has none, it holds on no test image, or
    (F1, IoU) on no mine image to fit a threshold on. All None where the evidence for the metric was not given at all.
    """
    if all(_absent(entry.get(metric)) for entry in entries):
        return [None] * len(entries)
    return [_counted(entry, metric) for entry in entries]


def _counted(entry: dict[str, Any], metric: str) -> float | None:
    value = entry.get(metric)
    if value is not None and not _absent(value):
        return float(value)
    silent = metric in ("scs", "caption_r") or (metric == "truth_r" and not _absent(entry.get("auprc")))
    return 0.0 if silent or entry["label"] is None else None


def _absent(value: float | None) -> bool:
    return value is None or value != value


def mean_of(values: Sequence[float | None]) -> dict[str, float | int | None]:
    """Mean of the numbers that are there, with how many there are."""
    found = [v for v in values if v is not None and not _absent(v)]
    return {"mean": float(np.mean(found)) if found else None, "units": len(found)}


def write(folder: Path, rows: Sequence[dict[str, Any]], summary: dict[str, Any]) -> None:
    """`evaluation.jsonl` and `evaluation.json` into `folder`."""
    write_jsonl(folder / "evaluation.jsonl", list(rows))
    write_json(folder / "evaluation.json", summary)


def _summary_of(entries: Sequence[dict[str, Any]]) -> dict[str, Any]:
    numbers = {}
    for metric in FAITHFULNESS:
        defined, everywhere = mean_of([e.get(metric) for e in entries]), mean_of(over_all(entries, metric))
        numbers[metric] = defined | {"mean_all": everywhere["mean"], "units_all": everywhere["units"]}
    labels = [e["label"] for e in entries if e["label"] is not None]
    no_truth = sum(e["label"] is not None and _absent(e.get("auprc")) for e in entries)
    counts = {"labelled": len(labels), "distinct": len(set(labels)), "without_truth": no_truth}
    return counts | {"confirmed": sum((e.get("truth_images") or 0) > 0 for e in entries), "metrics": numbers}


def _nothing(units: int) -> Float[Tensor, "units"]:
    return torch.full((units,), torch.nan, dtype=torch.float64)


def _where(valid: Tensor, numbers: Tensor) -> Tensor:
    return numbers.double().masked_fill(~valid, torch.nan)


def _rows(per_unit: dict[str, Tensor]) -> list[dict[str, float | None]]:
    """Columns of numbers as one dict a unit, NaN as None."""
    lists = [[None if x != x else x for x in values.tolist()] for values in per_unit.values()]
    return [dict(zip(per_unit, numbers)) for numbers in zip(*lists, strict=True)]


def _entries(texts: Sequence[str | None], numbers: dict[str, Tensor]) -> list[dict[str, Any]]:
    return [{"label": text} | row for text, row in zip(texts, _rows(numbers), strict=True)]
