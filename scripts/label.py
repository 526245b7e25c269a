"""Label every unit of every basis: `python scripts/label.py scorer=[csp,pearson] proposer=none`."""

from command import command
from omegaconf import DictConfig
from screens import label_table, pixel_table
from stages import Run

from saelab.label import pipeline


@command("label")
def main(cfg: DictConfig) -> None:
    """Mine, propose, assign, measure; print counts per status and the table basis x scorer x metric."""
    run = Run(cfg)
    bases = run.evaluated
    for basis in bases:
        counts = ", ".join(f"{n} {status}" for status, n in sorted(run.counts(basis).items()))
        print(f"{basis.layer}  {basis.name}: {counts}")
        assert basis.labels is not None
        for name, reason in pipeline.left_out(basis.labels.path).items():
            print(f"  without {name}: {reason}")
    print(label_table(bases))
    print(pixel_table(bases), end="")


if __name__ == "__main__":
    main()
