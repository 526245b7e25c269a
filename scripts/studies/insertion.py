"""Do pixel maps find what makes a unit fire, better than the place of its token?

`python scripts/studies/insertion.py PICTURES`: a folder with JPEG files, evenly thinned out. Into each blurred picture
its patches are put back, in the order of the pixel map or of the activation map; the area under the unit's strongest
pre-activation (a share of what the whole picture gives) is larger where the right patches come first. Prints a row a
host. Needs the extras quickstart and dino.
"""

import sys
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.nn.functional import interpolate

from saelab import hosts, tables
from saelab.effects.pixels import blurred, find_causes
from saelab.hosts import Host
from saelab.units.bases import Projection

PLACES = (("dinov2_small_focus", "encoder.layer.9", "patches"), ("efficientnet_lite0", "_blocks.15", "all"))
PICTURES, UNITS = 12, 2  # of each picture the units furthest above their mean over the pictures
STEPS = 16  # frames from the blurred picture to the whole one


def main(pictures: Path) -> None:
    """Print mean areas and how often the pixel map's is larger."""
    files = sorted(pictures.glob("*.jpg"))
    files = files[:: max(1, len(files) // PICTURES)][:PICTURES]
    rows = []
    for name, layer, policy in PLACES:
        host = hosts.load(name, device="cpu")
        batches = [host.load_images([Image.open(file).convert("RGB")]) for file in files]
        grid = host.choice(layer, policy).grid
        assert grid is not None
        strongest = torch.cat([host.tokens(batch, [layer], policy)[layer].float().amax(1) for batch in batches])
        above = (strongest - strongest.mean(0)) / strongest.std(0)
        areas = []
        for batch, scores in zip(batches, above):
            units = torch.argsort(scores, descending=True)[:UNITS].tolist()
            found = find_causes(host, layer, policy, Projection(), units, batch)
            acts = host.tokens(batch, [layer], policy)[layer][0].float()[-grid[0] * grid[1] :]
            for unit, causes in zip(units, found.places(*grid)):
                maps = (causes.flatten(), acts[:, unit])
                areas.append([area(host, layer, policy, unit, batch, values, grid) for values in maps])
        own, place = np.array(areas).T
        gap = own - place
        se = gap.std(ddof=1) / np.sqrt(len(gap))
        numbers = (own.mean(), place.mean(), gap.mean(), se, (gap > 0).mean())
        rows.append([f"{name}, `{layer}`", str(len(gap)), *(tables.number(float(x)) for x in numbers)])
        print(rows[-1], file=sys.stderr)
    print(tables.draw_markdown(("host, layer", "units", "pixel map", "activation map", "gap", "se", "larger"), rows))


def area(host: Host, layer: str, policy: str, unit: int, batch: Tensor, values: Tensor, grid: tuple[int, int]) -> float:
    """Mean, over frames, of the unit's strongest pre-activation as a share of that on the whole picture."""
    order = torch.argsort(values, descending=True, stable=True)
    rank = torch.empty(len(order)).scatter_(0, order, torch.arange(len(order)).float()).reshape(1, 1, *grid)
    rank = interpolate(rank, batch.shape[-2:], mode="nearest")
    counts = torch.linspace(0, len(order), STEPS + 1)
    frames = torch.cat([torch.where(rank < count, batch, blurred(batch)) for count in counts])
    tokens = host.tokens(frames, [layer], policy)[layer]
    acts = Projection().before_gate(tokens.flatten(0, 1), [unit]).unflatten(0, tokens.shape[:2])[..., 0].amax(1)
    return float(((acts[:-1] + acts[1:]) / 2).mean() / acts[-1])


if __name__ == "__main__":
    main(Path(sys.argv[1]))
