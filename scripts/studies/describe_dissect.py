"""What do two steps of Describe-and-Dissect do on a run's units?

`python scripts/studies/describe_dissect.py layers=[_blocks.10] bases=[neuron] proposer.units=random:100`

Crops: how often does a box of Otsu's threshold fire the unit more than the photo that it is cut from? Order: the five
best labels by CSP are put in the order of what the unit does on `show` photos that people described so. How often does
a label stand first that people said of the unit's strongest test photo? Only units count of which one of the five is
true of that photo, another is not, and one has a photo; intervals are bootstrap ones over units.
"""

import numpy as np
import torch
from omegaconf import DictConfig

from saelab import metrics, truth
from saelab.artifacts import read_jsonl
from saelab.cli.edge import command, stages
from saelab.label import selection
from saelab.label.crops import find_boxes
from saelab.label.describe.proposer import PICTURES
from saelab.label.describe.ranking import rerank
from saelab.label.exemplars import Exemplars
from saelab.metrics.interval import Interval
from saelab.run.basis import Basis
from saelab.run.making import Stages
from saelab.run.stages.unit_bench import UnitBench
from saelab.units import HeatMaps, Projection, UnitActivations

CANDIDATES, SCORER = 5, "csp"
UNITS, PHOTOS = 60, 10  # that are cut: of the chosen units at most so many, and of each its strongest photos


@command("label")
def main(cfg: DictConfig) -> None:
    """Print both numbers for every basis."""
    made = stages(cfg)
    for basis in made.labelled:
        if not basis.of_tokens or basis.exemplars is None:
            continue
        own = made.config
        bench = UnitBench(basis, made.host, own.policy, made.images, made.embeddings.images, own.truth)
        mined = Exemplars.load(basis.exemplars.path)
        strength = mined.activations.mean(1).tolist()
        which, seed = own.proposer.units, own.proposer.seed
        chosen, _ = selection.choose(which, len(strength), status=mined.status, strength=strength, seed=seed)
        print(f"\n{basis.layer}  {basis.name}: {len(chosen)} units")
        print(say_crops(try_crops(made, basis, bench, mined, chosen[:UNITS])))
        print(say_order(try_order(made, basis, bench, chosen)))


def try_crops(made: Stages, basis: Basis, bench: UnitBench, mined: Exemplars, chosen: list[int]) -> torch.Tensor:
    """[units, 2]: is the strongest crop above the strongest photo; share of photos with a crop that fires more."""
    maps = HeatMaps(made.store(basis), Projection.load(basis.units.path, basis.sae_path), mined.activations[:, 0])
    rows = []
    for unit in chosen:
        fires = mined.activations[unit] > 0
        ids = mined.positives[unit][fires][:PHOTOS].tolist()
        photos, heats = [made.images.load(i) for i in ids], [maps(unit, i) for i in ids]
        pairs = zip(heats, photos, strict=True)
        boxes = [[] if heat is None else find_boxes(heat, photo.size) for heat, photo in pairs]
        crops = [photo.crop(box) for photo, own in zip(photos, boxes, strict=True) for box in own]
        if not crops:
            continue
        acts = bench.fire(unit, [*photos, *crops])
        whole, parts = acts[: len(photos)], acts[len(photos) :].split([len(own) for own in boxes])
        better = [bool(part.max() > own) for part, own in zip(parts, whole, strict=True) if len(part)]
        rows.append([float(acts[len(photos) :].max() > whole.max()), float(np.mean(better))])
    return torch.tensor(rows).reshape(-1, 2)


def try_order(made: Stages, basis: Basis, bench: UnitBench, chosen: list[int]) -> torch.Tensor:
    """[units, 2]: is the first label true of the unit's strongest test photo, by the new order and by CSP's."""
    assert basis.labels is not None
    rows, test = read_jsonl(basis.labels.path / "labels.jsonl"), made.images.ids("test")
    acts, found = UnitActivations.load(basis.units.path), []
    for unit in chosen:
        ranked = rows[unit]["scores"].get(SCORER)
        column = acts.column(unit)[torch.as_tensor(test)]
        if ranked is None or not column.max() > 0:
            continue
        first = [ranked["label"], *(label for label, _ in ranked["runners_up"] if label != ranked["label"])]
        labels = first[:CANDIDATES]
        right = are_true(made, labels, int(test[int(column.argmax())]))
        photos = [tuple(part[:PICTURES] for part in bench.described(unit, label)) for label in labels]
        if not 0 < sum(right) < len(labels) or not any(len(own) for own, _ in photos):
            continue
        on, alike, shown = (torch.zeros(len(labels), PICTURES) for _ in range(3))
        for row, (values, cosines) in enumerate(photos):
            on[row, : len(values)], alike[row, : len(values)], shown[row, : len(values)] = values, cosines, 1
        found.append([right[int(rerank(on, alike, shown.bool()).order[0])], right[0]])
    return torch.tensor(found, dtype=torch.float64).reshape(-1, 2)


def are_true(made: Stages, labels: list[str], image: int) -> list[bool]:
    """Which labels people said of a photo."""
    said = [made.images.captions[image]], [made.images.classes[image]]
    stated = truth.from_descriptions(labels, *said, made.config.truth)
    return [label in stated.column and bool(stated.member[0, stated.column[label]]) for label in labels]


def say_crops(found: torch.Tensor) -> str:
    """A line."""
    strongest, photos = (metrics.bootstrap_interval(column) for column in found.T)
    head = f"  crops, {strongest.units} units with any: the strongest crop fires more than the strongest photo in"
    return f"{head} {_interval(strongest)} of units, a photo's best crop more than the photo in {_interval(photos)}"


def say_order(found: torch.Tensor) -> str:
    """A line."""
    if not len(found):
        return "  order: of no unit is there anything to put in order"
    new, own, gap = (metrics.bootstrap_interval(x) for x in (found[:, 0], found[:, 1], found[:, 0] - found[:, 1]))
    head = f"  order, {new.units} units: a label that people said stands first in {_interval(new)}"
    return f"{head}, by CSP in {_interval(own)}; difference {_interval(gap)}"


def _interval(found: Interval) -> str:
    return f"{found.mean:.3f} [{found.low:.3f}, {found.high:.3f}]"


if __name__ == "__main__":
    main()
