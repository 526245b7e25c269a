"""List a host's layers: `python scripts/layers.py host=resnet50`, `... pattern="layer4.**"`, `... pattern="in:**"`.

Without a pattern: the usual ones (residual stream, MLP hidden, maps after an activation, block outputs).
"""

from command import command, device, plain
from omegaconf import DictConfig

from saelab import hosts
from saelab.errors import UserError


@command("layers")
def main(cfg: DictConfig) -> None:
    """Print name, layout, shape, class and why it is a usual choice."""
    settings = {k: v for k, v in plain(cfg.host).items() if k != "layers"}
    host = hosts.load(**settings, device=device(cfg.device))
    found = host.layers(cfg.pattern) if cfg.pattern else host.usual_layers()
    if not found:
        raise UserError("pattern", cfg.pattern, "covers no layer", "pattern='**' lists all")
    width = max(len(layer.name) for layer in found)
    print(f"{host.name}: pictures {host.transform.size[0]} x {host.transform.size[1]}, weights {host.digest[:10]}")
    for layer in found:
        shape = " x ".join(str(n) for n in layer.shape)
        print(
            f"{layer.name:<{width}}  {layer.kind:<8}  {shape:<16}  d_in {layer.d_in:<6}{layer.module:<24}{layer.usual}"
        )


if __name__ == "__main__":
    main()
