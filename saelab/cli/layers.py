"""List the layers of a model: name, layout, shape, class, and why it is a usual choice.

Without a pattern: the usual ones (residual stream, MLP hidden, maps after an activation, block outputs).
"""

from omegaconf import DictConfig

from saelab import hosts
from saelab.cli.edge import command, plain
from saelab.errors import UserError
from saelab.run.device import choose_device


@command(
    "layers",
    settings=("host", "host.name", "host.weights", "pattern", "device"),
    examples=(
        "layers host=resnet50",
        "layers host=resnet50 pattern='layer4.**'",
        "layers host.name=timm:vit_base_patch16_224",
    ),
)
def main(cfg: DictConfig) -> None:
    """Print a line a layer."""
    settings = {k: v for k, v in plain(cfg.host).items() if k != "layers"}
    host = hosts.load(**settings, device=choose_device(cfg.device))
    found = host.layers(cfg.pattern) if cfg.pattern else host.usual_layers()
    if not found:
        raise UserError("pattern", cfg.pattern, "covers no layer", "pattern='**' lists all")
    width = max(len(layer.name) for layer in found)
    print(f"{host.name}: pictures {host.transform.size[0]} x {host.transform.size[1]}, weights {host.digest[:10]}")
    for layer in found:
        shape = " x ".join(str(n) for n in layer.shape)
        line = (
            f"{layer.name:<{width}}  {layer.kind:<8}  {shape:<16}  d_in {layer.d_in:<6}{layer.module:<24}{layer.usual}"
        )
        print(line.rstrip())


if __name__ == "__main__":
    main()
