"""CoSy (Kopf et al., NeurIPS 2024): does a unit fire more on pictures of its label than on other pictures?

Pictures of a label are held-out ones that people described so, those of a folder with one sub-folder a label, or
generated ones (`saelab.evaluate.generation` fills such a folder). Controls are the other pictures of the `test` split.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor

from saelab import metrics
from saelab.acts import Acts, columns, dense, pick, shape
from saelab.artifacts import write_json, write_jsonl
from saelab.errors import UserError
from saelab.evaluate.generation import label_folder
from saelab.hosts import Host
from saelab.images import ImageSet
from saelab.label.vocabulary import key
from saelab.truth import Truth
from saelab.units import Projection, pool_units

NUMBERS = ("auc_half", "auc_strict", "tie_share", "mad", "dma", "mann_whitney_p")
FEWEST_CONTROLS = 2  # below, the controls have no spread
BLACK = 8  # of 255: no channel of a black picture is above, JPEG or not
STRIP = 8  # pictures of a label that its units' rows name, the first by number


def match_descriptions(labels: Sequence[str], truth: Truth, test: np.ndarray) -> dict[str, np.ndarray]:
    """Per label the positions within `test` (image ids) of the pictures of which it is true; [] without truth."""
    member = truth.member[torch.as_tensor(test)].numpy()
    nothing = np.zeros(0, dtype=np.int64)
    return {
        label: np.flatnonzero(member[:, truth.column[label]]) if label in truth.column else nothing for label in labels
    }


def find_black(pictures: ImageSet) -> Bool[np.ndarray, "pictures"]:
    """Which pictures are black all over: what a generator's safety checker leaves of those that it does not show."""
    return np.array([int(np.asarray(pictures.load(i)).max()) <= BLACK for i in range(len(pictures))])


def in_folders(labels: Sequence[str], pictures: ImageSet) -> dict[str, np.ndarray]:
    """Per label the ids of the pictures in the sub-folder of its name, compared as `vocabulary.key` compares labels.

    A label that is no folder's name ("AC/DC") has the one that `generation.label_folder` gives it.
    """
    found: dict[str, list[int]] = {}
    for i, file in enumerate(pictures.files):
        folders = PurePosixPath(file).parts[:-1]
        if folders:
            found.setdefault(key(folders[0].replace("_", " ")), []).append(i)
    own = {label: found.get(key(label)) or found.get(key(label_folder(label)), []) for label in labels}
    return {label: np.array(ids, dtype=np.int64) for label, ids in own.items()}


def activations(
    host: Host,
    pictures: ImageSet,
    projections: Sequence[tuple[str, Projection]],
    policy: str,
    pool: str,
    dtype: str = "float16",
    batch_size: int = 32,
    workers: int = 0,
) -> list[Float[Tensor, "pictures units"]]:
    """What new pictures do to the units of several bases, each given as (layer, projection), in one pass.

    Tokens are rounded to `dtype`, as those of the cache were, so that numbers compare with the cached ones.
    Eight parameters: what a cache's recipe holds, for pictures that are in no cache.
    """
    layers = list(dict.fromkeys(layer for layer, _ in projections))
    parts: list[list[Tensor]] = [[] for _ in projections]
    with torch.inference_mode():
        for _, batch in pictures.batches(host.transform, batch_size, workers):
            found = host.tokens(batch, layers, policy)
            for part, (layer, project) in zip(parts, projections, strict=True):
                tokens = found[layer].to(getattr(torch, dtype)).float().cpu()
                part.append(pool_units(project, tokens, pool))
    return [torch.cat(part) for part in parts]


