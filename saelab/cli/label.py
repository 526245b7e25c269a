"""Mine exemplars, collect candidate labels and assign the best one to every unit, by every scorer named.

Prints the counts per status and a table basis x scorer x metric on held-out images.
"""

from omegaconf import DictConfig

from saelab.cli.edge import command, dry_run, stages
from saelab.cli.screens import label_table, pixel_table, planted_table, sets_line
from saelab.cli.stage_lines import stage_lines
from saelab.label import pipeline


@command(
    "label",
    settings=(
        "scorer",
        "label.final",
        "label.vocabulary",
        "label.nulls",
        "label.sets",
        "label.abstain_below",
        "label.mining.k",
        "label.mining.rule",
        "label.mining.exact_below",
        "proposer",
        "proposer.units",
        "encoder",
        "bases",
        "layers",
        "images",
        "root",
    ),
    examples=(
        "label scorer=[csp,semanticlens,soft_wpmi,cos_cubed]",
        "label proposer=internvl_vllm proposer.dry_run=true",
        "label label.vocabulary='[file:TERMS.txt]' proposer=none",
    ),
)
def main(cfg: DictConfig) -> None:
    """Print counts per status and the table of scorers."""
    made = stages(cfg)
    if dry_run(made):
        return
    with stage_lines(made, last="evaluation"):
        bases = made.evaluated
    for note in made.notes:  # what was asked of a proposer and what it took
        print(note)
    for basis in bases:
        assert basis.labels is not None
        rows = pipeline.read(basis.labels.path)
        counted = ", ".join(f"{n} {status}" for status, n in sorted(pipeline.counts(rows).items()))
        print(f"{basis.layer}  {basis.name}: {counted}; {pipeline.count_abstaining(rows)} of the labelled abstain")
        for name, reason in pipeline.left_out(basis.labels.path).items():
            print(f"  without {name}: {reason}")
        if line := sets_line(rows):
            print(f"  {line}")
    print(label_table(bases))
    print(pixel_table(bases), end="")
    for basis in bases:
        if basis.kind == "planted":
            print(planted_table(made.measure_planted(basis)), end="")
    if made.most_per_layer() > 1:
        print("Pages show labels after saelab compare with the same settings and a name of their own, name=NAME.")


if __name__ == "__main__":
    main()
