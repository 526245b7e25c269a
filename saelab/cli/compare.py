"""Compare the bases of each layer: which units are easier to name, and how sure is it?

`also=["sae.k=8","sae=matryoshka"]` adds SAEs of other settings, `random_host=true` SAEs on the same network with random
weights. What was compared is recorded in <root>/<name>.json, for `saelab report`.
"""

import shlex

from omegaconf import DictConfig

from saelab.artifacts import read_json
from saelab.cli.edge import command, dry_run, stages
from saelab.cli.screens import wrapped
from saelab.cli.stage_lines import stage_lines
from saelab.run import record


@command(
    "compare",
    settings=(
        "bases",
        "also",
        "random_host",
        "seeds",
        "rotation_seeds",
        "layers",
        "pool",
        "signed",
        "truth",
        "compare.keep",
        "compare.strongest",
        "name",
        "root",
    ),
    examples=(
        "compare bases=[neuron,sae,pca,random_rotation]",
        'compare also=\'["sae.k=8","sae.k=32 sae.expansion=4"]\' random_host=true',
        "compare also='[\"sae=matryoshka\"]' pool=mean",
    ),
)
def main(cfg: DictConfig) -> None:
    """Print each layer's conclusion and where its comparison is."""
    made = stages(cfg)
    if dry_run(made):
        return
    path = made.root / f"{made.config.name}.json"
    with stage_lines(made, last="quality of SAEs"):
        compared = made.comparisons
        record.renew(made.outcome(), made.root, made.config.name)
    for layer, found in compared.items():
        print(wrapped(f"{layer}: {read_json(found.path / 'comparison.json')['conclusion']}") + f"\n{found.path}")
    print(f"Pages: saelab report run={shlex.quote(str(path))}")
    print(f"Search them, decide, rate: saelab view run={shlex.quote(str(path))}")


if __name__ == "__main__":
    main()
