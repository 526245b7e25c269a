"""Measure every label on held-out images. Whatever is there already is reused."""

from omegaconf import DictConfig

from saelab.cli.edge import command, dry_run, stages
from saelab.cli.screens import label_table, planted_table


@command(
    "evaluate",
    settings=("truth", "scorer", "bases", "layers", "images", "host", "sae", "encoder", "label.final", "name", "root"),
    examples=(
        "evaluate",
        "evaluate truth=exact",
        "evaluate bases=[sae,planted]",
        "evaluate images=folder images.root=PATH host=resnet50",
    ),
)
def main(cfg: DictConfig) -> None:
    """Print where each basis' evaluation is, and the table basis x scorer x metric."""
    made = stages(cfg)
    if dry_run(made):
        return
    for basis in made.evaluated:
        assert basis.evaluation is not None
        print(f"{basis.layer}  {basis.name}: {basis.evaluation.path}")
    print(label_table(made.evaluated))
    for basis in made.evaluated:
        if basis.kind == "planted":
            print(planted_table(made.measure_planted(basis)), end="")


if __name__ == "__main__":
    main()
