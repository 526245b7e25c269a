"""Measure the SAEs themselves: reconstruction on held-out tokens, loss recovered, probes, stability over seeds.

Every number stands beside what it is on the training tokens, or what chance would give.
"""

from typing import Any

from omegaconf import DictConfig

from saelab import tables
from saelab.artifacts import read_json
from saelab.cli.edge import command, stages

HEAD = ("SAE", "FVU mine", "FVU test", "L0", "dead", "CE recovered", "probes", "shared", "by chance")


@command(
    "quality",
    settings=("loss", "seeds", "sae", "sae.k", "sae.expansion", "layers", "images", "host", "root"),
    examples=("quality", "quality loss=false", "quality sae=matryoshka seeds=[0,1]"),
    types={"loss": bool},
)
def main(cfg: DictConfig) -> None:
    """Print a line an SAE, where its numbers are, and what overfits."""
    made = stages(cfg, "loss")
    lines, notes = [], []
    for basis, artifact in made.measure_saes(loss=bool(cfg.loss)):
        found = read_json(artifact.path / "quality.json")
        lines.append((f"{basis.layer} {basis.name}", *_cells(found)))
        notes += [f"{basis.layer} {basis.name}: {artifact.path}"]
        notes += [found["held_out"]["overfit"]] if found["held_out"]["overfit"] else []
    print(tables.draw(HEAD, lines))
    print("\n".join(notes))


def _cells(found: dict[str, Any]) -> list[str]:
    mine, held, loss, stable = found["mine"], found["held_out"], found["loss_recovered"], found["stability"]
    probes = (found["probes"] or {}).get("accuracy")
    shared = [row["shared"] for row in stable or []]
    chance = [row["null_shared"] for row in stable or []]
    numbers = [mine["fvu"], held["fvu"], held["l0"], held["dead"], loss and loss["ce_recovered"], probes]
    numbers += [sum(own) / len(own) if own else None for own in (shared, chance)]
    return list(map(tables.number, numbers))


if __name__ == "__main__":
    main()
