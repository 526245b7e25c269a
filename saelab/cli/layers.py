"""List the layers of a model: name, layout, shape, class, and why it is a usual choice.

Without a pattern: the usual ones (residual stream, MLP hidden, maps after an activation, block outputs).
"""

from omegaconf import DictConfig

from saelab import hosts, tables
from saelab.cli.edge import command, plain
from saelab.errors import UserError
from saelab.run.device import choose_device

HEAD = ("layer", "kind", "shape", "d_in", "module", "usual")


@command(
    "layers",
    settings=("host", "host.name", "host.weights", "pattern", "device"),
    examples=(
        "layers host=resnet50",
        "layers host=resnet50 pattern='layer4.**'",
        "layers host.name=timm:vit_base_patch16_224",
    ),
    types={"pattern": str | None},
)
def main(cfg: DictConfig) -> None:
    """Print a line a layer."""
    settings = {k: v for k, v in plain(cfg.host).items() if k != "layers"}
    host = hosts.load(**settings, device=choose_device(cfg.device))
    found = host.layers(cfg.pattern) if cfg.pattern else host.usual_layers()
    if not found:
        raise UserError("pattern", cfg.pattern, "covers no layer", "pattern='**' lists all")
    print(f"{host.name}: pictures {host.transform.size[0]} x {host.transform.size[1]}, weights {host.digest[:10]}")
    rows = [
        (own.name, own.kind, " x ".join(map(str, own.shape)), str(own.d_in), own.module, own.usual) for own in found
    ]
    print(tables.draw(HEAD, rows, names=len(HEAD)))


if __name__ == "__main__":
    main()
