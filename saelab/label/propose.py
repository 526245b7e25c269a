"""Candidate labels for units from something that looks at their images: the loop, and the door to the proposers.

The calls that a script makes (plain values; `images` is an ImageSet, a unit is a row of the exemplars' tensors):

    proposer = load_proposer("tagger", probabilities=probabilities, names=names)  # "openai", base_url=..., model=...
    exemplars = ShownExemplars(found.positives, found.contrasts, found.activations)  # found: saelab.label.exemplars
    units, budget = selection.choose("status:ok top:200 usd:2.5", n_units, status=status, strength=strength, seed=0)
    print(estimate(proposer, exemplars, images, units, mode="contrast", seed=0))  # dry run: nothing is sent
    proposals = run(proposer, exemplars, images, units, folder, mode="contrast", seed=0, budget=budget)
    print(summary(proposals, units)["text"])
    candidates = {p.unit: p.labels for p in proposals}  # for the vocabulary

`run` appends to `<folder>/proposals.jsonl` as answers come, so a killed run goes on where it stopped: rows that are
there are not asked again, failed ones are. Modes: `positives` (no contrasts), `contrast` (each positive with its paired
contrast), `shuffled_contrast` (another unit's contrasts: the ablation that shows whether contrast matters).
"""

import dataclasses
import hashlib
import random
from collections.abc import Iterable, Sequence
from functools import partial
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import Tensor

from saelab import artifacts, bars
from saelab.errors import UserError
from saelab.label.ledger import Ledger
from saelab.label.proposal import (
    MODES,
    Case,
    Estimate,
    HeatMap,
    MadePictures,
    Proposal,
    Proposer,
    ShownExemplars,
    answers_digest,
    from_row,
    read,
    summary,
)
from saelab.label.proposers import CHATS, load_chat, load_proposer

if TYPE_CHECKING:
    from saelab.images import ImageSet
    from saelab.label.selection import Budget

AT_ONCE = 256  # rows that are written together where they cost nothing: a kill costs the answers of a moment

__all__ = [
    "CHATS",
    "MadePictures",
    "Proposal",
    "Proposer",
    "ShownExemplars",
    "answers_digest",
    "build_case",
    "estimate",
    "load_chat",
    "load_proposer",
    "read",
    "run",
    "summary",
]


def build_case(
    exemplars: ShownExemplars,
    images: "ImageSet",
    unit: int,
    mode: str,
    seed: int,
    shown: int | None,
    heat: HeatMap | None = None,
) -> Case:
    """What a proposer is shown of `unit`: its `shown` strongest positives in an order shuffled by (seed, unit).

    Only images on which the unit fires (activation above 0) count as positives.

    In mode `shuffled_contrast` the contrasts are those of another unit that has any, drawn by (seed, unit); images
    that are among the unit's own positives are left out of them.
    """
    if mode not in MODES:
        raise UserError("mode", mode, f"must be one of {', '.join(MODES)}")
    ids = exemplars.positives[unit].tolist()
    fires = (exemplars.activations[unit] > 0).tolist()
    places = [i for i, (image, on) in enumerate(zip(ids, fires, strict=True)) if image >= 0 and on][:shown]
    random.Random(f"{seed}/{unit}").shuffle(places)
    positives = tuple(ids[i] for i in places)
    column = None if exemplars.column is None else partial(exemplars.column, unit)
    if mode == "positives":
        return Case(unit, mode, positives, (), images, heat, column)
    row = exemplars.contrasts[unit if mode == "contrast" else _stranger(exemplars.contrasts, unit, seed)].tolist()
    if mode == "shuffled_contrast":
        row = [-1 if image in ids else image for image in row]
    return Case(unit, mode, positives, tuple(row[i] for i in places), images, heat, column)


def _stranger(contrasts: Tensor, unit: int, seed: int) -> int:
    """The unit whose contrasts `unit` is shown in the ablation."""
    order = [u for u in (contrasts >= 0).any(1).nonzero().flatten().tolist() if u != unit]
    if not order:
        raise UserError("mode", "shuffled_contrast", "needs at least two units with contrasts", "use mode=contrast")
    return random.Random(f"{seed}/{unit}/contrasts").choice(order)