def cosy(
    labels: Sequence[str | None],
    shown: Acts,
    shown_of: Mapping[str, np.ndarray],
    control: Acts,
    true_of: Mapping[str, np.ndarray],
    positive_max: Float[Tensor, "units"],
) -> list[dict[str, Any]]:
    """A row a unit: its label, how many pictures of it and controls there are, and `NUMBERS`.

    `shown` [pictures, units] holds the pictures of labels, `shown_of` which rows are whose; `control` [images, units]
    the test pictures, `true_of` the rows to leave out because the label is true of them. `positive_max` [units]: each
    unit's strongest activation while mining (for DMA). NaN where a label has no picture or fewer than 2 controls.

    Raises UserError where the three don't have a column, and an entry, for each unit.
    """
    shown, control = columns(shown), columns(control)
    if not len(labels) == shape(shown)[1] == shape(control)[1] == len(positive_max):
        have = f"{shape(shown)[1]}, {shape(control)[1]} and {len(positive_max)} units for {len(labels)} labels"
        raise UserError("cosy", have, "expected as many units as labels", "measure this basis anew")
    rows: list[dict[str, Any]] = [
        {"unit": u, "label": label, "images": 0, "controls": 0} | dict.fromkeys(NUMBERS, float("nan"))
        for u, label in enumerate(labels)
    ]
    units_of: dict[str, list[int]] = {}
    for u, label in enumerate(labels):
        if label is not None:
            units_of.setdefault(label, []).append(u)
    for label, own in units_of.items():
        keep = np.setdiff1d(np.arange(shape(control)[0]), true_of[label])
        counts = {"images": len(shown_of[label]), "controls": len(keep)}
        numbers = {}
        if counts["images"] and counts["controls"] >= FEWEST_CONTROLS:
            numbers = _numbers(shown, shown_of[label], control, keep, positive_max, torch.tensor(own))
        for i, u in enumerate(own):
            rows[u] |= counts | {name: values[i] for name, values in numbers.items()}
    return rows


def _numbers(
    shown: Acts, pictures: np.ndarray, control: Acts, keep: np.ndarray, positive_max: Tensor, units: Tensor
) -> dict[str, list[float]]:
    a = dense(pick(shown, units))[torch.as_tensor(pictures)]
    b = dense(pick(control, units))[torch.as_tensor(keep)]
    found = {
        "auc_half": metrics.auroc(a, b),
        "auc_strict": metrics.auroc(a, b, ties="strict"),
        "tie_share": metrics.tie_share(a, b),
        "mad": metrics.mad(a, b),
        "dma": metrics.dma(a, positive_max[units]),
        "mann_whitney_p": metrics.mann_whitney(a, b)[1],
    }
    return {name: values.tolist() for name, values in found.items()}


def summarise(rows: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Counts and means: `units`, `unlabelled`, `without_images`, `measured`, and the mean of each of `NUMBERS`.

    `preferred`: share of the measured units with half-credit AUC above 0.5 at a two-sided p below 0.05; in
    `preferred_holm` p is corrected for the number of units (Holm). `black`: pictures that were left out, each once.
    Means are over the units that have the number, null where none has.
    """
    labelled = [row for row in rows if row["label"] is not None]
    measured = [row for row in labelled if row["auc_half"] == row["auc_half"]]
    corrected = metrics.holm([row["mann_whitney_p"] for row in measured])
    above = [(row["mann_whitney_p"], p) for row, p in zip(measured, corrected, strict=True) if row["auc_half"] > 0.5]
    black = {row["label"]: row.get("black", 0) for row in labelled}
    means = {}
    for name in (*NUMBERS[:-1], *(["difference"] if "difference" in rows[0] else [])):
        values = [row[name] for row in labelled if np.isfinite(row[name])]
        means[name] = float(np.mean(values)) if values else None
    return {
        "units": len(rows),
        "unlabelled": len(rows) - len(labelled),
        "without_images": sum(row["images"] == 0 for row in labelled),
        "measured": len(measured),
        "preferred": sum(p < 0.05 for p, _ in above) / len(measured) if measured else None,
        "preferred_holm": sum(p < 0.05 for _, p in above) / len(measured) if measured else None,
        "black": sum(black.values()),
        "mean": means,
    }


def write(folder: Path, rows: Sequence[dict[str, Any]], summary: dict[str, Any]) -> None:
    """`cosy.jsonl` (a row a unit) and `cosy.json` (the summary) into `folder`."""
    write_jsonl(folder / "cosy.jsonl", list(rows))
    write_json(folder / "cosy.json", summary)
