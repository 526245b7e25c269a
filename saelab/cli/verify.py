"""Have a vision-language model look again at the labels of a finished run.

`detect`: which of some photos of the show split show the label? `second_look`: which of a scorer's best labels fits the
unit's images? `fuzzing`: in which does the framed region show the label? Without a label: `intruder`, which photo does
not fire the unit? `embedding`, which asks nobody: are firing photos nearer to the exemplars than silent ones? Rows go
to <root>/verification/<basis>-<hash>/, a line a unit or trial; after a kill the same command resumes.
"""

from omegaconf import DictConfig, open_dict

from saelab import settings, tables
from saelab.cli.edge import command, plain, run_file
from saelab.errors import UserError
from saelab.label import propose
from saelab.label.vlm.proposer import VLMProposer
from saelab.report import reading
from saelab.run.config import ProposerSettings, as_tuple, read_proposer
from saelab.run.stages.verification import FREE, HEAD, Verification, VerifySettings


@command(
    "verify",
    settings=(
        "run",
        "tests",
        "proposer",
        "proposer.model",
        "proposer.base_url",
        "proposer.units",
        "proposer.dry_run",
        "bases",
        "labels_of",
        "per_side",
        "candidates_of",
        "candidates",
        "photos",
        "trials",
    ),
    examples=(
        "verify proposer=openai proposer.model=X proposer.dry_run=true",
        "verify proposer=internvl_vllm proposer.units='top:100'",
        "verify tests=[detect] bases=[neuron]",
        "verify tests=[embedding] proposer=none",
    ),
)
def main(cfg: DictConfig) -> None:
    """Ask, and print a line for each basis and test; with proposer.dry_run, what asking would take."""
    run = reading.read(run_file(cfg.run))
    with open_dict(cfg):
        cfg.root = str(run.path.parent)  # where proposer.cache is
    given = plain(cfg)
    names = ("labels_of", "per_side", "candidates_of", "candidates", "photos", "trials")
    own = {name: given[name] for name in names}
    checks = settings.make(VerifySettings, own | {"tests": as_tuple(given["tests"])})
    asked = read_proposer(given["proposer"])
    free = asked.name == "none" and set(checks.tests) <= set(FREE)
    proposer = None if free else load(asked)
    jobs = [Verification(checks, asked, run, basis, proposer) for basis in choose(given["bases"], asked, run)]
    if asked.dry_run:
        for job in jobs:
            for test, taken in job.estimates().items():
                print(f"{job.basis.name}  {test}: {taken}")
        return
    budget, lines = jobs[0].budget, []
    for job in jobs:
        own_lines, budget = job.run(budget)  # one budget for all bases
        lines += own_lines
    print(tables.draw(HEAD, lines, names=2))
    for job in jobs:
        print(f"{job.basis.name}: {job.folder}")


def load(asked: ProposerSettings) -> VLMProposer:
    """The model that is asked, and how pictures are put before it."""
    known = ", ".join(propose.CHATS)
    if asked.name not in propose.CHATS:
        raise UserError("proposer", asked.name, "answers no questions about labels", f"use one of {known}")
    own = {name: value for name, value in asked.options.items() if name not in ("rerank", "weight")}
    found = propose.load_proposer(name=asked.name, **own)
    assert isinstance(found, VLMProposer)
    return found


def choose(wanted: list[str] | str | None, asked: ProposerSettings, run: reading.Run) -> list[reading.ReadBasis]:
    """The bases that are named, all by default. Raises UserError for one that the run lacks."""
    bases = reading.choose(wanted, run.bases)
    if asked.name == "recorded" and len(bases) > 1:
        names = [basis.name for basis in bases]
        raise UserError("bases", ", ".join(names), "recorded answers are those of one basis", f"bases=['{names[0]}']")
    return bases


if __name__ == "__main__":
    main()
