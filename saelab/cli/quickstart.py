"""From photos to a report in which neurons and SAE features carry labels, measured and compared.

Without settings it takes the packaged photos and EfficientNet-Lite0. Whatever is there already is reused.
"""

import time

from omegaconf import DictConfig

from saelab import report
from saelab.cli.edge import command, dry_run, stages
from saelab.cli.screens import last_screen
from saelab.cli.stage_lines import stage_lines
from saelab.run import record


@command(
    "quickstart",
    settings=(
        "images",
        "images.root",
        "host",
        "layers",
        "sae",
        "sae.k",
        "encoder",
        "proposer",
        "bases",
        "pool",
        "seeds",
        "label.vocabulary",
        "effects",
        "name",
        "root",
    ),
    examples=(
        "quickstart",
        "quickstart images=folder images.root=~/photos host=resnet50 layers=[layer4]",
        "quickstart layers=[_blocks.15] sae.k=32",
    ),
)
def main(cfg: DictConfig) -> None:
    """Run every stage, write <root>/<name>.json and the report, and print a last screen."""
    start = time.perf_counter()
    made = stages(cfg)
    if dry_run(made):
        return
    with stage_lines(made, last="report") as lines:
        outcome = made.outcome()
        run_json = record.write(outcome, made.root, made.config.name)
        lines.begin("report")
        index = report.build(run_json, made.root / "report" / made.config.name)
    print(last_screen(made.images, outcome, run_json, index, time.perf_counter() - start))


if __name__ == "__main__":
    main()
