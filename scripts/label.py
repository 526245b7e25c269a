"""Label every unit of every basis: `python scripts/label.py scorer=[csp,pearson] proposer=none`."""

from command import command
from omegaconf import DictConfig
from screens import label_table
from stages import Run


@command("label")
def main(cfg: DictConfig) -> None:
    """Mine, propose, assign, measure; print counts per status and the table basis x scorer x metric."""
    run = Run(cfg)
    bases = run.evaluated
    for basis in bases:
        counts = ", ".join(f"{n} {status}" for status, n in sorted(run.counts(basis).items()))
        print(f"{basis.layer}  {basis.name}: {counts}")
    print(label_table(bases))


if __name__ == "__main__":
    main()
