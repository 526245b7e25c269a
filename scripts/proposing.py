"""The proposals stage: who proposes, about which units, with what pictures; printed before anything is sent."""

from pathlib import Path
from typing import TYPE_CHECKING

from command import plain

from saelab.artifacts import folder, locked
from saelab.errors import UserError
from saelab.label import propose, selection
from saelab.label.exemplars import Exemplars
from saelab.names import imagenet_names
from saelab.units import Projection, heat_maps

if TYPE_CHECKING:
    from bases import Basis
    from stages import Run

OF_THE_RUN = ("mode", "units", "seed", "dry_run")  # settings of the stage; all others are the proposer's own


def proposer_of(run: "Run") -> propose.Proposer | None:
    """The proposer that the config names, or None."""
    settings = {k: v for k, v in plain(run.cfg.proposer).items() if k not in OF_THE_RUN}
    if settings["name"] == "tagger":
        probabilities = run.embeddings.extra.get("probabilities")
        if probabilities is None:
            remedy = "use encoder=conse, or proposer=none, openai or transformers"
            raise UserError("proposer", "tagger", f"{run.encoder.name} gives no class probabilities", remedy)
        settings |= {"probabilities": probabilities, "names": imagenet_names(), "base": run.images.ids("mine")}
    return propose.load_proposer(**settings)


def propose_for_all(run: "Run", bases: "list[Basis]", proposer: propose.Proposer) -> list[Path | None]:
    """The folder with the proposals.jsonl of each basis; a budget is for all bases together."""
    answers: list[propose.Proposal] = []
    return [propose_for(run, basis, proposer, answers) for basis in bases]


def propose_for(run: "Run", basis: "Basis", proposer: propose.Proposer, answers: list[propose.Proposal]) -> Path | None:
    """The folder with a basis' proposals.jsonl; None after a dry run, which prints what asking would take.

    Units that are there are not asked again; failed ones are, whenever the stage runs. `answers` holds those of the
    bases before, which have used up their part of a budget; this basis' are added.
    """
    assert basis.exemplars is not None
    cfg, found = run.cfg.proposer, Exemplars.load(basis.exemplars.path)
    mode, seed, wanted = cfg.mode, cfg.get("seed", 0), plain(cfg.get("units", "all"))
    strength = found.activations.mean(1).tolist()
    chosen, budget = selection.choose(wanted, len(found.status), status=found.status, strength=strength, seed=seed)
    shown = propose.Exemplars(found.positives, found.contrasts, found.activations)
    if cfg.get("dry_run", False):
        taken = propose.estimate(proposer, shown, run.images, chosen, mode=mode, seed=seed)
        print(f"{basis.layer}  {basis.name}, {len(chosen)} units: {taken}")
        return None
    recipe = {"stage": "proposals", "code": 2, "exemplars": basis.exemplars.digest, "proposer": proposer.recipe}
    recipe |= {"mode": mode, "units": wanted, "seed": seed}
    where = folder(run.root, "proposals", f"{basis.name}-{proposer.name}", recipe)
    project = Projection.load(basis.units.path, basis.sae and basis.sae.path)
    heat = heat_maps(run.caches[basis.layer], project, found.activations[:, 0])
    where.parent.mkdir(parents=True, exist_ok=True)
    with locked(where.with_name(where.name + ".lock")):  # two runs don't ask the same questions at once
        left = budget and budget.less(answers)
        rows = propose.run(proposer, shown, run.images, chosen, where, mode=mode, seed=seed, heat=heat, budget=left)
    answers += rows
    text = f"{basis.layer} {basis.name}, {proposer.name}: {propose.summary(rows, chosen)['text']}"
    if proposer.name != "tagger":
        print(text)
    run.notes.append(text)
    return where
