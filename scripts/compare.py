"""Compare the bases of each layer: `python scripts/compare.py bases=[neuron,sae,pca,random_rotation]`."""

from command import command
from omegaconf import DictConfig
from stages import Run

from saelab.artifacts import read_json


@command("compare")
def main(cfg: DictConfig) -> None:
    """Print each layer's conclusion and where its comparison lies."""
    run = Run(cfg)
    for layer, made in run.comparisons.items():
        print(f"{layer}: {read_json(made.path / 'comparison.json')['conclusion']}\n{made.path}")


if __name__ == "__main__":
    main()
