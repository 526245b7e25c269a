"""Do the units that carry a class carry it, and do integrated gradients account for what units add? (WWW; IG)

`python scripts/studies/class_units.py RUN` after `saelab quickstart`: for each basis of features and neurons, the share
of classes whose five strongest units, taken out together, cost the class more log p than the next five do, on the
mining pictures that chose them (classes of two or more) and on test pictures that they never saw; on 100 test
pictures, the share on which the ten units that gradient x part puts first for the host's first choice, taken out
together, cost it more log p than other active units drawn at random that together are as long; and what integrated
gradients in 16 steps miss of completeness there.
"""

import sys
from pathlib import Path

import numpy as np
import torch
from tqdm import tqdm

from saelab import tables
from saelab.effects import Active, Answers, HostAnswers
from saelab.effects.attribute import gradient_x_part, integrated_gradients, of_output
from saelab.effects.classes import CARRIERS, ClassUnits
from saelab.run.making import Stages
from saelab.run.record import read_config
from saelab.run.stages.classes import read_classes
from saelab.run.stages.effects import EffectsSettings, make_head
from saelab.units import Projection

PHOTOS, STEPS, FIRST = 100, 16, 10
COLUMNS = (
    *("layer", "basis", "mining: classes", "first five cost more", "test: classes", "first five cost more"),
    *("first ten cost more than as much at random", "residual of IG(16), mean", "photos below 1 %"),
)


def main(run: Path) -> None:
    """Print a row for each basis."""
    made, rows = Stages(read_config(run)), []
    for basis in (b for b in made.acting if not b.control):
        seen = made._seen(basis)
        answers = HostAnswers(seen.host, seen.store, seen.images, make_head(seen, EffectsSettings()))
        project = Projection.load(basis.units.path, basis.sae_path)
        writes = project.writes(seen.store.d_in)
        found, _ = read_classes(made.measure_classes(basis).path)
        test = np.asarray(seen.images.ids("test"))
        cells = []
        for ids, of, least in ((found.ids, found.of, 2), (test, predicted(answers, test), 1)):
            wins = compare_fives(answers, project, writes, found, ids, of, least)
            cells += [str(len(wins)), tables.number(float(np.mean(wins)), ".2f")]
        some = test[:: max(1, len(test) // PHOTOS)][:PHOTOS]
        cells.append(tables.number(float(np.mean(delete(answers, project, writes, some))), ".2f"))
        missed = residuals(answers, project, writes, some)
        cells += [tables.number(float(missed.mean()), ".4f"), tables.number(float((missed < 0.01).mean()), ".2f")]
        rows.append([basis.layer, basis.name, *cells])
        print(rows[-1], file=sys.stderr)
    print(tables.draw_markdown(COLUMNS, rows))


def predicted(answers: Answers, ids: np.ndarray) -> np.ndarray:
    """The host's first choice on each picture."""
    parts = np.array_split(ids, max(1, len(ids) // 32))
    return np.concatenate([answers.logits(p, answers.tokens(p)[None])[0].argmax(-1).numpy() for p in parts])


def compare_fives(
    answers: Answers,
    project: Projection,
    writes: torch.Tensor,
    found: ClassUnits,
    ids: np.ndarray,
    of: np.ndarray,
    least: int,
) -> list[bool]:
    """For each class with `least` of these pictures or more: do its first five units cost more log p than the next?"""
    wins = []
    for output, scores in zip(tqdm(found.outputs.tolist(), leave=False), found.scores):
        own = ids[of == output]
        if len(own) < least:
            continue
        order = torch.argsort(scores, descending=True, stable=True)
        active = Active.of(project, answers.tokens(own))
        fives = (order[:CARRIERS], order[CARRIERS : 2 * CARRIERS])
        edits = [active.tokens - (active.acts[..., five] * active.scale) @ writes[five] for five in fives]
        log_p = answers.logits(own, torch.stack([active.tokens, *edits])).double().log_softmax(-1)[..., output].mean(-1)
        wins.append(bool(log_p[1] < log_p[2]))
    return wins


def delete(answers: Answers, project: Projection, writes: torch.Tensor, ids: np.ndarray) -> list[bool]:
    """For each picture: do its first ten units cost the first choice more log p than others that are as long?"""
    generator, wins = torch.Generator().manual_seed(0), []
    for image in tqdm(ids, leave=False):
        one = np.array([image])
        active = Active.of(project, answers.tokens(one))
        before = answers.logits(one, active.tokens[None])[0, 0]
        output = int(before.argmax())
        values = gradient_x_part(answers, one, active, writes, of_output(output, len(before))).values[0]
        lengths = active.lengths * writes.norm(dim=1)
        first = torch.argsort(values, descending=True, stable=True)[:FIRST]
        others = torch.randperm(len(values), generator=generator)
        others = others[(lengths[others] > 0) & ~torch.isin(others, first)]
        enough = int((lengths[others].cumsum(0) < lengths[first].sum()).sum()) + 1
        edits = [
            active.tokens - (active.acts[..., units] * active.scale) @ writes[units]
            for units in (first, others[:enough])
        ]
        log_p = answers.logits(one, torch.stack(edits)).double().log_softmax(-1)[:, 0, output]
        wins.append(bool(log_p[0] < log_p[1]))
    return wins


def residuals(answers: Answers, project: Projection, writes: torch.Tensor, ids: np.ndarray) -> np.ndarray:
    """|whole - sum of values| as a share of |whole|, picture by picture."""
    missed = []
    for image in tqdm(ids, leave=False):
        one = np.array([image])
        active = Active.of(project, answers.tokens(one))
        before = answers.logits(one, active.tokens[None])[0, 0]
        weights = of_output(int(before.argmax()), len(before))
        found = integrated_gradients(answers, one, active, writes, weights, STEPS)
        missed.append(float(found.residual.abs() / found.whole.abs().clamp(min=1e-12)))
    return np.array(missed)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
