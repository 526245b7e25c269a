"""Compare bases of each layer: `python scripts/compare.py bases=[neuron,sae,pca,random_rotation]`.

`also=["sae.k=8","sae.k=32 sae.expansion=4"]` brings in SAEs of other settings, `random_host=true` SAEs on the same
network with random weights, a control. What was compared is named in runs/<name>.json, for scripts/report.py.
"""

import record
from command import command
from companions import Companions
from omegaconf import DictConfig

from saelab.artifacts import read_json


@command("compare")
def main(cfg: DictConfig) -> None:
    """Print each layer's conclusion and where its comparison lies."""
    run = Companions(cfg)
    for layer, made in run.comparisons.items():
        print(f"{layer}: {read_json(made.path / 'comparison.json')['conclusion']}\n{made.path}")
    path = run.root / f"{cfg.name}.json"
    if cfg.also or cfg.random_host or not path.exists():  # a run that compares no more has a record already
        record.write(run)
    print(f"pages: python scripts/report.py run={path}")


if __name__ == "__main__":
    main()
