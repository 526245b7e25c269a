"""Measure every label on held-out images: `python scripts/evaluate.py`. Reuses what is cached."""

from command import command
from omegaconf import DictConfig
from screens import label_table
from stages import Run


@command("evaluate")
def main(cfg: DictConfig) -> None:
    """Print where each basis' evaluation lies, and the table basis x scorer x metric."""
    bases = Run(cfg).evaluated
    for basis in bases:
        assert basis.evaluation is not None
        print(f"{basis.layer}  {basis.name}: {basis.evaluation.path}")
    print(label_table(bases))


if __name__ == "__main__":
    main()