def estimate(
    proposer: Proposer,
    exemplars: ShownExemplars,
    images: "ImageSet",
    units: Sequence[int],
    *,
    mode: str = "contrast",
    seed: int = 0,
) -> Estimate:
    """Requests, tokens and money that `run` would take for these units; nothing is sent and nothing is written."""
    cases = (build_case(exemplars, images, unit, mode, seed, proposer.shown) for unit in units)
    return sum((proposer.estimate(case) for case in cases if case.positives), Estimate())


def run(
    proposer: Proposer,
    exemplars: ShownExemplars,
    images: "ImageSet",
    units: Sequence[int],
    folder: Path | str,
    *,
    mode: str = "contrast",
    seed: int = 0,
    heat: HeatMap | None = None,
    budget: "Budget | None" = None,
    made: MadePictures | None = None,
    progress: bool = True,
) -> list[Proposal]:
    """Ask `proposer` about each of `units`; return their proposals in the order of unit numbers.

    Rows already in `<folder>/proposals.jsonl` are kept, save failed ones, which are asked again. A unit without
    positives gets a row of status "no_positives". When `budget` is used up, the remaining units get no row. Raises
    UserError for a folder that holds proposals of another recipe, where all units that were asked failed, and for what
    stops the proposer itself (no server, a refused key); what had been answered until then is on disk.
    Eleven parameters: who is asked about what, where it is written, and six settings with defaults.
    """
    folder = Path(folder)
    recipe = _recipe(proposer, exemplars, images, mode, seed)
    ledger = Ledger(folder, "proposals", recipe | ({} if made is None else {"made": made.folder.name}))
    kept = {unit: from_row(row) for unit, row in ledger.kept.items()}
    cases = [build_case(exemplars, images, u, mode, seed, proposer.shown, heat) for u in dict.fromkeys(units)]
    cases = [dataclasses.replace(case, bench=exemplars.bench) for case in cases]
    if made is not None:
        cases = [dataclasses.replace(case, made=made.of(case.unit)) for case in cases]
    todo = [case for case in cases if case.unit not in kept]
    found: dict[int, Proposal] = {}
    with bars.show(total=len(todo), what=proposer.name, hidden=not (progress and todo)) as bar:

        def keep(proposals: Iterable[Proposal], together: int) -> None:
            coming = iter(proposals)
            while some := list(islice(coming, together)):
                rows = [_counted(proposal, ledger) for proposal in some]
                found.update({row.unit: row for row in rows})
                ledger.add(*rows)
                bar.update(len(rows))

        silent = [case for case in todo if not case.positives]
        keep((Proposal(c.unit, (), "no_positives", proposer.name, mode, (), c.contrasts) for c in silent), AT_ONCE)
        asked = [case for case in todo if case.positives]
        allowed = budget.admit(asked, proposer.estimate, found, kept.values()) if budget else asked
        keep(proposer.propose(allowed, folder), AT_ONCE if getattr(proposer, "instant", False) else 1)
    rows = sorted({**kept, **found}.values(), key=lambda p: p.unit)
    ledger.close(summary(rows, units))
    wanted = set(units)
    rows = [p for p in rows if p.unit in wanted]
    _refuse_total_failure([p for p in rows if p.status != "no_positives"])
    return rows


def _counted(proposal: Proposal, ledger: Ledger) -> Proposal:
    """The proposal with the attempts of earlier runs."""
    attempts, uncertain = ledger.tries(proposal.unit)
    return dataclasses.replace(
        proposal, attempts=proposal.attempts + attempts, uncertain=proposal.uncertain + uncertain
    )


def _recipe(proposer: Proposer, exemplars: ShownExemplars, images: "ImageSet", mode: str, seed: int) -> dict[str, Any]:
    shown = hashlib.sha256()
    for tensor in (exemplars.positives, exemplars.contrasts, exemplars.activations):
        shown.update(tensor.contiguous().cpu().numpy().tobytes())
    recipe = {
        "proposer": proposer.recipe,
        "mode": mode,
        "seed": seed,
        "images": images.fingerprint,
        "exemplars": shown.hexdigest(),
    }
    recipe |= {} if exemplars.bench is None else {"bench": exemplars.bench.recipe}
    return artifacts.plain(recipe)


def _refuse_total_failure(rows: list[Proposal]) -> None:
    if rows and all(p.status == "failed" for p in rows):
        raise UserError("proposer", rows[0].proposer, f"all {len(rows)} units failed, the first with: {rows[0].error}")
