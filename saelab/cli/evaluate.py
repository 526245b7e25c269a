"""Measure every label on held-out images. Whatever is there already is reused."""

from omegaconf import DictConfig

from saelab.cli.edge import command, dry_run, stages
from saelab.cli.screens import label_table, planted_table
from saelab.cli.stage_lines import stage_lines


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
    with stage_lines(made, last="evaluation"):
        bases = made.evaluated
    for basis in bases:
        assert basis.evaluation is not None
        print(f"{basis.layer}  {basis.name}: {basis.evaluation.path}")
    print(label_table(bases))
    for basis in bases:
        if basis.kind == "planted":
            print(planted_table(made.measure_planted(basis)), end="")


if __name__ == "__main__":
    main()
