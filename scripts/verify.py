"""A vision-language model looks again at a run's labels: `python scripts/verify.py proposer=openai proposer.model=X`.

`detect`: which of some photos of the show split show the label? `second_look`: which of a scorer's best labels fits the
unit's images? Rows go to <root>/verification/<basis>-<hash>/, a line a unit; the same command goes on after a kill.
"""

from pathlib import Path

from command import command, plain, several
from omegaconf import DictConfig, open_dict
from verifying import TESTS, Verification, table

from saelab.errors import UserError
from saelab.label import propose
from saelab.label.assign import SCORERS
from saelab.label.vlm.proposer import VLMProposer
from saelab.report import reading


@command("verify")
def main(cfg: DictConfig) -> None:
    """Ask, and print a line for each basis and test; with proposer.dry_run, what asking would take."""
    run = reading.read(Path(cfg.run))
    with open_dict(cfg):
        cfg.root = str(run.path.parent)  # where proposer.cache lies
    check(cfg)
    proposer = asked(cfg)
    jobs = [Verification(cfg, run, basis, proposer) for basis in chosen_bases(cfg, run)]
    if cfg.proposer.get("dry_run", False):
        for job in jobs:
            for test, taken in job.estimates().items():
                print(f"{job.basis.name}  {test}: {taken}")
        return
    budget, lines = jobs[0].budget, []
    for job in jobs:
        told, budget = job.run(budget)  # one budget for all bases
        lines += told
    print(table(lines))
    for job in jobs:
        print(f"{job.basis.name}: {job.folder}")


def check(cfg: DictConfig) -> None:
    """Raise UserError for settings that can't be."""
    for test in several(cfg.tests):
        if test not in TESTS:
            raise UserError("tests", test, "unknown", f"known: {', '.join(TESTS)}")
    for setting in ("labels_of", "candidates_of"):
        if cfg[setting] not in (*SCORERS, "final"):
            raise UserError(setting, cfg[setting], "unknown", f"known: final, {', '.join(sorted(SCORERS))}")
    if cfg.candidates < 2:
        raise UserError("candidates", cfg.candidates, "must be at least 2, for there has to be a choice")


def asked(cfg: DictConfig) -> VLMProposer:
    """The model that is asked, and how pictures are put before it."""
    settings = {k: v for k, v in plain(cfg.proposer).items() if k not in ("mode", "units", "seed", "dry_run")}
    known = ("openai", "transformers", "recorded")
    if settings["name"] not in known:
        raise UserError("proposer", settings["name"], "can't be asked about labels", f"use one of {', '.join(known)}")
    found = propose.load_proposer(**settings)
    assert isinstance(found, VLMProposer)
    return found


def chosen_bases(cfg: DictConfig, run: reading.Run) -> list[reading.Basis]:
    """The bases that the config names, all by default. Raises UserError for one that the run lacks."""
    known = {basis.name: basis for basis in run.bases}
    names = several(cfg.bases) if cfg.bases is not None else list(known)
    if not names:
        raise UserError("bases", "[]", "at least one is needed", f"the run has {', '.join(known)}")
    for name in names:
        if name not in known:
            raise UserError("bases", name, f"not in {run.path}", f"it has {', '.join(known)}")
    if cfg.proposer.name == "recorded" and len(names) > 1:
        raise UserError("bases", ", ".join(names), "recorded answers are those of one basis", f"bases=['{names[0]}']")
    return [known[name] for name in names]


if __name__ == "__main__":
    main()
